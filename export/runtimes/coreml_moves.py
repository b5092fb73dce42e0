"""MIL operators that reshape, move, pick, fill and resize; see `coreml_ops`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .coreml_arguments import Arguments, Operator, Result, axes_of, last_first

# shapes


def _reshape(a: Arguments) -> Tensor:
    x, shape = a["x"], a.plain("shape")
    return x.reshape([x.shape[i] if side == 0 else side for i, side in enumerate(shape)])


def _expand_dims(a: Arguments) -> Tensor:
    x, axes = a["x"], a.plain("axes")
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: Arguments) -> Tensor:
    axes = a.plain("axes")
    return a["x"].squeeze() if axes is None else a["x"].squeeze(tuple(axes))


def _slice_by_index(a: Arguments) -> Tensor:
    x = a["x"]
    none = [False] * x.ndim
    begins, ends, strides = a.plain("begin"), a.plain("end"), a.plain("stride", [1] * x.ndim)
    masks = [a.plain(f"{name}_mask", none) for name in ("begin", "end", "squeeze")]
    index: list[int | slice] = []
    for begin, end, stride, from_first, to_last, single in zip(begins, ends, strides, *masks, strict=True):
        if stride < 0:
            raise NotImplementedError(f"stride {stride}")
        index.append(begin if single else slice(None if from_first else begin, None if to_last else end, stride))
    return x[tuple(index)]


def _slice_by_size(a: Arguments) -> Tensor:
    x = a["x"]
    for axis, (begin, size) in enumerate(zip(a.plain("begin"), a.plain("size"), strict=True)):
        begin %= x.shape[axis]
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def _split(a: Arguments) -> Sequence[Tensor]:
    x, axis = a["x"], a.plain("axis")
    sizes = a.plain("split_sizes")
    return x.split(sizes if sizes is not None else x.shape[axis] // a.plain("num_splits"), axis)


def _concat(a: Arguments) -> Tensor:
    values, axis = a.all("values"), a.plain("axis")
    if not a.plain("interleave", False):
        return torch.cat(values, axis)
    axis %= values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def _pad(a: Arguments) -> Tensor:
    x, pad, mode = a["x"], a.plain("pad"), a.plain("mode", "constant")
    if mode == "constant":
        return F.pad(x, last_first(pad), value=a.plain("constant_val", 0))
    if mode not in ("reflect", "replicate"):
        raise NotImplementedError(f"mode {mode}")
    for i in range(0, len(pad), 2):
        axis, side = x.ndim - len(pad) // 2 + i // 2, x.shape[x.ndim - len(pad) // 2 + i // 2]
        at = torch.arange(-pad[i], side + pad[i + 1])
        if mode == "reflect":
            at = torch.where(at >= side, 2 * (side - 1) - at, at.abs())
        x = x.index_select(axis, at.clamp(0, side - 1))
    return x


def _gather(a: Arguments) -> Tensor:
    x, indices, batch = a["x"], a["indices"].long(), a.plain("batch_dims", 0)
    axis = a.plain("axis", 0) % x.ndim
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    if batch == 0:
        return x.index_select(axis, indices.reshape(-1)).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    if axis != batch:
        raise NotImplementedError(f"axis {axis} behind {batch} batch axes")
    rows = x.reshape(-1, *x.shape[batch:])
    at = indices.reshape(rows.shape[0], *indices.shape[batch:])
    return torch.stack([row[i] for row, i in zip(rows, at, strict=True)]).reshape(
        *x.shape[:batch], *indices.shape[batch:], *x.shape[axis + 1 :]
    )


def _gather_along_axis(a: Arguments) -> Tensor:
    axis, indices = a.plain("axis", 0), a["indices"].long()
    return a["x"].gather(axis, torch.where(indices < 0, indices + a["x"].shape[axis], indices))


def _gather_nd(a: Arguments) -> Tensor:
    if a.plain("batch_dims", 0):
        raise NotImplementedError("batch_dims")
    return a["x"][tuple(a["indices"].long().unbind(-1))]


_INDICES = {"int32": torch.int32, "uint16": torch.uint16, "int16": torch.int16}


def _topk(a: Arguments) -> Result:
    values, indices = a["x"].topk(a.plain("k"), a.plain("axis", -1), largest=not a.plain("ascending", False))
    kind = _INDICES[a.plain("output_indices_dtype", "int32")]
    return (values, indices.to(kind)) if a.plain("return_indices", True) else values


def _fill(a: Arguments) -> Tensor:
    return torch.full(a.plain("shape"), a.plain("value"), dtype=a["value"].dtype)


def _range(a: Arguments) -> Tensor:
    return torch.arange(a.plain("start"), a.plain("end"), a.plain("step"), dtype=a["start"].dtype)


# resizing


def _upsample_bilinear(a: Arguments) -> Tensor:
    corners = a.plain("align_corners", True)
    if a.plain("half_pixel_centers", not corners) == corners:
        raise NotImplementedError(f"align_corners and half_pixel_centers both {corners}")
    scales = [np.float32(a.plain(f"scale_factor_{name}", 1)) for name, _ in _sides(a["x"])]
    size = [int(np.floor(side * scale)) for side, scale in zip(a["x"].shape[-2:], scales, strict=True)]
    return F.interpolate(a["x"], size, mode="bilinear", align_corners=corners)


def _sides(x: Tensor) -> list[tuple[str, int]]:
    return [("height", x.shape[-2]), ("width", x.shape[-1])]


def _resize_bilinear(a: Arguments) -> Tensor:
    x, mode = a["x"], a.plain("sampling_mode", "DEFAULT")
    for axis, (name, side) in zip((-2, -1), _sides(x), strict=True):
        at = _points(mode, side, a.plain(f"target_size_{name}", 1)).clamp(0, side - 1)
        low = at.floor().long().clamp(max=max(side - 2, 0))
        part = (at - low).to(x.dtype).reshape(-1, *(1,) * (-1 - axis))
        high = (low + 1).clamp(max=side - 1)
        x = x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part
    return x


def _points(mode: str, side: int, out: int) -> Tensor:
    """Where ``out`` positions of one axis are read from, float64."""
    i = torch.arange(out, dtype=torch.float64)
    if mode == "UNALIGN_CORNERS":
        return (i + 0.5) * side / out - 0.5
    if mode == "DEFAULT":
        return i * side / out
    if mode not in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        raise NotImplementedError(f"sampling_mode {mode}")
    if out == 1:
        return i + ((side - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0)
    return i * (side - 1) / (out - 1)


def _upsample_nearest(a: Arguments) -> Tensor:
    x = a["x"]
    for axis, (name, _) in zip((-2, -1), _sides(x), strict=True):
        scale = a.plain(f"scale_factor_{name}", 1)
        if scale != int(scale):
            raise NotImplementedError(f"a scale of {scale}")
        x = x.repeat_interleave(int(scale), axis)
    return x


MOVES: dict[str, Operator] = {
    "reshape": _reshape,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "transpose": lambda a: a["x"].permute(a.plain("perm")),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "split": _split,
    "concat": _concat,
    "stack": lambda a: torch.stack(a.all("values"), a.plain("axis")),
    "pad": _pad,
    "tile": lambda a: a["x"].repeat(a.plain("reps")),
    "reverse": lambda a: a["x"].flip(axes_of(a)),
    "shape": lambda a: torch.tensor(a["x"].shape, dtype=torch.int32),
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "topk": _topk,
    "fill": _fill,
    "fill_like": lambda a: torch.full_like(a["ref_tensor"], a.plain("value"), dtype=a["value"].dtype),
    "range_1d": _range,
    "pixel_shuffle": lambda a: F.pixel_shuffle(a["x"], a.plain("upscale_factor")),
    "pixel_unshuffle": lambda a: F.pixel_unshuffle(a["x"], a.plain("downscale_factor")),
    "upsample_bilinear": _upsample_bilinear,
    "resize_bilinear": _resize_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest,
}
