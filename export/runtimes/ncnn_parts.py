"""What the target for ncnn writes instead of functions that pnnx does not know, or that it or ncnn gets wrong.

All of it with numbers for sizes: tracing would make tensors of them, and a file for ncnn has fixed ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ExportError
from ..resizing import smoothed
from .ranks import Ranks

RANKS = Ranks(4)
_TINY = 1e-37  # of float32's normal numbers
_HUGE = 1e38  # times any difference of float32's normal numbers is more than one


def _sides(x: Tensor) -> torch.Size:
    """The shape in numbers: tracing makes tensors of them, and every size is known here."""
    return torch.Size(int(side) for side in x.shape)


def _size(x: Tensor, dim: int | None = None) -> torch.Size | int:
    return _sides(x) if dim is None else _sides(x)[dim]


def _baddbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = torch.bmm(a, b)
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product
    return (x if beta == 1 else x * beta) + product


def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a * b if value == 1 else a * b * value)


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """With a constant for the one of weight and bias that is absent: pnnx converts both or neither."""
    if (weight is None) != (bias is None):
        weight = _constant(1, shape) if weight is None else weight
        bias = _constant(0, shape) if bias is None else bias
    return F.layer_norm(x, shape, weight, bias, eps)


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """As `_layer_norm`."""
    if (weight is None) != (bias is None):
        weight = _constant(1, x.shape[1:2]) if weight is None else weight
        bias = _constant(0, x.shape[1:2]) if bias is None else bias
    return F.group_norm(x, groups, weight, bias, eps)


def _normalize(x: Tensor, p: float = 2, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    """Without ncnn's layer of that name, which pnnx also writes for an axis that is not the channels'."""
    if p != 2:
        return F.normalize(x, p, dim, eps)
    return x / (x * x).sum(dim, keepdim=True).sqrt().clamp(min=eps)


def _pow(x: Tensor, exponent: Any) -> Tensor:
    """By products for small whole numbers: ncnn's power is NaN for what is not positive."""
    if isinstance(exponent, int | float) and float(exponent).is_integer() and 1 <= abs(exponent) <= 4:
        power = math.prod([x] * (int(abs(exponent)) - 1), start=x)
        return power if exponent > 0 else 1 / power
    return x.clamp(min=_TINY) ** exponent


def _type_as(x: Tensor, other: Tensor) -> Tensor:
    """Without the operator, which pnnx takes for ``other``."""
    return x.to(other.dtype)


def _clamp_min(x: Tensor, min: float) -> Tensor:
    return x.clamp(min=min)


def _narrow(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, start + length),)]


def _getitem(x: Tensor, index: Any) -> Tensor:
    """Slices with steps as rows of blocks, rows by their numbers as a product with ones and zeros: ncnn has neither."""
    if isinstance(index, Tensor):
        return _rows_at(x, 0, index)
    if (found := RANKS.item(x, index)) is not None:
        return found
    parts = tuple(_listed(part) for part in (index if isinstance(index, tuple) else (index,)))
    if all(isinstance(part, slice) or part is Ellipsis for part in parts):
        return _stepped(x, _spread(parts, x.ndim))
    listed = [axis for axis, part in enumerate(parts) if isinstance(part, Tensor) and part.dtype != torch.bool]
    if len(listed) == 1 and all(part == slice(None) for axis, part in enumerate(parts) if axis not in listed):
        return _rows_at(x, listed[0], parts[listed[0]])
    return x[index]


def _listed(part: Any) -> Any:
    """A part of an index, a list of whole numbers as a constant."""
    if not isinstance(part, list) or not all(type(i) is int for i in part):
        return part
    return torch.from_numpy(np.array(part, np.float32))


def _spread(parts: tuple[Any, ...], rank: int) -> list[slice]:
    """A slice for every axis."""
    at = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    behind = parts[at + 1 :]
    return [*parts[:at], *[slice(None)] * (rank - at - len(behind)), *behind]


def _stepped(x: Tensor, parts: Sequence[slice]) -> Tensor:
    ranges = [range(side)[part] for side, part in zip(_sides(x), parts, strict=True)]
    x = x[tuple(slice(r.start, r.stop) if r.step == 1 else slice(None) for r in ranges)]
    for axis, wanted in enumerate(ranges):
        x = x if wanted.step == 1 else _every(x, axis, wanted)
    return x


def _every(x: Tensor, axis: int, wanted: range) -> Tensor:
    """The positions ``wanted`` of an axis: the axis behind it holds blocks of as many rows as the step has."""
    step, first = wanted.step, wanted.start % wanted.step
    begin, shape = wanted.start - first, [*_sides(x)]
    lack = begin + len(wanted) * step - shape[axis]
    x = _narrow(F.pad(x, (0, 0) * (x.ndim - 1 - axis) + (0, lack)) if lack > 0 else x, axis, begin, len(wanted) * step)
    behind = math.prod(shape[axis + 1 :])
    blocks = x.reshape(*shape[:axis], len(wanted), step * behind)
    chosen = _narrow(blocks, axis + 1, first * behind, behind)
    return chosen.reshape(*shape[:axis], len(wanted), *shape[axis + 1 :])


