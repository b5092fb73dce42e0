"""Neighborhood attention in two dimensions: every query attends to the k x k keys nearest to it.

    out[p] = sum_j softmax_j(scale * q[p] . k[n(p, j)] + bias[n(p, j) - p]) v[n(p, j)],  j = 1 .. k * k

Per axis of length L, the window of position i starts at clip(i - k // 2, 0, L - k): near a border it is moved inside,
so that every query has k * k keys. With dilation d, positions i, i + d, i + 2 d, ... form a residue class, and the rule
holds within the class. The bias table has one value per head and offset, index (key - query) / d + k - 1 on both axes.

Shapes: q, k, v (B, heads, H, W, D), bias (heads, 2k - 1, 2k - 1); result (B, heads, H, W, D). H and W are at least
k * d: a smaller map has no such windows and is refused (pad it, as `NeighborhoodAttention` does).

Time O(N k^2 D) per head for N = H * W. The reference gathers the keys and values of every query: O(N k^2 D) memory. The
tiled candidate takes the union of the windows of a tile of queries (see `neighborhood_tiles`): O(N D) memory beside
O(N k^2) for masks. The fused one keeps the scores on chip.
Source: arXiv:2204.07143 (NAT), arXiv:2209.15001 (dilation); border rule as in NATTEN 0.14.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from .dispatch import Candidate, Op
from .neighborhood_tiles import TilePlan, tile_plan

TILES_AT_ONCE = 64  # without gradients, so many tiles run together: their keys stay in cache


def check_shapes(q: Tensor, kernel_size: int, dilation: int, bias: Tensor | None) -> None:
    """Refuse what has no neighbourhoods.

    Raises:
        ValueError: an even kernel, a dilation below 1, a side of the map below kernel * dilation, or a bias of another
            shape.
    """
    if kernel_size < 1 or kernel_size % 2 == 0 or dilation < 1:
        raise ValueError(f"a neighbourhood has an odd side and a dilation from 1 on, not {kernel_size} and {dilation}")
    height, width = q.shape[2:4]
    if height < kernel_size * dilation or width < kernel_size * dilation:
        raise ValueError(
            f"a {height} x {width} map has no neighbourhoods of side {kernel_size} with dilation {dilation}: "
            f"pad it to at least {kernel_size * dilation} on both sides"
        )
    table = (q.shape[1], 2 * kernel_size - 1, 2 * kernel_size - 1)
    if bias is not None and tuple(bias.shape) != table:
        raise ValueError(f"the bias table is {tuple(bias.shape)}, expected {table}: (heads, 2k - 1, 2k - 1)")


def window_index(length: int, kernel_size: int, dilation: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Keys of every position of an axis, and their offsets in the bias table: (length, k) int64 each."""
    position = torch.arange(length, device=device)
    residue, place = position % dilation, position // dilation
    count = (length - residue + dilation - 1) // dilation  # positions in the residue class
    start = torch.minimum((place - kernel_size // 2).clamp(min=0), count - kernel_size)
    key = start[:, None] + torch.arange(kernel_size, device=device)
    return key * dilation + residue[:, None], key - place[:, None] + kernel_size - 1


def neighborhood_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """The equation with gathered keys and values, in plain operators on at most five axes."""
    check_shapes(q, kernel_size, dilation, bias)
    batch, heads, height, width, dim = q.shape
    area, count = kernel_size**2, height * width
    rows, down = window_index(height, kernel_size, dilation, q.device)
    cols, across = window_index(width, kernel_size, dilation, q.device)
    keys = (rows[:, None, :, None] * width + cols[None, :, None, :]).reshape(-1)  # (N * k * k,)
    near = k.flatten(2, 3).index_select(2, keys).reshape(batch * heads, count, area, dim)
    logits = (q.reshape(batch * heads, count, 1, dim) * scale) @ near.transpose(2, 3)
    logits = logits.reshape(batch, heads, count, area)
    if bias is not None:
        offsets = (down[:, None, :, None] * bias.shape[2] + across[None, :, None, :]).reshape(-1)
        logits = logits + bias.flatten(1).index_select(1, offsets).reshape(heads, count, area)
    weights = logits.softmax(dim=-1).reshape(batch * heads, count, 1, area)
    near = v.flatten(2, 3).index_select(2, keys).reshape(batch * heads, count, area, dim)
    return (weights @ near).reshape(batch, heads, height, width, dim)


# by tiles


def _tiled(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    check_shapes(q, kernel_size, dilation, bias)
    batch, heads, height, width, dim = q.shape
    plan = tile_plan((height, width), kernel_size, dilation, q.device)
    masks = _masks(plan, heads, kernel_size, bias, q)
    rows = [t.permute(0, 2, 3, 1, 4).reshape(batch, height * width, -1).contiguous() for t in (q, k, v)]
    whole = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    step = plan.num_tiles if whole or plan.num_tiles < 2 * TILES_AT_ONCE else TILES_AT_ONCE
    images = batch if whole else max(1, TILES_AT_ONCE // plan.num_tiles)
    out = [
        torch.cat([
            _attend_tiles([r[i : i + images] for r in rows], plan, slice(t, t + step), heads, scale, masks)
            for t in range(0, plan.num_tiles, step)
        ], 1).index_select(1, plan.slots)
        for i in range(0, batch, images)
    ]  # fmt: skip
    return torch.cat(out).reshape(batch, height, width, heads, dim).permute(0, 3, 1, 2, 4)


def _masks(plan: TilePlan, heads: int, kernel_size: int, bias: Tensor | None, like: Tensor) -> Tensor | None:
    """(P, heads, queries, keys) additive masks; None where every pair meets and there is no bias."""
    if bias is None and not plan.masked:
        return None
    if bias is None:
        heads, table = 1, like.new_zeros(1, (2 * kernel_size - 1) ** 2)
    else:
        table = bias.flatten(1).to(like.dtype)
    table = torch.cat((table, table.new_full((heads, 1), float("-inf"))), 1)
    masks = table.index_select(1, plan.offsets)
    return masks.reshape(heads, -1, plan.num_queries, plan.num_keys).transpose(0, 1)


def _attend_tiles(
    rows: list[Tensor], plan: TilePlan, tiles: slice, heads: int, scale: float, masks: Tensor | None
) -> Tensor:
    """(B, N, heads * D) queries, keys and values -> (B, tiles * num_queries, heads * D)."""
    batch, nq, nk = rows[0].shape[0], plan.num_queries, plan.num_keys
    classes = plan.classes[tiles]
    queries = plan.queries[tiles.start * nq : tiles.stop * nq]
    keys = plan.keys[tiles.start * nk : tiles.stop * nk]
    q, k, v = (
        t.index_select(1, index).reshape(batch * len(classes), n, heads, -1).transpose(1, 2)
        for t, index, n in zip(rows, (queries, keys, keys), (nq, nk, nk), strict=True)
    )
    mask = None
    if masks is not None and len(classes) == 1:
        mask = masks[classes]
    elif masks is not None:
        mask = masks.index_select(0, classes.repeat(batch)).expand(-1, heads, -1, -1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).reshape(batch, len(classes) * nq, -1)


def _tiled_unsupported(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None = None
) -> str | None:
    if torch.compiler.is_compiling():
        return "tiles are planned outside of a compiled graph"
    return None


NEIGHBORHOOD_ATTENTION_OP = Op(
    "neighborhood_attention",
    neighborhood_attention_reference,
    (Candidate("tiled", _tiled, _tiled_unsupported),),
)


@register_notrace_function
def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Neighborhood attention by the fastest implementation that applies; see the module's docstring.

    Raises:
        ValueError: what `check_shapes` refuses.
    """
    return NEIGHBORHOOD_ATTENTION_OP(q, k, v, kernel_size, dilation, scale, bias)


def bench_inputs(side: int, heads: int, dim: int = 64) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for a map of side x side with ``dim`` channels, as a mixer has them: 7 x 7 windows, with a bias."""
    maps = torch.randn(3, 1, heads, dim // heads, side, side).permute(0, 1, 2, 4, 5, 3)
    return (*maps, 7, 1, (dim // heads) ** -0.5), {"bias": torch.randn(heads, 13, 13)}
