"""The ranges of what layers are given and give, at every size of image.

Eight bits have 255 steps from the least to the greatest value. Where a layer's values grow with the map, as sums over
it do, steps that reach as far as a large image's leave few for a small one; those of a small one cut a large one's off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .shapes import Size, size_name

_NOTHING = 1e-12
_MOVED = 2.0  # times as wide: less is what other images make as well


@dataclass(frozen=True)
class Range:
    """From the least to the greatest value, with zero inside."""

    least: float
    greatest: float

    @property
    def width(self) -> float:
        return self.greatest - self.least

    def __or__(self, other: Range) -> Range:
        return Range(min(self.least, other.least), max(self.greatest, other.greatest))

    def __str__(self) -> str:
        return f"{self.least:.3g} to {self.greatest:.3g}"

    def round(self, x: Tensor, steps: int) -> Tensor:
        """``x`` in so many steps from the least to the greatest value; what is beyond them is cut off."""
        step = max(self.width, 1e-12) / steps
        return (x.clamp(self.least, self.greatest) / step).round() * step


@dataclass(frozen=True)
class Ranges:
    """Of one layer: of its input, and of its output."""

    given: Range
    gives: Range

    def __or__(self, other: Ranges) -> Ranges:
        return Ranges(self.given | other.given, self.gives | other.gives)


def range_of(x: Tensor) -> Range:
    """The range of a tensor's values."""
    return Range(min(0.0, float(x.amin())), max(0.0, float(x.amax())))


@torch.no_grad()
def ranges_of(module: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, Ranges]:
    """The ranges of ``layers`` of a module in evaluation mode on images (B, C, H, W), by their paths.

    Those of a layer that is not called, whose weights another reads, are zero.
    """
    found = dict.fromkeys(layers, Ranges(Range(0.0, 0.0), Range(0.0, 0.0)))
    with _noting(layers, found):
        module(images)
    return found


@contextmanager
def _noting(layers: Mapping[str, nn.Module], found: dict[str, Ranges]) -> Iterator[None]:
    def note(path: str, x: Tensor, y: Tensor) -> None:
        found[path] |= Ranges(range_of(x), range_of(y))

    def hook(path: str) -> Any:
        return lambda layer, given, gives: note(path, given[0], gives)

    handles = [layer.register_forward_hook(hook(path)) for path, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_size(images: Sequence[Tensor]) -> dict[Size, Tensor]:
    """Images (1, C, H, W) of several sizes as a batch of each, in order."""
    groups: dict[Size, list[Tensor]] = {}
    for image in images:
        groups.setdefault((image.shape[2], image.shape[3]), []).append(image)
    return {size: torch.cat(group) for size, group in groups.items()}


def moved(module: nn.Module, layers: Mapping[str, nn.Module], images: Sequence[Tensor]) -> str | None:
    """In words the layer whose input's range moves most with the size of images; None where none moves much."""
    sizes = by_size(images)
    found = {size: ranges_of(module, layers, batch) for size, batch in sizes.items()}
    spans = {path: sorted((ranges[path].given.width, size) for size, ranges in found.items()) for path in layers}
    worst = max(spans, key=lambda path: spans[path][-1][0] / max(spans[path][0][0], _NOTHING))
    (least, small), (greatest, large) = spans[worst][0], spans[worst][-1]
    if greatest < _MOVED * max(least, _NOTHING):
        return None
    ends = (f"from {found[size][worst].given} at {size_name(size)}" for size in (small, large))
    return f"ranges depend on the size: what {worst} is given goes {', and '.join(ends)}"
