"""Neighborhood attention in two dimensions: every query attends to the k x k keys nearest to it.

    out[p] = sum_j softmax_j(scale * q[p] . k[n(p, j)] + bias[n(p, j) - p]) v[n(p, j)],  j = 1 .. k * k

Per axis of length L, the window of position i starts at clip(i - k // 2, 0, L - k): near a border it is moved inside,
so that every query has k * k keys. With dilation d, positions i, i + d, i + 2 d, ... form a residue class, and the rule
holds within the class. The bias table has one value per head and offset, index (key - query) / d + k - 1 on both axes.

Shapes: q, k, v (B, heads, H, W, D), bias (heads, 2k - 1, 2k - 1); result (B, heads, H, W, D). H and W are at least
k * d: a smaller map has no such windows and is refused (pad it, as `NeighborhoodAttention` does).

Time O(N k^2 D) per head for N = H * W. The reference gathers the keys and values of every query: O(N k^2 D) memory. The
tiled candidate takes the union of the windows of a tile of queries (see `neighborhood_tiles`): O(N D) memory, and
O(N k^2) for the scores where gradients are wanted. The Triton one keeps scores on the chip, and recomputes them by
tiles for the gradients. NATTEN's own kernels are a candidate where that package is installed.
Exported graphs of a known size have products and no gathers (see `neighborhood_bands`).
Served by: CUDA, NATTEN where it is installed and there is no bias, else Triton; the CPU and MPS, tiles.
Source: arXiv:2204.07143 (NAT), arXiv:2209.15001 (dilation); border rule as in NATTEN 0.14.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from .dispatch import Candidate, Op, known, opaque, triton_unsupported, wants_gradient
from .neighborhood_bands import by_residues, from_residues, neighborhood_attention_banded
from .neighborhood_gradient import neighborhood_attention_gradients
from .neighborhood_tiles import TilePlan, additive_masks, map_of, rows_of, take_tiles, tile_plan

TILES_AT_ONCE = 64  # without gradients, so many tiles run together: their keys stay in cache
FUSED_TILE = (8, 8)  # queries of a Triton program


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


# what a compiled graph sees of the candidates

_SCHEMA = "Tensor q, Tensor k, Tensor v, int kernel_size, int dilation, float scale, Tensor? bias=None"


def _like(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    batch, heads, height, width, dim = q.shape
    return q.new_empty(batch, height, width, heads, dim).permute(0, 3, 1, 2, 4)


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float,
    bias: Tensor | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    plan = tile_plan((q.shape[2], q.shape[3]), kernel_size, dilation, q.device)
    return neighborhood_attention_gradients(grad, q, k, v, plan, scale, bias)


# by tiles


@opaque("neighborhood_attention_tiled", _SCHEMA, _like, _gradients)
def _tiled(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    batch, heads = q.shape[:2]
    plan = tile_plan((q.shape[2], q.shape[3]), kernel_size, dilation, q.device)
    masks = additive_masks(plan, bias, q)
    rows = [rows_of(t) for t in (q, k, v)]
    whole = wants_gradient(q, k, v)
    step = plan.num_tiles if whole else TILES_AT_ONCE
    images = batch if whole else max(1, TILES_AT_ONCE // plan.num_tiles)
    out = [
        torch.cat([
            _attend_tiles([r[i : i + images] for r in rows], plan, slice(t, t + step), heads, scale, masks)
            for t in range(0, plan.num_tiles, step)
        ], 1).index_select(1, plan.slots)
        for i in range(0, batch, images)
    ]  # fmt: skip
    return map_of(torch.cat(out), q)


def _attend_tiles(
    rows: list[Tensor], plan: TilePlan, tiles: slice, heads: int, scale: float, masks: Tensor | None
) -> Tensor:
    """(B, N, heads * D) queries, keys and values -> (B, tiles * num_queries, heads * D)."""
    batch, nq, nk = rows[0].shape[0], plan.num_queries, plan.num_keys
    classes = plan.classes[tiles]
    queries, keys = plan.queries[tiles.start * nq : tiles.stop * nq], plan.keys[tiles.start * nk : tiles.stop * nk]
    q = take_tiles(rows[0], queries, nq, heads)
    k, v = (take_tiles(t, keys, nk, heads) for t in rows[1:])
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
    if isinstance(q, FakeTensor):
        return "tiles are planned for tensors that hold data"
    return None


# on CUDA


class _Fused(torch.autograd.Function):
    """The Triton kernel, with gradients recomputed by tiles."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None
    ) -> Tensor:
        from .fused.neighborhood import attend

        ctx.save_for_backward(q, k, v, bias)
        ctx.options = kernel_size, dilation, scale
        plan = tile_plan((q.shape[2], q.shape[3]), kernel_size, dilation, q.device, FUSED_TILE)
        return attend(q, k, v, plan, scale, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        kernel_size, dilation, scale = ctx.options
        dq, dk, dv, table = _gradients(grad, q, k, v, kernel_size, dilation, scale, bias)
        return dq, dk, dv, None, None, None, table


@opaque("neighborhood_attention_triton", _SCHEMA, _like, _gradients)
def _fused(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    return _Fused.apply(q, k, v, kernel_size, dilation, scale, bias)


def _fused_unsupported(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None = None
) -> str | None:
    return triton_unsupported(q.shape[4], q, k, v)


@opaque("neighborhood_attention_natten", _SCHEMA, _like, _gradients)
def _natten(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    from natten.functional import na2d

    maps = (t.permute(0, 2, 3, 1, 4).contiguous() for t in (q, k, v))  # (B, H, W, heads, D)
    return na2d(*maps, kernel_size=kernel_size, dilation=dilation, scale=scale).permute(0, 3, 1, 2, 4)


@torch.compiler.assume_constant_result
def _has_natten() -> bool:
    return find_spec("natten") is not None


def _natten_unsupported(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None = None
) -> str | None:
    if q.device.type != "cuda":
        return f"natten's kernels run on CUDA, not on {q.device.type}"
    if not _has_natten():
        return "natten is not installed"
    if bias is not None:
        return "natten 0.20 has no relative bias"
    if kernel_size == 1 or q.dtype == torch.float64:
        return "natten takes windows from 2 on, in float32 or less"
    return None


def bench_inputs(side: int, heads: int, dim: int = 64, batch: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for a map of side x side with ``dim`` channels, as a mixer has them: 7 x 7 windows, with a bias."""
    maps = torch.randn(3, batch, heads, dim // heads, side, side).permute(0, 1, 2, 4, 5, 3)
    return (*maps, 7, 1, (dim // heads) ** -0.5), {"bias": torch.randn(heads, 13, 13)}


def _exported(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """By bands of tiles, without gathers; by those only where a size is open, or the dilation does not divide it."""
    height, width = q.shape[2:4]
    if not known(height, width) or height % dilation or width % dilation:
        return neighborhood_attention_reference(q, k, v, kernel_size, dilation, scale, bias)
    if dilation == 1:
        return neighborhood_attention_banded(q, k, v, kernel_size, scale, bias)
    q, k, v = (by_residues(x, dilation) for x in (q, k, v))
    bias = None if bias is None else bias.repeat_interleave(dilation**2, dim=0)
    return from_residues(neighborhood_attention_banded(q, k, v, kernel_size, scale, bias), dilation)


NEIGHBORHOOD_ATTENTION_OP = Op(
    "neighborhood_attention",
    neighborhood_attention_reference,
    (
        Candidate("natten", _natten, _natten_unsupported),
        Candidate("triton", _fused, _fused_unsupported),
        Candidate("tiled", _tiled, _tiled_unsupported),
    ),
    bench_inputs,
    exported=_exported,
)


@register_notrace_function
def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Neighborhood attention by the fastest implementation that applies; see the module's docstring.

    A compiled graph has it as one node, an exported one plain operators.

    Raises:
        ValueError: what `check_shapes` refuses.
    """
    check_shapes(q, kernel_size, dilation, bias)
    return NEIGHBORHOOD_ATTENTION_OP(q, k, v, kernel_size, dilation, scale, bias)
