"""Attention inside (shifted) windows of a map.

``out = softmax(q k^T * scale + bias) v`` over the positions of each window. The map is padded at the bottom and right
to whole windows, and rolled up and left by ``shift`` before and back after; positions that the roll brings together,
and padding, do not see one another.

Shapes: qkv (B, 3C, H, W), queries, keys and values in this order, each heads * D channels; bias (heads, N, N), query
times key, N = h * w positions of a window; result (B, C, H, W). H and W are any.
Time O(H W N C). Memory O(H W (C + heads N)) for the reference, which holds the logits and a mask for each window, and
O(H W C) for the fused candidate, which calls `scaled_dot_product_attention` on windows that mask alike: inner ones,
last row, last column, corner. A graph exported at a fixed size has the same few masks and no others.
Served by: MPS, the fused candidate; CUDA, the same where nothing is masked, else the reference, which takes half of the
time there (H200, 14 to 56 squared, batches of 32 and 64, with gradients and without); the CPU, the fused one where
nothing is masked or the map is not small, else the reference. FlexAttention has blocks of 128 queries, more than two
windows of 7 x 7 hold, and compiles for every bias: it is no candidate.
Source: Liu et al., arXiv:2103.14030.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from .attention import attention_reference
from .dispatch import Candidate, Op, known, wants_gradient
from .windows import (
    Attend,
    Size,
    axis_codes,
    cyclic_shift,
    either,
    from_heads,
    pad_to_windows,
    penalties,
    positions,
    runs,
    shared_mask_sdpa,
    shift_back,
    to_heads,
    to_tokens,
    with_bias,
)

FEW = 800_000  # elements of qkv; measured at 14 to 128 squared, 64 to 384 channels


def window_attention_reference(
    qkv: Tensor, num_heads: int, window: Size, scale: float, bias: Tensor | None = None, shift: Size = (0, 0)
) -> Tensor:
    """The equation, operator by operator. The scale is applied to q, the smaller operand."""
    height, width = qkv.shape[-2:]
    rolled = cyclic_shift(pad_to_windows(qkv, window), shift)
    q, k, v = _heads(rolled, window, num_heads)  # (B * windows, heads, N, D)
    logits = (q * scale) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    if not known(height, width) or any(shift) or rolled.shape != qkv.shape:  # what is open may need a mask
        logits = _masked(logits, (height, width), window, shift)
    return _whole(logits.softmax(dim=-1) @ v, rolled, window, shift, (height, width))


def _heads(qkv: Tensor, window: Size, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B * windows, heads, N, D) of a map (B, 3 * heads * D, H, W) of whole windows."""
    q, k, v = to_tokens(qkv, window).chunk(3, dim=2)
    return to_heads(q, num_heads), to_heads(k, num_heads), to_heads(v, num_heads)


def _masked(logits: Tensor, size: Size, window: Size, shift: Size) -> Tensor:
    """``logits`` (B * rows * columns, heads, N, N) of a map of ``size`` with the penalties of each of its axes."""
    rows, cols = (
        penalties(axis_codes(n, side, by, logits.device)[:, at], logits.dtype)  # (count, N, N)
        for n, side, by, at in zip(size, window, shift, positions(window, logits.device), strict=True)
    )
    masks = torch.minimum(rows[:, None], cols[None]).flatten(0, 1)  # (rows * columns, N, N)
    images = logits.unflatten(0, (-1, masks.shape[0]))
    return (images + masks[:, None]).flatten(0, 1)


def _whole(out: Tensor, rolled: Tensor, window: Size, shift: Size, size: Size) -> Tensor:
    """Windows of a rolled map put back in their places and cut to ``size``."""
    out = shift_back(from_heads(out, window, (rolled.shape[-2], rolled.shape[-1])), shift)
    return out[:, :, : size[0], : size[1]]


def _exported(
    qkv: Tensor, num_heads: int, window: Size, scale: float, bias: Tensor | None = None, shift: Size = (0, 0)
) -> Tensor:
    """Plain operators with the few masks that a known size needs."""
    if not known(*qkv.shape[2:]):
        return window_attention_reference(qkv, num_heads, window, scale, bias, shift)
    return _banded(qkv, num_heads, window, scale, bias, shift, attention_reference)


