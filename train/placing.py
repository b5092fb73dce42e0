"""Real items on real photographs: one picture, with what can be seen of each item.

Items are laid one over another. The root of an item's grey levels is its opacity, in a tint that is lighter than what
is behind it; where its opacity is at least `SOLID`, it hides the items below, and that is its mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..blocks.geometry import Size
from .images import Images

SOLID = 0.25  # opacity from which a pixel belongs to an item
SEEN = 0.4  # least share of an item that the items over it leave to be seen
SIDES = (0.3, 0.6)  # least and greatest side of an item, in shorter sides of the picture
CROPS = (0.4, 1.0)  # least and greatest side of a crop, in sides of the largest one that fits
DIM = 0.5  # what is left of a photograph's brightness, so that items can be lighter
CONTRAST = 0.35  # by which an item's tint is at least lighter than what is behind it, of 1
TRIES = 20  # places that are looked for before an item is left out
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Item:
    """What can be seen of an item: its class, and bool (H, W)."""

    label: int
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 (H, W, 3), and its items, the lowest first."""

    picture: np.ndarray
    items: tuple[Item, ...]

    def classes(self) -> np.ndarray:
        """The class of every pixel, uint8 (H, W): 0 for the background, 1 + label for an item."""
        found = np.zeros(self.picture.shape[:2], np.uint8)
        for item in self.items:
            found[item.mask] = 1 + item.label
        return found


def compose(
    images: Images, photographs: Sequence[Image.Image], size: Size, most: int, draw: np.random.Generator
) -> Scene:
    """A scene of ``size`` (H, W) with 2 to ``most`` items, all of it drawn by ``draw``."""
    canvas = _background(photographs[int(draw.integers(len(photographs)))], size, draw)
    items: list[tuple[Item, int]] = []  # each with its whole area
    for _ in range(draw.integers(2, most + 1)):
        opacity, label = _item(images, min(size), draw)
        for _ in range(TRIES):
            top, left = (int(draw.integers(whole - part + 1)) for whole, part in zip(size, opacity.shape, strict=True))
            laid = np.zeros(size, np.float32)
            laid[top : top + opacity.shape[0], left : left + opacity.shape[1]] = opacity
            solid = laid >= SOLID
            below = [(Item(item.label, item.mask & ~solid), area) for item, area in items]
            if solid.any() and all(item.mask.sum() >= SEEN * area for item, area in below):
                tint = _tint(canvas[solid].mean(0), draw)
                canvas += laid[..., None] * (tint - canvas)
                items = [*below, (Item(label, solid), int(solid.sum()))]
                break
    picture = (canvas * 255).round().clip(0, 255).astype(np.uint8)
    return Scene(picture, tuple(item for item, _ in items))


def _background(photograph: Image.Image, size: Size, draw: np.random.Generator) -> np.ndarray:
    """A crop of a photograph, scaled to ``size``, in half of the cases mirrored: float32 (H, W, 3) up to `DIM`."""
    width, height = photograph.size
    share = min(height / size[0], width / size[1]) * draw.uniform(*CROPS)
    crop = (share * size[0], share * size[1])
    top, left = draw.uniform(0, height - crop[0]), draw.uniform(0, width - crop[1])
    box = (left, top, min(left + crop[1], width), min(top + crop[0], height))
    scaled = photograph.resize((size[1], size[0]), Image.Resampling.BICUBIC, box)
    array = np.asarray(scaled, np.float32) * (DIM / 255)
    return array[:, ::-1].copy() if draw.random() < 0.5 else array


def _item(images: Images, side: int, draw: np.random.Generator) -> tuple[np.ndarray, int]:
    """Opacity of an item, float32 (h, w) in [0, 1], and its label."""
    image, label = images.read(int(draw.integers(len(images))))
    longer = side * np.exp(draw.uniform(*np.log(SIDES)))
    factor = longer / max(image.size)
    sides = tuple(max(1, round(length * factor)) for length in image.size)
    scaled = np.asarray(image.convert("L").resize(sides, Image.Resampling.BILINEAR), np.float32)
    return np.sqrt(scaled / max(float(scaled.max()), 1.0)), label


def _tint(behind: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A colour, float32 (3,) in [0, 1], that is lighter than the colour ``behind`` by `CONTRAST`, or white."""
    tint = draw.uniform(0, 1, 3).astype(np.float32)
    light, least = float(tint @ _LUMA), min(float(behind @ _LUMA) + CONTRAST, 1.0)
    return tint if light >= least else tint + (1 - tint) * np.float32((least - light) / (1 - light))
