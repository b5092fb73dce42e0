"""Windows of a map: padding, partition, and the pieces that a cyclic shift makes of each axis.

A map axis of n positions in windows of w is padded at its end to whole windows and rolled by ``shift``, so that window
r holds the positions r * w + shift onwards, and the last window also the first ``shift`` ones. Positions that the roll
brought together, and padding, must not see one another: `axis_codes` says who they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import exporting, known

Size = tuple[int, int]
Attend = Callable[[Tensor, Tensor, Tensor, float, Tensor | None], Tensor]  # (q, k, v, scale, mask) -> answers
SEPARATE = -100.0  # added to the logits of positions that a shift brought together, as arXiv:2103.14030 has it
PADDED = -1e4  # added to the logits of padding; its exponential is zero in every floating type, and fp16 can hold it


def num_windows(length: int, side: int) -> int:
    """How many windows of ``side`` cover an axis; one where the side is a symbol of a graph: then it is the axis."""
    return (length + side - 1) // side if known(side) else 1


def pad_to_windows(x: Tensor, window: Size) -> Tensor:
    """Zero-pad (B, C, H, W) at the bottom and right to whole windows.

    A side that a graph leaves open is padded always, by nothing where it divides.
    """
    pad_h, pad_w = (num_windows(n, side) * side - n for n, side in zip(x.shape[-2:], window, strict=True))
    return F.pad(x, (0, pad_w, 0, pad_h)) if not known(pad_h, pad_w) or pad_h or pad_w else x


def to_windows(x: Tensor, window: Size) -> Tensor:
    """(B, C, H, W) -> (B * windows, C, h, w), windows in row order. H and W are multiples of the window.

    No intermediate tensor has more than five axes: batch and window rows are merged. In exported graphs it is four.
    """
    return to_tokens(x, window).unflatten(1, window).permute(0, 3, 1, 2)


def to_tokens(x: Tensor, window: Size) -> Tensor:
    """(B, C, H, W) -> (B * windows, h * w, C): `to_windows` with the positions of a window in row order."""
    b, c, height, width = x.shape
    h, w = window
    rows, cols = height // h, width // w
    x = _exchanged(x.permute(0, 2, 3, 1), (b * rows, h, cols, w, c))
    return x.reshape(b * rows * cols, h * w, c)


def _exchanged(x: Tensor, shape: tuple[int, int, int, int, int]) -> Tensor:
    """``x`` in ``shape`` with the second and third axis exchanged, to be reshaped.

    Under export the last two axes are merged: ncnn has no more than four. Elsewhere that could cost a copy more.
    """
    *lead, w, c = shape
    return x.reshape(*lead, w * c).transpose(1, 2) if exporting() else x.reshape(shape).transpose(1, 2)


def from_windows(x: Tensor, size: Size) -> Tensor:
    """(B * windows, C, h, w) -> (B, C, H, W): the inverse of `to_windows` for a map of ``size``."""
    n, c, h, w = x.shape
    rows, cols = size[0] // h, size[1] // w
    x = _exchanged(x.permute(0, 2, 3, 1), (n // cols, cols, h, w, c))
    return x.reshape(n // (rows * cols), *size, c).permute(0, 3, 1, 2)


def to_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B * windows, N, heads * D) -> (B * windows, heads, N, D), without a copy."""
    return tokens.unflatten(2, (num_heads, -1)).transpose(1, 2)


def from_heads(out: Tensor, window: Size, size: Size) -> Tensor:
    """(B * windows, heads, N, D) -> (B, heads * D, H, W) for a map of ``size``, which is whole windows."""
    tokens = out.transpose(1, 2).flatten(2)  # (B * windows, N, C)
    return from_windows(tokens.transpose(1, 2).unflatten(2, window), size)


def cyclic_shift(x: Tensor, shift: Size) -> Tensor:
    """Roll (..., H, W) up and left by ``shift``; one axis at a time, as slices that every runtime has.

    A shift that is a symbol of a graph is between zero and the length of its axis.
    """
    for axis, by in zip((-2, -1), shift, strict=True):
        length = x.shape[axis]
        by = by % length if known(by, length) else by
        if not known(by) or by:
            x = torch.cat((x.narrow(axis, by, length - by), x.narrow(axis, 0, by)), dim=axis)
    return x


def shift_back(x: Tensor, shift: Size) -> Tensor:
    """The inverse of `cyclic_shift`."""
    down, right = (n - by if not known(by) or by else 0 for n, by in zip(x.shape[-2:], shift, strict=True))
    return cyclic_shift(x, (down, right))


def positions(size: Size, device: torch.device | None = None, margin: int = 0) -> tuple[Tensor, Tensor]:
    """Row and column (N,) int64 of every position of a grid and ``margin`` around it, in row order.

    Without `repeat_interleave`, which the ONNX exporter gets wrong where a side is open.
    """
    rows, cols = (torch.arange(-margin, side + margin, device=device) for side in size)
    shape = (size[0] + 2 * margin, size[1] + 2 * margin)
    return rows[:, None].expand(shape).flatten(), cols.expand(shape).flatten()


def axis_codes(length: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """(windows, window) codes of the rolled positions of one axis: 0, or 1 where the roll wrapped, or 2 for padding."""
    count = num_windows(length, window)
    rolled = torch.arange(count * window, device=device) + shift
    wrapped = rolled >= count * window
    padded = (rolled - wrapped * count * window) >= length
    return torch.where(padded, 2, wrapped.to(torch.int64)).reshape(count, window)


def penalties(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the logits along one axis, for codes (..., w): (..., query, key)."""
    query, key = codes[..., :, None], codes[..., None, :]
    separate = (query != key).to(dtype) * SEPARATE
    return separate + (key == 2).to(dtype) * (PADDED - SEPARATE)


def runs(length: int, window: int, shift: int) -> list[tuple[int, int, bool]]:
    """The windows of one axis as (first, end, whole) runs with equal codes; ``whole`` has nothing to mask."""
    count = -(-length // window)
    total = count * window

    def code(position: int) -> int:
        rolled = position + shift
        return 2 if rolled % total >= length else int(rolled >= total)

    found: list[tuple[int, int, tuple[int, ...]]] = []
    for index in range(count):
        codes = tuple(code(index * window + i) for i in range(window))
        if found and found[-1][2] == codes:
            found[-1] = (found[-1][0], index + 1, codes)
        else:
            found.append((index, index + 1, codes))
    return [(first, end, not any(codes)) for first, end, codes in found]


def either(rows: Tensor | None, cols: Tensor | None) -> Tensor | None:
    """What is separate along one axis is separate, and not more so along both: with logits beyond 100 it matters."""
    return torch.minimum(rows, cols) if rows is not None and cols is not None else (cols if rows is None else rows)


def with_bias(mask: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    both = mask + bias if mask is not None and bias is not None else (bias if mask is None else mask)
    return None if both is None else both.to(dtype)


def shared_mask_sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """`scaled_dot_product_attention` of windows that share one mask (N, M) or (heads, N, M)."""
    mask = None if mask is None else mask.expand(*q.shape[:3], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
