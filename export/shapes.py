"""Input shapes: those that were asked for, and those that prove an axis dynamic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..zoo.errors import UnknownNameError
from .errors import ShapeError

Size = tuple[int, int]  # (height, width), pixels
Axes = tuple[str, ...]  # the open axes, a subset of AXES in this order

AXES: Axes = ("batch", "height", "width")
NO_AXES = "none"
TINY: Size = (33, 47)  # px; models of the zoo take sides from 32 up
_PROOF_BATCHES = (3, 2)


class Case(NamedTuple):
    """One input shape that a file is run at.

    Attributes:
        batch: images in the batch.
        size: (height, width) in pixels.
        asked: whether the user asked for it; the others only prove that an axis is dynamic.
    """

    batch: int
    size: Size
    asked: bool = True

    def __str__(self) -> str:
        return f"batch {self.batch}, {size_name(self.size)}"


def size_name(size: Size) -> str:
    """'224x224' for (224, 224): height first."""
    return f"{size[0]}x{size[1]}"


def parse_sizes(text: str) -> tuple[Size, ...]:
    """``"224,192x256"`` -> ((224, 224), (192, 256)): sides in pixels, or heights x widths.

    Raises:
        ShapeError: an item that is no size.
    """
    return tuple(dict.fromkeys(_parse_size(item) for item in _items(text, "sizes", "224,192x256")))


def one_size(text: str) -> Size | None:
    """``"192x256"`` -> (192, 256); None for an empty text.

    Raises:
        ShapeError: no size, or several.
    """
    sizes = parse_sizes(text) if text else (None,)
    if len(sizes) > 1:
        raise ShapeError(f"--size {text!r} has {len(sizes)}: give one size.")
    return sizes[0]


def parse_batches(text: str) -> tuple[int, ...]:
    """``"1,3"`` -> (1, 3).

    Raises:
        ShapeError: an item that is no batch size.
    """
    return tuple(dict.fromkeys(_positive(item, "batch") for item in _items(text, "batches", "1,3")))


def as_sizes(sizes: str | Sequence[int | Size], what: str = "sizes") -> tuple[Size, ...]:
    """Sizes given as text, sides or (height, width) pairs, each once, in order.

    Raises:
        ShapeError: no sizes, or something that is no size.
    """
    if isinstance(sizes, str):
        return parse_sizes(sizes)
    pairs = [(s, s) if isinstance(s, int) else tuple(s) for s in sizes]
    if not pairs or any(len(p) != 2 or not all(isinstance(v, int) and v > 0 for v in p) for p in pairs):
        raise ShapeError(f"{what}={sizes!r}: give sides or (height, width) pairs in pixels, such as (224, (192, 256)).")
    return tuple(dict.fromkeys((p[0], p[1]) for p in pairs))


def as_batches(batches: str | Sequence[int]) -> tuple[int, ...]:
    """Batch sizes given as text or numbers, each once, in order.

    Raises:
        ShapeError: none, or something that is no batch size.
    """
    if isinstance(batches, str):
        return parse_batches(batches)
    if not batches or any(not isinstance(b, int) or b < 1 for b in batches):
        raise ShapeError(f"batches={batches!r}: give positive numbers, such as (1, 3).")
    return tuple(dict.fromkeys(batches))


def as_axes(axes: str | Sequence[str]) -> Axes:
    """Axes given as text ("batch,height", "none") or names, in the order of `AXES`.

    Raises:
        UnknownNameError: an axis that does not exist.
    """
    if isinstance(axes, str):
        axes = () if axes.strip() == NO_AXES else _items(axes, "dynamic", "batch,height,width")
    for axis in axes:
        if axis not in AXES:
            raise UnknownNameError("axis", axis, AXES, f"Axes: {', '.join(AXES)}, or {NO_AXES} of them.")
    return tuple(axis for axis in AXES if axis in axes)


def grid(sizes: Iterable[Size], batches: Sequence[int]) -> list[Case]:
    """Every asked size at every asked batch."""
    return [Case(b, s) for s in sizes for b in batches]


def proof_batch(batches: Sequence[int]) -> int:
    """A batch size that was not asked for."""
    return next(b for b in (*_PROOF_BATCHES, 1) if b not in batches) if len(batches) < 3 else max(batches) + 1


def proof_sizes(sizes: Sequence[Size]) -> list[Size]:
    """Three sizes that were not asked for: a larger one, an odd one that is lower and wider, and a tiny one.

    A graph in which a side, the ratio of the sides, their divisibility or a branch on them was frozen fails at one.
    """
    height, width = sizes[0]
    candidates = [(height + 32, width + 64), (max(33, height - 31), width + 33), TINY]
    return [(h + 6, w + 10) if (h, w) in sizes else (h, w) for h, w in candidates]


def _items(text: str, what: str, example: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise ShapeError(f"--{what} {text!r} has an empty item: give some such as {example}.")
    return items


def _parse_size(item: str) -> Size:
    sides = item.lower().split("x")
    if len(sides) > 2:
        raise ShapeError(f"Size {item!r} has {len(sides)} sides: give a side (224) or height x width (192x256).")
    height, width = (_positive(s, "size") for s in (sides if len(sides) == 2 else sides * 2))
    return height, width


def _positive(item: str, what: str) -> int:
    if not item.isascii() or not item.isdigit() or int(item) == 0:
        remedy = (
            "a side (224) or height x width (192x256), in pixels" if what == "size" else "a positive number such as 3"
        )
        raise ShapeError(f"{what.capitalize()} {item!r} is not a number above zero: give {remedy}.")
    return int(item)