def _fused(
    qkv: Tensor, num_heads: int, window: Size, scale: float, bias: Tensor | None = None, shift: Size = (0, 0)
) -> Tensor:
    return _banded(qkv, num_heads, window, scale, bias, shift, shared_mask_sdpa)


def _banded(
    qkv: Tensor, num_heads: int, window: Size, scale: float, bias: Tensor | None, shift: Size, attend: Attend
) -> Tensor:
    """Window attention with ``attend`` for windows that share one mask."""
    height, width = qkv.shape[-2:]
    rolled = cyclic_shift(pad_to_windows(qkv, window), shift)
    bands = []
    for top, bottom, row_mask in _bands(qkv, 0, window, shift):
        band, parts = rolled[:, :, top:bottom], []
        for left, right, col_mask in _bands(qkv, 1, window, shift):
            mask = with_bias(either(row_mask, col_mask), bias, qkv.dtype)
            q, k, v = _heads(band[..., left:right], window, num_heads)
            parts.append(from_heads(attend(q, k, v, scale, mask), window, (bottom - top, right - left)))
        bands.append(torch.cat(parts, dim=3) if len(parts) > 1 else parts[0])
    out = shift_back(torch.cat(bands, dim=2) if len(bands) > 1 else bands[0], shift)
    return out[:, :, :height, :width]


def _bands(qkv: Tensor, axis: int, window: Size, shift: Size) -> list[tuple[int, int, Tensor | None]]:
    """(first position, end, penalties (N, N) or None) of the windows along an axis that mask alike."""
    length, side = qkv.shape[2 + axis], window[axis]
    found = runs(length, side, shift[axis])
    if len(found) == 1 and found[0][2]:
        return [(0, found[0][1] * side, None)]
    codes = axis_codes(length, side, shift[axis], qkv.device)
    return [
        (first * side, end * side, None if whole else _mask(codes[first], axis, window[1 - axis], qkv.dtype))
        for first, end, whole in found
    ]


def _mask(codes: Tensor, axis: int, other: int, dtype: torch.dtype) -> Tensor:
    """Penalties (N, N) of a window with ``codes`` along one axis, whose side along the other is ``other``."""
    along = penalties(codes, dtype)
    if axis:
        return along.repeat(other, other)
    side = along.shape[0]  # not by repeat_interleave, over whose indices NNCF stumbles
    return along[:, None, :, None].expand(side, other, side, other).reshape(side * other, side * other)


def _fused_unsupported(
    qkv: Tensor, num_heads: int, window: Size, scale: float, bias: Tensor | None = None, shift: Size = (0, 0)
) -> str | None:
    if not known(*qkv.shape[2:]):
        return "windows are sorted by what they mask, which needs a size that is known"
    if wants_gradient(bias) and qkv.device.type == "cpu":
        return "the fused kernel of the CPU gives the bias no gradient"
    masks = any(shift) or qkv.shape[2] % window[0] or qkv.shape[3] % window[1]
    if masks and qkv.device.type == "cuda":
        return "a GPU computes all windows together faster than sorted by what they mask"
    if masks and qkv.numel() < FEW and qkv.device.type == "cpu":
        return "sorting so few windows by what they mask takes longer than it saves"
    return None


def bench_inputs(side: int, heads: int, dim: int = 64, batch: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments: a map of side x side in shifted windows of 7 x 7 with a bias."""
    qkv, bias = torch.randn(batch, 3 * dim, side, side), torch.randn(heads, 49, 49)
    return (qkv, heads, (7, 7), (dim // heads) ** -0.5), {"bias": bias, "shift": (3, 3)}


WINDOW_ATTENTION_OP = Op(
    "window_attention",
    window_attention_reference,
    (Candidate("sdpa", _fused, _fused_unsupported),),
    bench_inputs,
    _exported,
)


@register_notrace_function
def window_attention(
    qkv: Tensor, num_heads: int, window: Size, scale: float, bias: Tensor | None = None, shift: Size = (0, 0)
) -> Tensor:
    """Window attention by the fastest implementation that applies; see the module's docstring for shapes."""
    return WINDOW_ATTENTION_OP(qkv, num_heads, window, scale, bias, shift)
