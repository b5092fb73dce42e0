"""Five and more axes as four, for ncnn, which has no more: cutting a map into windows, putting it together, and heads.

Code that cuts into windows reshapes to six axes, moves some, and joins them again. What such a tensor holds is known
from the tensor that was reshaped, its `Blocks`; moves are noted, and once axes are joined or one is chosen, the same is
written with as few axes as it takes. The tensors of many axes are made too, but nothing reads them: tracing leaves them
out. Where something else does read one, it stays, and ncnn refuses the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

MOST = 4  # axes


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
            if len(order) + (done > 1) <= MOST:
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


def _blocks(x: Any) -> Blocks | None:
    return getattr(x, "ncnn_blocks", None)


def _noted(x: Tensor, blocks: Blocks | None) -> Tensor:
    """``x``, which holds ``blocks``; the same in few axes where it has no more."""
    if blocks is None:
        return x
    if len(blocks.order) <= MOST:
        return blocks.flat().reshape(blocks.shape)
    x.ncnn_blocks = blocks  # type: ignore[attr-defined]
    return x


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``x`` in ``shape``, one side of which may be -1."""
    known = math.prod(side for side in shape if side != -1)
    count = math.prod(int(side) for side in x.shape)
    shape = tuple(count // known if side == -1 else side for side in shape)
    blocks = _blocks(x)
    if blocks is None and (len(shape) <= MOST or x.ndim > MOST):
        return x.reshape(shape)
    base = x if blocks is None else blocks.flat()
    if len(shape) <= MOST:
        return base.reshape(shape)
    return _noted(x.reshape(shape), Blocks(base, shape, tuple(range(len(shape)))))


def _reshape(x: Tensor, *shape: Any, **options: Any) -> Tensor:
    given = options.get("shape", shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
    if isinstance(given, torch.dtype):
        return x.view(given)
    return reshape(x, [int(side) for side in given])


def _flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    shape = [int(side) for side in x.shape]
    start, end = start_dim % x.ndim, end_dim % x.ndim
    return reshape(x, [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]])


def _unsqueeze(x: Tensor, dim: int) -> Tensor:
    shape = [int(side) for side in x.shape]
    shape.insert(dim % (x.ndim + 1), 1)
    return reshape(x, shape) if len(shape) > MOST else x.unsqueeze(dim)


def _permute(x: Tensor, *dims: Any, **options: Any) -> Tensor:
    given = options.get("dims", dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)
    axes = [axis % x.ndim for axis in given]
    blocks = _blocks(x)
    return _noted(x.permute(axes), blocks and blocks.permuted(axes))


def _transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    if _blocks(x) is None:
        return x.transpose(dim0, dim1)
    axes = list(range(x.ndim))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return _permute(x, axes)


def _contiguous(x: Tensor, *args: Any, **options: Any) -> Tensor:
    return x if _blocks(x) is not None else x.contiguous(*args, **options)


def chosen(x: Tensor, axis: int, start: int, length: int | None) -> Tensor | None:
    """``length`` positions of an axis, or one without the axis for None; None where ``x`` has few axes."""
    blocks = _blocks(x)
    if blocks is None:
        return None
    cut = blocks.chosen(axis, start, length or 1)
    if length is None:
        return _noted(x.select(axis, start), cut.without(axis))
    return _noted(x.narrow(axis, start, length), cut)


def _select(x: Tensor, dim: int, index: int) -> Tensor:
    axis = dim % x.ndim
    found = chosen(x, axis, index % int(x.shape[axis]), None)
    return x.select(dim, index) if found is None else found


def item(x: Tensor, index: Any) -> Tensor | None:
    """``x[index]`` for whole numbers and slices without steps; None for others, and where ``x`` has few axes."""
    parts = index if isinstance(index, tuple) else (index,)
    if _blocks(x) is None or Ellipsis in parts or not all(isinstance(part, int | slice) for part in parts):
        return None
    axis = 0
    for part in parts:
        if isinstance(part, int):
            x = _select(x, axis, part)
            continue
        start, stop, step = part.indices(int(x.shape[axis]))
        if step != 1:
            return None
        if (start, stop) != (0, int(x.shape[axis])):
            found = chosen(x, axis, start, stop - start)
            x = x.narrow(axis, start, stop - start) if found is None else found
        axis += 1
    return x


def of_two(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function`` of two tensors, number by number, without the axes in which both have one position."""

    def compute(a: Any, b: Any, *args: Any, **options: Any) -> Any:
        result = function(a, b, *args, **options)
        if not isinstance(result, Tensor) or result.ndim <= MOST or args or options:
            return result
        shapes = [_shape(x, result.ndim) for x in (a, b)]
        wide = [axis for axis in range(result.ndim) if any(shape[axis] > 1 for shape in shapes)]
        if len(wide) > MOST:
            return result
        few = [_few(x, [shape[axis] for axis in wide]) for x, shape in zip((a, b), shapes, strict=True)]
        shape = tuple(int(side) for side in result.shape)
        return _noted(result, Blocks(function(*few), shape, tuple(range(result.ndim))))

    return compute


def _shape(x: Any, rank: int) -> list[int]:
    sides = [int(side) for side in x.shape] if isinstance(x, Tensor) else []
    return [1] * (rank - len(sides)) + sides


def _few(x: Any, shape: Sequence[int]) -> Any:
    if not isinstance(x, Tensor) or x.ndim == 0:
        return x
    blocks = _blocks(x)
    return (x if blocks is None else blocks.flat()).reshape(tuple(shape))


PARTS: dict[Any, Any] = {
    Tensor.reshape: _reshape,
    Tensor.view: _reshape,
    torch.reshape: _reshape,
    Tensor.flatten: _flatten,
    torch.flatten: _flatten,
    Tensor.unsqueeze: _unsqueeze,
    torch.unsqueeze: _unsqueeze,
    Tensor.permute: _permute,
    torch.permute: _permute,
    Tensor.transpose: _transpose,
    torch.transpose: _transpose,
    Tensor.swapaxes: _transpose,
    Tensor.contiguous: _contiguous,
    Tensor.select: _select,
    torch.select: _select,
    Tensor.__add__: of_two(torch.add),
    Tensor.add: of_two(torch.add),
    torch.add: of_two(torch.add),
    Tensor.__mul__: of_two(torch.mul),
    Tensor.mul: of_two(torch.mul),
    torch.mul: of_two(torch.mul),
}