def _rows_at(x: Tensor, axis: int, index: Tensor) -> Tensor:
    """Positions of an axis by their numbers: a product with a matrix of ones and zeros, which is exact."""
    shape, wanted = _sides(x), _sides(index)
    before, count, behind = shape[:axis], shape[axis], shape[axis + 1 :]
    chosen = _equal(index.reshape(-1, 1), _numbers(count).reshape(1, -1))  # (M, count)
    rows = RANKS.reshape(x, (math.prod(before), count, math.prod(behind)))
    if axis:
        rows = rows.permute(1, 0, 2)
    out = chosen @ rows.reshape(count, -1)
    if axis:
        out = out.reshape(-1, math.prod(before), math.prod(behind)).permute(1, 0, 2)
    return RANKS.reshape(out, (*before, *wanted, *behind))


def _topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """The ``k`` greatest of the last axis, best first, and their numbers, as float32.

    ncnn cannot sort. How many are greater, or equal and before it, is the place of a value: each is compared with each.
    Where two differ, their difference times 1e38 is above one or below minus one, and is cut to a one or a zero.
    """
    if dim not in (-1, x.ndim - 1) or not largest:
        raise ExportError("only the greatest of the last axis are rewritten for ncnn: let topk take those.")
    count, ahead = _sides(x)[-1], x.unsqueeze(-2) - x.unsqueeze(-1)  # (..., i, j): how far j is ahead of i
    greater, less = _positive(ahead), _positive(-ahead)
    before = torch.from_numpy(np.tri(count, k=-1, dtype=np.float32))
    place = (greater + (1 - greater - less) * before).sum(-1)
    chosen = _equal(place.unsqueeze(-2), _numbers(k).reshape(-1, 1))  # (..., k, count)
    return torch.return_types.topk(((chosen * x.unsqueeze(-2)).sum(-1), (chosen * _numbers(count)).sum(-1)))


def _positive(x: Tensor) -> Tensor:
    """One where ``x`` is above zero, else zero."""
    return (x * _HUGE).clamp(0, 1)


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """One where two whole numbers are equal, else zero."""
    return (1 - (a - b).abs()).clamp(0, 1)


def _numbers(count: int) -> Tensor:
    return torch.from_numpy(np.arange(count, dtype=np.float32))


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As products of four axes where there are more: pnnx would take the first one of those for the batch."""
    if q.ndim <= RANKS.most or attn_mask is not None or is_causal or enable_gqa:
        options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, **options)
    lead, width = _sides(q)[:-2], _sides(q)[-1]
    few = [RANKS.reshape(x, (-1, *_sides(x)[-3:])) for x in (q, k, v)]
    logits = few[0] @ few[1].transpose(-2, -1) * (width**-0.5 if scale is None else scale)
    out = logits.softmax(dim=-1) @ few[2]
    return RANKS.reshape(out, (*lead, *_sides(out)[-2:]))


def _repeat_interleave(x: Tensor, repeats: Any, dim: int | None = None, **options: Any) -> Tensor:
    """As a repetition behind the axis, which pnnx knows."""
    if dim is None or not isinstance(repeats, int):
        return torch.repeat_interleave(x, repeats, dim, **options)
    shape = [*_sides(x)]
    rows = x.reshape(math.prod(shape[: dim % x.ndim + 1]), 1, -1).repeat(1, repeats, 1)
    shape[dim] *= repeats
    return rows.reshape(shape)


def _unbind(x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    axis, shape = dim % x.ndim, _sides(x)
    if (few := RANKS.unbound(x, dim)) is not None:
        return few
    rest, count = (*shape[:axis], *shape[axis + 1 :]), shape[axis]
    if axis == 0:  # which pnnx takes for the batch
        x, axis = x.reshape(1, count, -1), 1
    return tuple(_narrow(x, axis, i, 1).reshape(rest) for i in range(count))


def _chunk(x: Tensor, chunks: int, dim: int = 0) -> Sequence[Tensor]:
    """By slices where the parts are not alike: pnnx says only how many there are, and ncnn makes other ones of them."""
    side = _sides(x)[dim]
    if side % chunks == 0:
        return x.chunk(chunks, dim)
    step = -(-side // chunks)
    return tuple(_narrow(x, dim, start, min(step, side - start)) for start in range(0, side, step))


def _constant(value: float, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.full(tuple(shape), value, np.float32))  # by numpy: what torch fills is traced


PARTS: dict[Any, Any] = {
    **RANKS.parts(),
    **dict.fromkeys((torch.var, Tensor.var), RANKS.variance),
    **dict.fromkeys((torch.std, Tensor.std), RANKS.deviation),
    F.scaled_dot_product_attention: _attention,
    torch.repeat_interleave: _repeat_interleave,
    Tensor.repeat_interleave: _repeat_interleave,
    Tensor.shape.__get__: _sides,  # type: ignore[attr-defined]
    Tensor.size: _size,
    Tensor.__getitem__: _getitem,
    torch.topk: _topk,
    Tensor.topk: _topk,
    torch.unbind: _unbind,
    Tensor.unbind: _unbind,
    torch.chunk: _chunk,
    Tensor.chunk: _chunk,
    torch.baddbmm: _baddbmm,
    Tensor.baddbmm: _baddbmm,
    torch.pow: _pow,
    Tensor.pow: _pow,
    Tensor.__pow__: _pow,
    torch.addcmul: _addcmul,
    Tensor.addcmul: _addcmul,
    Tensor.type_as: _type_as,
    torch.clamp_min: _clamp_min,
    Tensor.clamp_min: _clamp_min,
    torch.narrow: _narrow,
    Tensor.narrow: _narrow,
    F.interpolate: smoothed,
    F.normalize: _normalize,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
}
