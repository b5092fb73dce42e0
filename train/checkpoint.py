"""What a run leaves behind: weights as safetensors, everything else in train.json, a row per epoch in log.csv."""

from __future__ import annotations

import csv
import hashlib
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from ..bench.machine import versions
from ..zoo.errors import CheckpointError
from ..zoo.files import atomic_dir
from ..zoo.registry import create_model
from .data import Data
from .recipe import parse_recipe
from .schema import Recipe

WEIGHTS, RECORD, LOG = "model.safetensors", "train.json", "log.csv"
_PACKAGES = ("mixzoo", "torch", "timm", "numpy", "scikit-learn")  # what decides a run's numbers


@dataclass(frozen=True)
class Trained:
    """A model as a run left it (eval mode), with its recipe and the record of the run (train.json)."""

    model: nn.Module
    recipe: Recipe
    record: dict[str, Any]


@dataclass(frozen=True)
class Epoch:
    """What one epoch did: mean loss over its steps, accuracy on the test images (a share), and its time in seconds."""

    number: int
    lr: float
    loss: float
    accuracy: float
    images_per_s: float
    seconds: float


class EpochLog:
    """A CSV file that is complete after every row; the columns are the fields of ``row``."""

    def __init__(self, path: Path, row: type[Epoch]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", newline="", encoding="utf-8")
        self.writer = csv.DictWriter(self.file, [f.name for f in fields(row)])
        self.writer.writeheader()

    def __enter__(self) -> EpochLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def write(self, row: Epoch) -> None:
        self.writer.writerow({k: round(v, 6) for k, v in asdict(row).items()})
        self.file.flush()


def build_model(recipe: Recipe, in_chans: int, num_classes: int) -> nn.Module:
    """The recipe's backbone, freshly initialised; its ``pretrained_cfg`` says how images must be prepared."""
    data = recipe.data
    model = create_model(
        recipe.model.name, in_chans=in_chans, num_classes=num_classes, img_size=data.size, **recipe.model.kwargs
    )
    model.pretrained_cfg = {  # type: ignore[assignment]
        **model.pretrained_cfg,  # type: ignore[dict-item]
        "input_size": (in_chans, data.size, data.size),
        "interpolation": data.interpolation,
        "crop_pct": 1.0,
        "mean": data.mean,
        "std": data.std,
    }
    return model


def load_run(folder: str | Path) -> Trained:
    """The model that a run left in ``folder``, in eval mode.

    Raises:
        CheckpointError: a file is missing, unreadable, or does not belong to the other.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        weights = (folder / WEIGHTS).read_bytes()
        recipe, classes = parse_recipe(record["recipe"], str(folder / RECORD)), len(record["classes"])
        expected, in_chans = record["weights"]["sha256"], record["in_chans"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} does not hold a finished training run ({type(error).__name__}: {error}): train again."
        ) from error
    if hashlib.sha256(weights).hexdigest() != expected:
        raise CheckpointError(f"{folder / WEIGHTS} is not the file that {RECORD} describes: train again.")
    model = build_model(recipe, in_chans, classes)
    model.load_state_dict(load(weights))
    model.pretrained_cfg = {  # type: ignore[assignment]
        **model.pretrained_cfg,  # type: ignore[dict-item]
        "label_names": [str(name) for name in record["classes"]],
    }
    return Trained(model.eval(), recipe, record)


def save_run(out: Path, model: nn.Module, recipe: Recipe, data: Data, epochs: Iterable[Epoch], seconds: float) -> None:
    """Write the weights and the record into ``out``; neither is seen half-written."""
    weights = save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
    history = [asdict(e) for e in epochs]
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "classes": list(data.classes),
        "in_chans": data.in_chans,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "test_accuracy": history[-1]["accuracy"],
        "seconds": seconds,
        "epochs": history,
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest()},
        "versions": {"python": platform.python_version(), **versions(_PACKAGES)},
        "threads": recipe.compute.threads or torch.get_num_threads(),
    }
    with atomic_dir(out) as folder:
        (folder / WEIGHTS).write_bytes(weights)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
