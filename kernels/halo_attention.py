"""Attention of the windows of a map to themselves and a border around them.

``out = softmax(q k^T * scale + bias) v`` for the N = h * w queries of each window and the M = (h + 2r)(w + 2r) keys up
to r positions around it; keys outside the map are left out. The map is padded at the bottom and right to whole windows.

Shapes: qkv (B, 3C, H, W), queries, keys and values in this order, each heads * D channels; bias (heads, N, M); result
(B, C, H, W). H and W are any.
Time O(H W M C). Memory O(H W (C M / N + heads M)) for the reference, which holds the logits, and O(H W C M / N) for the
fused candidate, which calls `scaled_dot_product_attention` on windows whose keys lie alike: inner ones, and those at
each border and corner.
Served by: MPS, the fused candidate; CUDA, the reference, which takes twice the memory and half of the time there (H200,
14 to 56 squared, batches of 32 and 64); the CPU, the fused one for maps that are not small, else the reference.
FlexAttention has blocks of 128 queries, twice a window of 8 x 8, and compiles for every bias: it is no candidate.
Source: Vaswani et al., arXiv:2103.12731, section 2.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from .attention import attention_reference
from .dispatch import Candidate, Op, exporting, known, wants_gradient
from .windows import (
    PADDED,
    Attend,
    Size,
    either,
    from_heads,
    num_windows,
    pad_to_windows,
    shared_mask_sdpa,
    to_heads,
    to_tokens,
    with_bias,
)

FEW = 700_000  # elements of qkv; measured at 14 to 128 squared, 64 to 384 channels


def halo_attention_reference(
    qkv: Tensor, num_heads: int, window: Size, halo: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """The equation, operator by operator. The scale is applied to q, the smaller operand."""
    height, width = qkv.shape[-2:]
    queries, around = _parts(qkv, window, halo)
    q = to_heads(to_tokens(queries, window), num_heads)  # (B * windows, heads, N, D)
    k, v = _keys_and_values(around, window, halo, num_heads)
    logits = (q * scale) @ k.transpose(-2, -1)
    logits = logits if bias is None else logits + bias
    rows, cols = (_outside(n, side, halo, logits) for n, side in zip((height, width), window, strict=True))
    rows = rows.repeat_interleave(window[1] + 2 * halo, dim=1)[:, None, None]  # (rows, 1, 1, M)
    cols = cols.repeat(1, window[0] + 2 * halo)[:, None, None]
    logits = (logits.unflatten(0, (-1, cols.shape[0])) + cols).flatten(1, 2)  # (B * rows, columns * heads, N, M)
    logits = (logits.unflatten(0, (-1, rows.shape[0])) + rows).flatten(0, 1)
    weights = logits.unflatten(1, (cols.shape[0], num_heads)).flatten(0, 1).softmax(dim=-1)
    out = from_heads(weights @ v, window, (queries.shape[-2], queries.shape[-1]))
    return out[:, :, :height, :width]


def _parts(qkv: Tensor, window: Size, halo: int) -> tuple[Tensor, Tensor]:
    """Queries (B, C, H', W') of whole windows, and keys and values with what lies around each window.

    The latter are a map (B, 2C, rows * (h + 2r), columns * (w + 2r)), in which windows overlap no more.
    """
    dim = qkv.shape[1] // 3
    padded = pad_to_windows(qkv, window)
    around = F.pad(padded[:, dim:], (halo, halo, halo, halo))
    for axis, side in zip((2, 3), window, strict=True):
        count = padded.shape[axis] // side
        if exporting() and known(count):  # as slices, which every runtime has
            near = [around.narrow(axis, i * side, side + 2 * halo) for i in range(count)]
            around = torch.cat(near, axis) if count > 1 else near[0]
            continue
        starts = torch.arange(count, device=qkv.device) * side
        index = starts[:, None] + torch.arange(side + 2 * halo, device=qkv.device)
        around = around.index_select(axis, index.flatten())
    return padded[:, :dim], around


def _keys_and_values(around: Tensor, window: Size, halo: int, num_heads: int) -> tuple[Tensor, Tensor]:
    """(B * windows, heads, M, D) each."""
    k, v = to_tokens(around, (window[0] + 2 * halo, window[1] + 2 * halo)).chunk(2, dim=2)
    return to_heads(k, num_heads), to_heads(v, num_heads)


def _outside(length: int, side: int, halo: int, like: Tensor) -> Tensor:
    """(windows, side + 2r): `PADDED` for the keys of each window along one axis that lie outside the map, else 0."""
    count = num_windows(length, side)
    key = torch.arange(count, device=like.device)[:, None] * side - halo
    key = key + torch.arange(side + 2 * halo, device=like.device)
    return ((key < 0) | (key >= length)).to(like.dtype) * PADDED


def _exported(qkv: Tensor, num_heads: int, window: Size, halo: int, scale: float, bias: Tensor | None = None) -> Tensor:
    """Plain operators with the few masks that a known size needs."""
    if not known(*qkv.shape[2:]):
        return halo_attention_reference(qkv, num_heads, window, halo, scale, bias)
    return _banded(qkv, num_heads, window, halo, scale, bias, attention_reference)


def _fused(qkv: Tensor, num_heads: int, window: Size, halo: int, scale: float, bias: Tensor | None = None) -> Tensor:
    return _banded(qkv, num_heads, window, halo, scale, bias, shared_mask_sdpa)


def _banded(
    qkv: Tensor, num_heads: int, window: Size, halo: int, scale: float, bias: Tensor | None, attend: Attend
) -> Tensor:
    """Halo attention with ``attend`` for windows that share one mask."""
    height, width = qkv.shape[-2:]
    queries, around = _parts(qkv, window, halo)
    (h, w), wide, high = window, window[1] + 2 * halo, window[0] + 2 * halo
    bands = []
    for top, bottom, row_mask in _bands(qkv, 0, window, halo):
        parts = []
        for left, right, col_mask in _bands(qkv, 1, window, halo):
            part = queries[:, :, top * h : bottom * h, left * w : right * w]
            keys = around[:, :, top * high : bottom * high, left * wide : right * wide]
            mask = with_bias(either(row_mask, col_mask), bias, qkv.dtype)
            q = to_heads(to_tokens(part, window), num_heads)
            out = attend(q, *_keys_and_values(keys, window, halo, num_heads), scale, mask)
            parts.append(from_heads(out, window, (part.shape[-2], part.shape[-1])))
        bands.append(torch.cat(parts, dim=3))
    return torch.cat(bands, dim=2)[:, :, :height, :width]


def _bands(qkv: Tensor, axis: int, window: Size, halo: int) -> list[tuple[int, int, Tensor | None]]:
    """(first window, end, what is added to logits (1, M) or None) of the windows along an axis whose keys lie alike."""
    length, side = qkv.shape[2 + axis], window[axis]
    other = window[1 - axis] + 2 * halo
    outside = _outside(length, side, halo, qkv)
    found: list[tuple[int, int, Tensor | None]] = []
    for first, end, whole in _runs(length, side, halo):
        mask = outside[first].repeat(other) if axis else outside[first].repeat_interleave(other)
        found.append((first, end, None if whole else mask[None]))
    return found


def _runs(length: int, side: int, halo: int) -> list[tuple[int, int, bool]]:
    """(first window, end, whether no key lies outside) of windows along an axis whose keys lie alike."""
    found: list[tuple[int, int, tuple[int, int]]] = []
    for index in range(-(-length // side)):
        before = max(0, halo - index * side)
        after = max(0, (index + 1) * side + halo - length)
        if found and found[-1][2] == (before, after):
            found[-1] = (found[-1][0], index + 1, (before, after))
        else:
            found.append((index, index + 1, (before, after)))
    return [(first, end, not any(code)) for first, end, code in found]


def _fused_unsupported(
    qkv: Tensor, num_heads: int, window: Size, halo: int, scale: float, bias: Tensor | None = None
) -> str | None:
    if not all(isinstance(n, int) for n in qkv.shape[2:]):
        return "windows are sorted by what they mask, which needs a size that is known"
    if qkv.device.type == "cuda":
        return "a GPU computes all windows together faster than sorted by where their keys lie"
    if wants_gradient(bias) and qkv.device.type == "cpu":
        return "the fused kernel of the CPU gives the bias no gradient"
    if qkv.numel() < FEW and qkv.device.type == "cpu":
        return "sorting so few windows by where their keys lie takes longer than it saves"
    return None


def bench_inputs(side: int, heads: int, dim: int = 64, batch: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments: a map of side x side in windows of 8 x 8 with a border of 3 and a bias."""
    qkv, bias = torch.randn(batch, 3 * dim, side, side), torch.randn(heads, 64, 196)
    return (qkv, heads, (8, 8), 3, (dim // heads) ** -0.5), {"bias": bias}


HALO_ATTENTION_OP = Op(
    "halo_attention",
    halo_attention_reference,
    (Candidate("sdpa", _fused, _fused_unsupported),),
    bench_inputs,
    exported=_exported,
)


@register_notrace_function
def halo_attention(
    qkv: Tensor, num_heads: int, window: Size, halo: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Halo attention by the fastest implementation that applies; see the module's docstring for shapes."""
    return HALO_ATTENTION_OP(qkv, num_heads, window, halo, scale, bias)
