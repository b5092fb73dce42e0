"""Sizes, windows and position tables: the shape arithmetic that mixers share."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn

Size = tuple[int, int]


def conv_out_size(module: nn.Module, size: Size) -> Size:
    """Map size after ``module``, a chain whose size changes come from its Conv2d layers, run in order."""
    h, w = size
    for conv in (m for m in module.modules() if isinstance(m, nn.Conv2d)):
        (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
        ph, pw = (int(p) for p in conv.padding)
        h, w = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    return h, w


def num_heads_for(dim: int, head_dim: int) -> int:
    """The divisor of ``dim`` nearest to ``dim / head_dim``: head counts that work for any width."""
    divisors = [n for n in range(1, dim + 1) if dim % n == 0]
    return min(divisors, key=lambda n: (abs(n - dim / head_dim), n))


def pad_to_windows(x: Tensor, window: Size) -> Tensor:
    """Zero-pad (B, C, H, W) at the bottom and right to whole windows."""
    pad_h, pad_w = -x.shape[-2] % window[0], -x.shape[-1] % window[1]
    return F.pad(x, (0, pad_w, 0, pad_h)) if pad_h or pad_w else x


@register_notrace_function
def pad_to_least(x: Tensor, least: Size) -> Tensor:
    """Zero-pad (B, C, H, W) at the bottom and right where it is smaller than ``least``."""
    pad_h, pad_w = max(0, least[0] - x.shape[-2]), max(0, least[1] - x.shape[-1])
    return F.pad(x, (0, pad_w, 0, pad_h)) if pad_h or pad_w else x


def to_windows(x: Tensor, window: Size) -> Tensor:
    """(B, C, H, W) -> (B * windows, C, h, w), windows in row order. H and W are multiples of the window.

    No intermediate tensor has more than five axes: batch and window rows are merged.
    """
    b, c, height, width = x.shape
    h, w = window
    rows, cols = height // h, width // w
    x = x.permute(0, 2, 3, 1).reshape(b * rows, h, cols, w, c)
    return x.permute(0, 2, 1, 3, 4).reshape(b * rows * cols, h, w, c).permute(0, 3, 1, 2)


def from_windows(x: Tensor, size: Size) -> Tensor:
    """(B * windows, C, h, w) -> (B, C, H, W): the inverse of `to_windows` for a map of ``size``."""
    n, c, h, w = x.shape
    rows, cols = size[0] // h, size[1] // w
    x = x.permute(0, 2, 3, 1).reshape(n // cols, cols, h, w, c)
    return x.permute(0, 2, 1, 3, 4).reshape(n // (rows * cols), *size, c).permute(0, 3, 1, 2)


def resize_table(table: Tensor, size: Size, mode: str = "bicubic") -> Tensor:
    """Resize of (..., h, w) position tables to ``size``; the same tensor where the size already fits.

    Args:
        mode: of `torch.nn.functional.interpolate`: 'bicubic' or 'bilinear'.
    """
    if tuple(table.shape[-2:]) == tuple(size):
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
