"""Tensors of many axes as others of few, for runtimes that have no more: windows, putting them together, and heads.

Code that cuts into windows reshapes to six axes, moves some, and joins them again. What such a tensor holds is known
from the tensor that was reshaped, its `Blocks`; moves are noted, and once axes are joined or one is chosen, the same is
written with as few axes as it takes. The tensors of many axes are made too, but nothing reads them: tracing leaves them
out. Where something else does read one, it stays, and the target refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rank_blocks import Blocks, blocks_of, in_few, merged, note, shape_of

_SINGLE: tuple[Callable[..., Tensor], ...] = (torch.sqrt, torch.rsqrt, torch.sigmoid)
_ALONG: tuple[Callable[..., Tensor], ...] = (torch.amax, torch.amin, torch.mean, torch.sum)


class Ranks:
    """Functions of tensors as torch has them, with the same arguments, that have no more than ``most`` axes.

    Args:
        most: axes that a runtime has, four or more.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """``x`` in ``shape``, one side of which may be -1."""
        wanted = [int(side) for side in shape]  # in a trace they may be tensors
        known = math.prod(side for side in wanted if side != -1)
        count = math.prod(int(side) for side in x.shape)
        shape = tuple(count // known if side == -1 else side for side in wanted)
        blocks = blocks_of(x)
        if blocks is None and (len(shape) <= self.most or x.ndim > self.most):
            return x.reshape(shape)
        base = x if blocks is None else blocks.flat()
        if len(shape) <= self.most:
            return base.reshape(shape)
        return self._noted(x.reshape(shape), Blocks(base, shape, tuple(range(len(shape)))))

    def view(self, x: Tensor, *shape: Any, **options: Any) -> Tensor:
        given = options.get("shape", shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        if isinstance(given, torch.dtype):
            return x.view(given)
        return self.reshape(x, [int(side) for side in given])

    def flatten(self, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        shape = [int(side) for side in x.shape]
        start, end = start_dim % x.ndim, end_dim % x.ndim
        return self.reshape(x, [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]])

    def unflatten(self, x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
        shape = [int(side) for side in x.shape]
        known = math.prod(side for side in sizes if side != -1)
        parts = (shape[dim] // known if side == -1 else side for side in sizes)
        return self.reshape(x, [*shape[: dim % x.ndim], *parts, *shape[dim % x.ndim + 1 :]])

    def unsqueeze(self, x: Tensor, dim: int) -> Tensor:
        shape = [int(side) for side in x.shape]
        shape.insert(dim % (x.ndim + 1), 1)
        return self.reshape(x, shape) if len(shape) > self.most else x.unsqueeze(dim)

    def permute(self, x: Tensor, *dims: Any, **options: Any) -> Tensor:
        given = options.get("dims", dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)
        axes = [axis % x.ndim for axis in given]
        blocks = blocks_of(x)
        return self._noted(x.permute(axes), blocks and blocks.permuted(axes))

    def transpose(self, x: Tensor, dim0: int, dim1: int) -> Tensor:
        if blocks_of(x) is None:
            return x.transpose(dim0, dim1)
        axes = list(range(x.ndim))
        axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
        return self.permute(x, axes)

    def turned(self, x: Tensor) -> Tensor:
        """``x.mT``"""
        return self.transpose(x, -2, -1)

    def contiguous(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return x if blocks_of(x) is not None else x.contiguous(*args, **options)

    def clone(self, x: Tensor, **options: Any) -> Tensor:
        return x if blocks_of(x) is not None else x.clone(**options)

    def select(self, x: Tensor, dim: int, index: int) -> Tensor:
        found = self._chosen(x, dim % x.ndim, index % int(x.shape[dim]), None)
        return x.select(dim, index) if found is None else found

    def item(self, x: Tensor, index: Any) -> Tensor | None:
        """``x[index]`` for whole numbers and slices without steps; None for others, and where ``x`` has few axes."""
        parts = index if isinstance(index, tuple) else (index,)
        if blocks_of(x) is None or Ellipsis in parts or not all(isinstance(part, int | slice) for part in parts):
            return None
        axis = 0
        for part in parts:
            if isinstance(part, int):
                x = self.select(x, axis, part)
                continue
            start, stop, step = part.indices(int(x.shape[axis]))
            if step != 1:
                return None
            if (start, stop) != (0, int(x.shape[axis])):
                x = self._cut(x, axis, start, stop - start)
            axis += 1
        return x

    def unfold(self, x: Tensor, dimension: int, size: int, step: int) -> Tensor:
        """`Tensor.unfold` by slices, also where the result has few axes."""
        shape = tuple(int(side) for side in x.shape)
        blocks = blocks_of(x) or Blocks(x, shape, tuple(range(x.ndim)))
        return self._noted(x.unfold(dimension, size, step), blocks.windows(dimension % x.ndim, size, step))

    def unbind(self, x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
        return self.unbound(x, dim) or x.unbind(dim)

    def slice(self, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
        """As the operator ``aten.slice``."""
        index = (slice(None),) * (dim % x.ndim) + (slice(start, end, step),)
        found = self.item(x, index)
        return x[index] if found is None else found

    def unbound(self, x: Tensor, dim: int = 0) -> tuple[Tensor, ...] | None:
        """`torch.unbind`; None where ``x`` has few axes."""
        if blocks_of(x) is None:
            return None
        return tuple(self.select(x, dim, i) for i in range(int(x.shape[dim])))

    def split(self, x: Tensor, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
        """`torch.split`"""
        axis, side = dim % x.ndim, int(x.shape[dim])
        if blocks_of(x) is None:
            return torch.split(x, split_size, dim)  # type: ignore[arg-type]
        sizes = (
            [min(split_size, side - at) for at in range(0, side, split_size)]
            if isinstance(split_size, int)
            else split_size
        )
        starts = accumulate(sizes, initial=0)
        return tuple(self._cut(x, axis, start, size) for start, size in zip(starts, sizes, strict=False))

    def cat(self, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
        """`torch.cat`"""
        result = torch.cat(list(tensors), dim)
        if all(blocks_of(x) is None for x in tensors):
            return result
        shape = tuple(int(side) for side in result.shape)
        before = math.prod(shape[: dim % result.ndim])
        rows = torch.cat([in_few(x, (before, -1)) for x in tensors], dim=1)
        return self._noted(result, Blocks(rows, shape, tuple(range(len(shape)))))

    def of_two(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``function`` of two tensors, number by number, with axes joined in which each has all positions or one."""

        def compute(a: Any, b: Any, *args: Any, **options: Any) -> Any:
            result = function(a, b, *args, **options)
            if not isinstance(result, Tensor) or result.ndim <= self.most or args or options:
                return result
            shapes = merged([shape_of(x, result.ndim) for x in (a, b)])
            if len(shapes[0]) > self.most:
                return result
            few = [in_few(x, shape) for x, shape in zip((a, b), shapes, strict=True)]
            shape = tuple(int(side) for side in result.shape)
            return self._noted(result, Blocks(function(*few), shape, tuple(range(result.ndim))))

        return compute

    def of_one(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``function`` of one tensor, number by number."""

        def compute(x: Tensor, *args: Any, **options: Any) -> Tensor:
            result, blocks = function(x, *args, **options), blocks_of(x)
            if blocks is None:
                return result
            flat = function(blocks.flat(), *args, **options)
            return self._noted(result, Blocks(flat, tuple(blocks.shape), tuple(range(result.ndim))))

        return compute

    def in_place(self, function: Callable[..., Tensor], method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``method`` that writes what ``function`` of two tensors gives into the first; what is noted of it changes."""
        new = self.of_two(function)

        def compute(x: Tensor, *args: Any, **options: Any) -> Any:
            if blocks_of(x) is None:
                return method(x, *args, **options)
            blocks = blocks_of(new(x, *args, **options))
            result = method(x, *args, **options)
            note(result, blocks)
            note(x, blocks)
            return result

        return compute

    def expand(self, x: Tensor, *sizes: Any, **options: Any) -> Tensor:
        given = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        result, blocks = x.expand(*given), blocks_of(x)
        if blocks is None and result.ndim <= self.most:
            return result
        rows, shape = (x if blocks is None else blocks.flat()), shape_of(x, result.ndim)
        for axis, wanted in enumerate(given):
            if wanted not in (-1, shape[axis]):
                rows = rows.reshape(math.prod(shape[:axis]), 1, -1).repeat(1, int(wanted), 1)
                shape[axis] = int(wanted)
        return self._noted(result, Blocks(rows, tuple(shape), tuple(range(len(shape)))))

    def stack(self, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
        """What is stacked along the first axis, which a runtime may take for the batch, is noted behind one more."""
        result = torch.stack(list(tensors), dim)
        if dim % result.ndim == 0:
            base = torch.cat([x.reshape(1, 1, -1) for x in tensors], dim=1)
            shape = tuple(int(side) for side in result.shape)
            note(result, Blocks(base, shape, tuple(range(len(shape)))))
        return result

    def along(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``function`` that makes one number of all along axes, and the same when it takes them one by one."""

        def compute(x: Tensor, *args: Any, **options: Any) -> Any:
            result, blocks = function(x, *args, **options), blocks_of(x)
            given = dict(zip(("dim", "keepdim"), args, strict=False)) | options
            if blocks is None or given.get("dtype") is not None:
                return result
            dims = given.get("dim")
            dims = [dims] if isinstance(dims, int) else list(dims or range(x.ndim))
            rows, shape = blocks.flat(), list(blocks.shape)
            for axis in {dim % x.ndim for dim in dims}:
                rows = function(rows.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])), dim=1)
                shape[axis] = 1
            left = tuple(int(side) for side in result.shape)
            return self._noted(result, Blocks(rows, left, tuple(range(len(left)))))

        return compute

    def variance(self, x: Tensor, dim: Any = None, *args: Any, **options: Any) -> Tensor:
        """`torch.var` as a mean of squares."""
        if isinstance(dim, bool):  # var(x, unbiased)
            dim, args = None, (dim,)
        given = dict(zip(("unbiased", "keepdim"), args, strict=False)) | options
        dims = [dim] if isinstance(dim, int) else list(range(x.ndim) if dim is None else dim)
        mean, count = self.along(torch.mean), math.prod(int(x.shape[axis]) for axis in dims)
        centred = self.of_two(torch.sub)(x, mean(x, dims, keepdim=True))
        least = mean(self.of_two(torch.mul)(centred, centred), dims, keepdim=given.get("keepdim", False))
        correction = given.get("correction", int(given.get("unbiased", True)))
        return self.of_two(torch.mul)(least, count / (count - correction)) if correction else least

    def deviation(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """`torch.std`, as `variance`."""
        return self.of_one(torch.sqrt)(self.variance(x, *args, **options))

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result, blocks = F.linear(x, weight, bias), blocks_of(x)
        if blocks is None:
            return result
        shape = (*blocks.shape[:-1], int(weight.shape[0]))
        rows = F.linear(blocks.flat().reshape(-1, blocks.shape[-1]), weight, bias)
        return self._noted(result, Blocks(rows, shape, tuple(range(len(shape)))))

    def _cut(self, x: Tensor, axis: int, start: int, length: int) -> Tensor:
        found = self._chosen(x, axis, start, length)
        return x.narrow(axis, start, length) if found is None else found

    def _chosen(self, x: Tensor, axis: int, start: int, length: int | None) -> Tensor | None:
        """``length`` positions of an axis, or one without the axis for None; None where ``x`` has few axes."""
        blocks = blocks_of(x)
        if blocks is None:
            return None
        cut = blocks.chosen(axis, start, length or 1)
        if length is None:
            return self._noted(x.select(axis, start), cut.without(axis))
        return self._noted(x.narrow(axis, start, length), cut)

    def _noted(self, x: Tensor, blocks: Blocks | None) -> Tensor:
        """``x``, which holds ``blocks``; the same in few axes where it has no more."""
        if blocks is None:
            return x
        if len(blocks.order) <= self.most:
            return blocks.flat().reshape(blocks.shape)
        note(x, blocks)
        return x

    def operators(self) -> dict[Any, Callable[..., Any]]:
        """What stands for operators of ATen, in a captured graph."""
        aten = torch.ops.aten
        return {
            aten.view.default: self.reshape,
            aten.reshape.default: self.reshape,
            aten.flatten.using_ints: self.flatten,
            aten.unflatten.int: self.unflatten,
            aten.unsqueeze.default: self.unsqueeze,
            aten.permute.default: self.permute,
            aten.transpose.int: self.transpose,
            aten.mT.default: self.turned,
            aten.contiguous.default: self.contiguous,
            aten.clone.default: self.clone,
            aten.select.int: self.select,
            aten.slice.Tensor: self.slice,
            aten.unbind.int: self.unbind,
            aten.split.Tensor: self.split,
            aten.split_with_sizes.default: self.split,
            aten.cat.default: self.cat,
            aten.unfold.default: self.unfold,
            aten.add.Tensor: self.of_two(torch.add),
            aten.mul.Tensor: self.of_two(torch.mul),
            aten.add_.Tensor: self.in_place(torch.add, Tensor.add_),
            aten.mul_.Tensor: self.in_place(torch.mul, Tensor.mul_),
            aten.linear.default: self.linear,
            aten.expand.default: self.expand,
            aten.amax.default: self.along(torch.amax),
            aten.mean.dim: self.along(torch.mean),
            aten.sum.dim_IntList: self.along(torch.sum),
        }

    def parts(self) -> dict[Any, Callable[..., Any]]:
        """What stands for functions of torch."""
        add, mul = self.of_two(torch.add), self.of_two(torch.mul)
        single = {getattr(of, f.__name__): self.of_one(f) for f in _SINGLE for of in (torch, Tensor)}
        along = {getattr(of, f.__name__): self.along(f) for f in _ALONG for of in (torch, Tensor)}
        return {
            **along,
            **single,
            **dict.fromkeys((Tensor.reshape, Tensor.view, torch.reshape), self.view),
            **dict.fromkeys((Tensor.flatten, torch.flatten), self.flatten),
            **dict.fromkeys((Tensor.unflatten, torch.unflatten), self.unflatten),
            **dict.fromkeys((Tensor.unsqueeze, torch.unsqueeze), self.unsqueeze),
            **dict.fromkeys((Tensor.permute, torch.permute), self.permute),
            **dict.fromkeys((Tensor.transpose, torch.transpose, Tensor.swapaxes), self.transpose),
            Tensor.mT.__get__: self.turned,  # type: ignore[attr-defined]
            **dict.fromkeys((Tensor.select, torch.select), self.select),
            **dict.fromkeys((Tensor.__add__, Tensor.add, torch.add), add),
            **dict.fromkeys((Tensor.__mul__, Tensor.mul, torch.mul), mul),
            **dict.fromkeys((Tensor.__iadd__, Tensor.add_), self.in_place(torch.add, Tensor.add_)),
            **dict.fromkeys((Tensor.__imul__, Tensor.mul_), self.in_place(torch.mul, Tensor.mul_)),
            Tensor.unfold: self.unfold,
            **dict.fromkeys((Tensor.split, torch.split), self.split),
            **dict.fromkeys((torch.cat, torch.concat), self.cat),
            Tensor.expand: self.expand,
            torch.stack: self.stack,
            Tensor.contiguous: self.contiguous,
            F.linear: self.linear,
        }
