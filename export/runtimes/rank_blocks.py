"""What tensors of many axes hold, in tensors of few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_FEW = 4  # axes that every runtime has
_NOTE = "blocks_of_many_axes"


@dataclass(frozen=True)
class Blocks:
    """What a tensor of many axes holds.

    Attributes:
        base: a tensor of few axes.
        sizes: what it is reshaped to.
        order: the axes of that, as they lie in the tensor.
    """

    base: Tensor
    sizes: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sizes[axis] for axis in self.order)

    def permuted(self, axes: Sequence[int]) -> Blocks:
        return Blocks(self.base, self.sizes, tuple(self.order[axis] for axis in axes))

    def chosen(self, axis: int, start: int, length: int) -> Blocks:
        """Some positions of an axis, which stays."""
        at = self.order[axis]
        before, after = math.prod(self.sizes[:at]), math.prod(self.sizes[at + 1 :])
        rows = self.base.reshape(before, self.sizes[at] * after)
        sizes = (*self.sizes[:at], length, *self.sizes[at + 1 :])
        return Blocks(rows[:, start * after : (start + length) * after], sizes, self.order)

    def windows(self, axis: int, size: int, step: int) -> Blocks:
        """As `Tensor.unfold`: windows of an axis in its place, and their positions behind all others."""
        at = self.order[axis]
        side, before, after = self.sizes[at], math.prod(self.sizes[:at]), math.prod(self.sizes[at + 1 :])
        count = (side - size) // step + 1
        by_position = step == 1 and count > size
        starts, length = (range(size), count) if by_position else (range(0, count * step, step), size)
        rows = self.base.reshape(before, side * after)
        cuts = [rows[:, start * after : (start + length) * after] for start in starts]
        sizes = (*self.sizes[:at], len(cuts), length, *self.sizes[at + 1 :])
        order = [other + (other > at or (other == at and by_position)) for other in self.order]
        return Blocks(torch.cat(cuts, dim=1), sizes, (*order, at if by_position else at + 1))

    def without(self, axis: int) -> Blocks:
        """An axis of one position left out."""
        at = self.order[axis]
        order = tuple(other - (other > at) for other in self.order if other != at)
        return Blocks(self.base, self.sizes[:at] + self.sizes[at + 1 :], order)

    def flat(self) -> Tensor:
        """The numbers in the order in which they lie in the tensor, in few axes."""
        sizes, order = _joined(self.sizes, self.order)
        x, done = self.base, 1
        while order != tuple(range(len(order))):
            if len(order) + (done > 1) <= _FEW:
                lead = (done,) if done > 1 else ()
                return x.reshape(lead + sizes).permute((*range(len(lead)), *(axis + len(lead) for axis in order)))
            at = order[0]  # this axis next, behind those that are done
            before, size, after = math.prod(sizes[:at]), sizes[at], math.prod(sizes[at + 1 :])
            x = x.reshape(done, before, size, after) if done > 1 else x.reshape(before, size, after)
            x = x.transpose(-3, -2)
            done *= size
            sizes = sizes[:at] + sizes[at + 1 :]
            order = tuple(other - (other > at) for other in order[1:])
        return x


def _joined(sizes: tuple[int, ...], order: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same move with axes of one position left out, and axes that stay side by side as one."""
    wide = [axis for axis in order if sizes[axis] > 1]
    behind = dict(pairwise(sorted(wide)))
    groups: list[list[int]] = []
    for axis in wide:
        if groups and behind.get(groups[-1][-1]) == axis:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    places = sorted(range(len(groups)), key=lambda i: groups[i][0])
    joined = (math.prod(sizes[axis] for axis in groups[i]) for i in places)
    return tuple(joined), tuple(places.index(i) for i in range(len(groups)))


def blocks_of(x: Any) -> Blocks | None:
    """What `note` said of ``x``; None where nothing was said."""
    return getattr(x, _NOTE, None)


def note(x: Tensor, blocks: Blocks | None) -> None:
    """Remember what ``x`` holds."""
    setattr(x, _NOTE, blocks)


def shape_of(x: Any, rank: int) -> list[int]:
    """Of a tensor or a number, with ones in front up to ``rank``."""
    sides = [int(side) for side in x.shape] if isinstance(x, Tensor) else []
    return [1] * (rank - len(sides)) + sides


def merged(shapes: Sequence[Sequence[int]]) -> list[list[int]]:
    """The same shapes without axes in which all are one, and neighbours joined that are one in the same of them."""
    joined: list[list[int]] = [[] for _ in shapes]
    before: list[bool] | None = None
    for sides in zip(*shapes, strict=True):
        if max(sides) == 1:
            continue
        wide = [side > 1 for side in sides]
        for shape, side in zip(joined, sides, strict=True):
            shape[-1:] = [shape[-1] * side] if wide == before else [*shape[-1:], side]
        before = wide
    return joined


def in_few(x: Any, shape: Sequence[int]) -> Any:
    """What ``x`` holds in ``shape``; a number as it is."""
    if not isinstance(x, Tensor) or x.ndim == 0:
        return x
    blocks = blocks_of(x)
    return (x if blocks is None else blocks.flat()).reshape(tuple(shape))
