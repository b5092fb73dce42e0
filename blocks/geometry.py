"""Sizes, windows and position tables: the shape arithmetic that mixers share."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn

from ..kernels.dispatch import known
from ..kernels.windows import Size, from_windows, pad_to_windows, to_windows

__all__ = [
    "Reshaping", "Size", "as_table", "conv_out_size", "from_windows", "num_heads_for", "pad_to_least", "pad_to_windows",
    "resize_table", "to_windows", "total_stride", "unflatten_table",
]  # fmt: skip


class Reshaping(nn.Module):
    """A module without weights that changes the size of a map, or the channels with it.

    ``out_size`` gives the size that it makes of a map's, and ``stride`` by how much it reduces a side.
    """

    stride = 1

    def out_size(self, size: Size) -> Size:
        raise NotImplementedError


def conv_out_size(module: nn.Module, size: Size) -> Size:
    """Map size after ``module``, a chain whose size changes come from its Conv2d and `Reshaping` layers, in order."""
    h, w = size
    for layer in _resizing(module):
        if isinstance(layer, Reshaping):
            h, w = layer.out_size((h, w))
        if isinstance(layer, nn.Conv2d):
            (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
            ph, pw = (int(p) for p in layer.padding)
            h, w = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    return h, w


def total_stride(module: nn.Module) -> int:
    """Product of the strides in ``module``, a chain of Conv2d and `Reshaping` layers."""
    return math.prod(m.stride if isinstance(m, Reshaping) else m.stride[0] for m in _resizing(module))


def _resizing(module: nn.Module) -> Iterator[nn.Conv2d | Reshaping]:
    """Conv2d and `Reshaping` layers in order; of parallel branches, those of the one that ``main_branch`` names."""
    if isinstance(module, nn.Conv2d | Reshaping):
        yield module
    main: str | None = getattr(module, "main_branch", None)
    for child in module.children() if main is None else (getattr(module, main),):
        yield from _resizing(child)


def num_heads_for(dim: int, head_dim: float) -> int:
    """The divisor of ``dim`` nearest to ``dim / head_dim``: head counts that work for any width."""
    divisors = [n for n in range(1, dim + 1) if dim % n == 0]
    return min(divisors, key=lambda n: (abs(n - dim / head_dim), n))


def refuse_open(size: Size, why: str) -> None:
    """End an export that leaves sides of a map open, of which what follows would make a graph that is wrong or none.

    Args:
        size: (h, w) of the map.
        why: half a sentence.

    Raises:
        ValueError: a side is a symbol of torch.export's; torch.compile's are guarded, and do no harm.
    """
    if torch.compiler.is_exporting() and not known(*size):
        raise ValueError(f"{why}: heights and widths have to be fixed")


@register_notrace_function
def pad_to_least(x: Tensor, least: Size) -> Tensor:
    """Zero-pad (B, C, H, W) at the bottom and right where it is smaller than ``least``.

    A side that a graph leaves open is padded always, by nothing where it is large enough.
    """
    pad_h, pad_w = (_at_least_zero(side - n) for n, side in zip(x.shape[-2:], least, strict=True))
    return F.pad(x, (0, pad_w, 0, pad_h)) if not known(pad_h, pad_w) or pad_h or pad_w else x


def _at_least_zero(number: int) -> int:
    """``max(0, number)``, without a branch where it is a symbol of a graph."""
    return torch.sym_max(0, number) if isinstance(number, torch.SymInt) else max(0, number)


def resize_table(table: Tensor, size: Size, mode: str = "bicubic") -> Tensor:
    """Resize of (..., h, w) position tables to ``size``; the same tensor where the size already fits.

    A graph that leaves the size open always resizes, which changes nothing where it fits.

    Args:
        mode: of `torch.nn.functional.interpolate`: 'bicubic' or 'bilinear'.
    """
    if known(*size) and tuple(table.shape[-2:]) == tuple(size):
        return table
    flat = table.reshape(1, -1, *table.shape[-2:])
    resized = F.interpolate(flat, size=size, mode=mode, align_corners=False)
    return resized.reshape(*table.shape[:-2], *size)


def unflatten_table(tensor: Tensor, like: Tensor) -> Tensor:
    """A table whose grid was flattened, as official files have it, with the leading axes of ``like`` and its own grid.

    The grid is that of ``like`` when the count fits, else a square.

    Raises:
        ValueError: the count fits no grid with the leading axes of ``like``.
    """
    lead, grid = like.shape[:-2], like.shape[-2:]
    count, rest = divmod(tensor.numel(), lead.numel())
    side = int(count**0.5 + 0.5)
    if rest or (count != grid.numel() and side * side != count):
        raise ValueError(f"a table of shape {tuple(tensor.shape)} does not fit {tuple(like.shape)}")
    return tensor.reshape(*lead, *(grid if count == grid.numel() else (side, side)))


def as_table(tensor: Tensor, like: Tensor, mode: str = "bicubic") -> Tensor:
    """``tensor`` of a checkpoint in the shape of the table ``like``, resized where the checkpoint's grid differs.

    Raises:
        ValueError: the leading axes differ, and no flattened grid fits either (`unflatten_table`).
    """
    if tensor.ndim != like.ndim or tensor.shape[:-2] != like.shape[:-2]:
        tensor = unflatten_table(tensor, like)
    return resize_table(tensor, (like.shape[-2], like.shape[-1]), mode)
