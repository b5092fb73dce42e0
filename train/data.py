"""Images for training and testing, held in memory as tensors, and their random changes.

Sources: ``digits`` is scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set: 1,797 real
digits from 13 writers, 8x8 pixels with 17 grey levels (E. Alpaydin and C. Kaynak, 1998; CC BY 4.0). It comes with the
package, so nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..zoo.extras import require
from .recipe import RecipeError
from .schema import AugmentRecipe, DataRecipe

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
class Data:
    """A classification data set; ``classes`` names label 0, 1, ..."""

    train: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def in_chans(self) -> int:
        return self.train.images.shape[1]


def load_data(recipe: DataRecipe) -> Data:
    """Read the recipe's source and scale its images to ``recipe.size``.

    Raises:
        RecipeError: the recipe's mean and std do not fit the source's channels.
        MissingExtraError: the package that brings the source is not installed.
    """
    data = SOURCES[recipe.source]()
    if data.in_chans != len(recipe.mean):
        raise RecipeError(
            f"'data.mean' and 'data.std' have {len(recipe.mean)} values, but images of {recipe.source!r} "
            f"have {data.in_chans} channel(s)."
        )
    return Data(_resize(data.train, recipe), _resize(data.test, recipe), data.classes)


def digits() -> Data:
    """scikit-learn's handwritten digits at 8x8, 1,347 to train and 450 to test, with equal shares of each class."""
    datasets = require("sklearn.datasets", extra="train")
    selection = require("sklearn.model_selection", extra="train")
    bunch = datasets.load_digits()
    train, test = selection.train_test_split(
        range(len(bunch.target)), test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=bunch.target
    )
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)  # (1797, 1, 8, 8), levels 0..16
    labels = torch.from_numpy(bunch.target).long()
    return Data(Split(images[train], labels[train]), Split(images[test], labels[test]), tuple("0123456789"))


SOURCES: dict[str, Callable[[], Data]] = {"digits": digits}


def normalise(images: Tensor, recipe: DataRecipe) -> Tensor:
    """(B, C, H, W) in [0, 1] -> the same with the recipe's mean taken away, in units of its std."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (recipe.mean, recipe.std))
    return (images - mean) / std


def augment(images: Tensor, recipe: AugmentRecipe, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift each of (B, C, H, W) by its own random amount; what comes in from outside is black."""
    if not (recipe.rotate or recipe.shift or recipe.scale):
        return images
    angle, size, dx, dy = (torch.rand(4, len(images), generator=generator) * 2 - 1).unbind()
    angle = angle * math.radians(recipe.rotate)
    inverse = 1 / (1 + size * recipe.scale)  # the grid maps output to input
    cos, sin = inverse * angle.cos(), inverse * angle.sin()
    shift = 2 * recipe.shift  # affine_grid's side is 2 long
    theta = torch.stack([cos, -sin, dx * shift, sin, cos, dy * shift], dim=1).view(-1, 2, 3)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def batches(split: Split, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of (images, labels) in random order; an incomplete last batch is left out."""
    order = torch.randperm(len(split), generator=generator)
    for start in range(0, len(split) - size + 1, size):
        index = order[start : start + size]
        yield split.images[index], split.labels[index]


def write_images(split: Split, classes: tuple[str, ...], folder: Path, count: int | None = None) -> Path:
    """Write the first ``count`` images, or all, as PNG files in a folder for each class, and return ``folder``."""
    from torchvision.transforms.functional import to_pil_image

    for index in range(len(split) if count is None else count):
        path = folder / classes[int(split.labels[index])] / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(split.images[index]).save(path)
    return folder


def _resize(split: Split, recipe: DataRecipe) -> Split:
    side = (recipe.size, recipe.size)
    images = F.interpolate(split.images, size=side, mode=recipe.interpolation, align_corners=False)
    return Split(images.clamp(0, 1), split.labels)
