"""Images in memory as tensors: scikit-learn's digits, and any images as a model sees them before normalisation.

``digits`` is scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set: 1,797 real digits
from 13 writers, 8x8 pixels with 17 grey levels (E. Alpaydin and C. Kaynak, 1998; CC BY 4.0). It comes with the package,
so nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..zoo.extras import require
from ..zoo.pictures import folder_name
from .data import eval_transform
from .images import Data, Images
from .schema import DataRecipe, Recipe

TEST_SHARE = 0.25
SPLIT_SEED = 0  # the split is part of the data set here: it never follows a recipe's seed


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), float32 in [0, 1], and labels (N,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Pixels:
    """A classification data set in memory; ``classes`` names label 0, 1, ..."""

    train: Split
    test: Split
    classes: tuple[str, ...]


def digits() -> Pixels:
    """scikit-learn's handwritten digits at 8x8, 1,347 to train and 450 to test, with equal shares of each class."""
    datasets = require("sklearn.datasets", extra="train")
    selection = require("sklearn.model_selection", extra="train")
    bunch = datasets.load_digits()
    train, test = selection.train_test_split(
        range(len(bunch.target)), test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=bunch.target
    )
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)  # (1797, 1, 8, 8), levels 0..16
    labels = torch.from_numpy(bunch.target).long()
    return Pixels(Split(images[train], labels[train]), Split(images[test], labels[test]), tuple("0123456789"))


def as_pixels(data: Data, recipe: DataRecipe) -> Pixels:
    """All images of ``data`` in memory, scaled and cropped for testing, not normalised."""
    return Pixels(_as_split(data.train, recipe), _as_split(data.test, recipe), data.classes)


def _as_split(images: Images, recipe: DataRecipe) -> Split:
    transform, mode = eval_transform(recipe), "L" if len(recipe.mean) == 1 else "RGB"
    pairs = [images.read(index) for index in range(len(images))]
    tensors = [transform(image.convert(mode)) for image, _ in pairs]
    return Split(torch.stack(tensors).float() / 255, torch.tensor([label for _, label in pairs]))


def normalise(images: Tensor, recipe: DataRecipe) -> Tensor:
    """(B, C, H, W) in [0, 1] -> the same with the recipe's mean taken away, in units of its std."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (recipe.mean, recipe.std))
    return (images - mean) / std


@torch.inference_mode()
def predict_logits(model: nn.Module, images: Tensor, recipe: Recipe, batch: int = 128) -> Tensor:
    """Logits (N, classes) of images (N, C, H, W) in [0, 1], without augmentation; the model's mode is left as it is."""
    return torch.cat([model(normalise(part, recipe.data)) for part in images.split(batch)])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose greatest logit is the label's."""
    return (logits.argmax(1) == labels).float().mean().item()


def write_images(split: Split, classes: tuple[str, ...], folder: Path, count: int | None = None) -> Path:
    """Write the first ``count`` images, or all, as PNG files in a folder for each class, and return ``folder``."""
    from torchvision.transforms.functional import to_pil_image

    for index in range(len(split) if count is None else count):
        path = folder / folder_name(classes[int(split.labels[index])]) / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(split.images[index]).save(path)
    return folder
