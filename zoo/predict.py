"""Classes of real images, prepared the way the weights expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from timm.data import ImageNetInfo, resolve_model_data_config
from torch import nn

from .pictures import ImageError, preparation
from .tables import new_table

__all__ = ["Guess", "ImageError", "Prediction", "predict", "predictions_table"]


@dataclass(frozen=True)
class Guess:
    """One class with its softmax probability."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first."""

    image: str
    guesses: tuple[Guess, ...]

    def record(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def predict(
    model: nn.Module, images: Sequence[Path], topk: int = 5, labels: Sequence[str] | None = None
) -> list[Prediction]:
    """Classify image files.

    Args:
        model: a classifier in eval mode, whose ``pretrained_cfg`` says how images are prepared (size, crop, mean, std).
        images: files that Pillow reads.
        topk: how many classes to give for each, at most all.
        labels: names of the classes; ImageNet-1k's for 1,000 classes, else their numbers.

    Raises:
        ImageError: a file that is missing or no image.
    """
    prepare = preparation(resolve_model_data_config(model))
    tensors = [prepare(path) for path in images]  # each (C, H, W)
    found = []
    for path, tensor in zip(images, tensors, strict=True):
        scores = model(tensor[None]).float().softmax(-1)[0]  # (num_classes,)
        best = scores.topk(min(topk, len(scores)))
        names = labels or _labels(len(scores))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found.append(Prediction(str(path), tuple(Guess(i, names[i], p) for i, p in pairs)))
    return found


def _labels(count: int) -> list[str]:
    if count != 1000:
        return [str(i) for i in range(count)]
    info = ImageNetInfo()
    return [info.index_to_description(i) for i in range(count)]


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """One line for each guess."""
    table = new_table(("image",), ("class", "probability"), ("label",))
    for prediction in predictions:
        for rank, guess in enumerate(prediction.guesses):
            image = prediction.image if rank == 0 else ""
            table.add_row(image, str(guess.index), f"{guess.probability:.4f}", guess.label)
        table.add_section()
    return table
