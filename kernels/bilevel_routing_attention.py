"""Bi-level routing attention: a region of the map attends to the few regions that its mean matches best.

With the map cut into R regions of T = h * w tokens, and the means q~[r], k~[r] of the tokens of a region:

    routes[r] = the topk regions s with the greatest q~[r] . k~[s]
    out[p] = softmax(scale * q[p] . K) V for p in region r, K and V the tokens of routes[r]

Heads split the channels of the second line only. Nothing is differentiated through the first line. A map that does not
divide is zero-padded at the bottom and right: means are over real tokens, but the zeros take part in the second line
as keys and values, as in the authors' code. With topk = R, or None, this is attention over the whole padded map.

Shapes: q, k (B, C, H, W), v (B, E, H, W); result (B, E, H, W).
Time O(N topk T (C + E) + R^2 C) for N = H * W. Memory beside the operands: the reference gathers what every region
attends to, O(N topk (C + E)), and holds O(N topk T heads) logits. The tiled candidate gathers for some regions at a
time and holds no logits: O(N E). The Triton candidate reads routed regions where they lie, and gathers nothing.
Served by: the CPU and MPS, the tiled candidate; CUDA, the Triton one; all of them, one call of
`scaled_dot_product_attention` over the map where every region attends to all.
Source: Zhu et al., arXiv:2303.08810.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from .dispatch import Candidate, Op, exporting, known, opaque, triton_unsupported, wants_gradient
from .precision import without_autocast
from .windows import Size, from_windows, to_tokens

GATHERED_AT_ONCE = 1 << 20  # elements of keys and values: what is gathered stays in cache


def pad_to_regions(x: Tensor, region: Size) -> Tensor:
    """Zero-pad (B, C, H, W) at the bottom and right to whole regions."""
    (height, width), (h, w) = x.shape[-2:], region
    down, across = (height + h - 1) // h * h - height, (width + w - 1) // w * w - width
    if isinstance(down, int) and isinstance(across, int) and down == across == 0:
        return x  # a side that is open in an export is padded always, by nothing where it divides
    return F.pad(x, (0, across, 0, down))


def region_means(x: Tensor, region: Size) -> Tensor:
    """(B, C, H, W) -> (B, R, C), the mean of the real tokens of every region; at least float32."""
    padded, (h, w) = pad_to_regions(x, region), region
    rows, cols = padded.shape[2] // h, padded.shape[3] // w
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    if exporting():  # ncnn has four axes at most
        bands = padded.reshape(-1, rows, h, padded.shape[3]).sum(2, dtype=dtype)  # (B * C, rows, W)
        sums = bands.reshape(-1, rows, cols, w).sum(3).reshape(-1, padded.shape[1], rows * cols).transpose(1, 2)
    elif padded.stride(1) == 1:  # channels are adjacent in memory
        tokens = padded.permute(0, 2, 3, 1).reshape(-1, h, cols, w, padded.shape[1])  # (B * rows, h, cols, w, C)
        sums = tokens.sum(1, dtype=dtype).sum(2).reshape(padded.shape[0], rows * cols, -1)
    else:
        bands = padded.unflatten(2, (rows, h)).sum(3, dtype=dtype)  # (B, C, rows, W)
        sums = bands.unflatten(3, (cols, w)).sum(4).flatten(2).transpose(1, 2)
    return sums / (h * w if padded is x else _real((x.shape[2], x.shape[3]), region, sums))


def _real(size: Size, region: Size, like: Tensor) -> Tensor:
    """(R, 1) number of tokens of every region that are on the map."""
    down, across = (
        (length - torch.arange(-(-length // side), device=like.device) * side).clamp(max=side)
        for length, side in zip(size, region, strict=True)
    )
    return (down[:, None] * across).reshape(-1, 1)


def routed_regions(q: Tensor, k: Tensor, region: Size, topk: int | None) -> Tensor:
    """(B, R, topk) int64: the regions that each region attends to, best first; all of them where there are no more."""
    with without_autocast(q.device.type):
        return _best(region_means(q.detach(), region) @ region_means(k.detach(), region).transpose(1, 2), topk)


def _best(scores: Tensor, topk: int | None) -> Tensor:
    count = scores.shape[-1]
    return scores.topk(count if topk is None else min(topk, count), dim=-1).indices


def bilevel_routing_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, region: Size, topk: int | None, num_heads: int, scale: float
) -> Tensor:
    """The equations in the authors' gather form: what a region attends to is gathered element by element."""
    routes = routed_regions(q, k, region, topk)
    batch, count, _ = routes.shape
    rows = routes.flatten(1)[..., None]  # (B, R * topk, 1)

    def gathered(x: Tensor) -> Tensor:
        regions = to_tokens(pad_to_regions(x, region), region).reshape(batch, count, -1)
        chosen = regions.gather(1, rows.expand(-1, -1, regions.shape[2]))
        return chosen.reshape(batch * count, -1, x.shape[1])  # (B * R, topk * T, C)

    return _attend_plainly(q, gathered(k), gathered(v), region, num_heads, scale)


def bilevel_routing_attention_indexed(
    q: Tensor, k: Tensor, v: Tensor, region: Size, topk: int | None, num_heads: int, scale: float
) -> Tensor:
    """The same with regions taken whole, by their number in the batch: what other runtimes do fast."""
    rows = _rows(routed_regions(q, k, region, topk))

    def taken(x: Tensor) -> Tensor:
        regions = to_tokens(pad_to_regions(x, region), region)  # (B * R, T, C)
        return regions[rows].reshape(rows.shape[0], -1, x.shape[1])

    return _attend_plainly(q, taken(k), taken(v), region, num_heads, scale)


def _rows(routes: Tensor) -> Tensor:
    """(B, R, topk) numbers in an image -> (B * R, topk) numbers in the batch."""
    batch, count, topk = routes.shape
    if known(batch) and batch == 1:
        return routes.reshape(count, topk)
    first = torch.arange(batch, device=routes.device) * count
    return (routes + first[:, None, None]).reshape(batch * count, topk)


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor, region: Size, num_heads: int, scale: float) -> Tensor:
    """Attention of the regions of the map ``q`` to ``k`` (B * R, M, C) and ``v`` (B * R, M, E)."""
    queries = to_tokens(pad_to_regions(q, region), region)
    logits = _heads(queries * scale, num_heads) @ _heads(k, num_heads).transpose(2, 3)  # (B * R, heads, T, M)
    return _whole(logits.softmax(dim=-1) @ _heads(v, num_heads), region, (q.shape[-2], q.shape[-1]))


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, heads * D) -> (B, heads, N, D) without a copy."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _whole(out: Tensor, region: Size, size: Size) -> Tensor:
    """(B * R, heads, T, D) -> (B, heads * D, H, W), cut to ``size``."""
    height, width = ((n + side - 1) // side * side for n, side in zip(size, region, strict=True))
    tokens = out.transpose(1, 2).flatten(2)
    windows = tokens.transpose(1, 2).unflatten(2, region)
    whole = from_windows(windows, (height, width))
    return whole if (height, width) == size else whole[:, :, : size[0], : size[1]]


# some regions at a time


def _tiled(q: Tensor, k: Tensor, v: Tensor, region: Size, topk: int | None, num_heads: int, scale: float) -> Tensor:
    size, widths = (q.shape[-2], q.shape[-1]), (k.shape[1], v.shape[1])
    queries = to_tokens(pad_to_regions(q, region), region)  # (B * R, T, C)
    joined = _joined(k, v)
    sources = [to_tokens(pad_to_regions(x, region), region) for x in ((k, v) if joined is None else (joined,))]
    rows = _rows(_routes(queries, sources[0][..., : widths[0]], size, region, topk))
    gathered = rows.shape[1] * queries.shape[1] * sum(widths)  # elements for one region
    step, parts = max(1, GATHERED_AT_ONCE // gathered), []
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        found = [x.flatten(1).index_select(0, chosen.flatten()).view(len(chosen), -1, x.shape[2]) for x in sources]
        if start + step >= len(rows):
            sources.clear()  # the memory may serve the answers
        parts.append(_attend_gathered(queries[start : start + step], found, widths, num_heads, scale))
    del queries, found
    return _whole(parts[0] if len(parts) == 1 else torch.cat(parts), region, size)


def _attend_gathered(
    queries: Tensor, gathered: list[Tensor], widths: tuple[int, int], num_heads: int, scale: float
) -> Tensor:
    """(B * R, T, C) to keys and values (B * R, M, C) and (B * R, M, E), or both in one -> (B * R, heads, T, D)."""
    k, v = gathered if len(gathered) == 2 else gathered[0].split(widths, 2)
    q, k, v = (_heads(x, num_heads) for x in (queries, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _joined(k: Tensor, v: Tensor) -> Tensor | None:
    """The channels-last map of which ``k`` and then ``v`` are the channels, if there is one: it is copied in one go."""
    if torch.compiler.is_compiling() or wants_gradient(k, v):
        return None
    channels = k.shape[1] + v.shape[1]
    if k.stride() != v.stride() or k.stride(1) != 1 or k.stride(3) < channels:
        return None
    same = k.untyped_storage()._cdata == v.untyped_storage()._cdata
    if not same or v.storage_offset() - k.storage_offset() != k.shape[1]:
        return None
    return k.as_strided((k.shape[0], channels, *k.shape[2:]), k.stride())


def _routes(queries: Tensor, keys: Tensor, size: Size, region: Size, topk: int | None) -> Tensor:
    """`routed_regions` of tokens (B * R, T, C): sums serve as means, as all queries of a region have one count."""
    rows, cols = (-(-n // side) for n, side in zip(size, region, strict=True))
    dtype = queries.dtype if queries.dtype == torch.float64 else torch.float32
    with torch.no_grad(), without_autocast(queries.device.type):
        q, k = (x.sum(1, dtype=dtype).unflatten(0, (-1, rows * cols)) for x in (queries, keys))
        if rows * region[0] != size[0] or cols * region[1] != size[1]:
            k = k / _real(size, region, k)
        return _best(q @ k.transpose(1, 2), topk)


def _whole_map(q: Tensor, k: Tensor, v: Tensor, region: Size, topk: int | None, num_heads: int, scale: float) -> Tensor:
    padded = [pad_to_regions(x, region) for x in (q, k, v)]
    heads = [_heads(x.flatten(2).transpose(1, 2), num_heads) for x in padded]
    heads = [x if x.stride(3) == 1 else x.contiguous() for x in heads]
    out = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], scale=scale)  # (B, heads, N, D)
    whole = out.transpose(2, 3).flatten(1, 2).unflatten(2, padded[0].shape[2:])
    return whole[:, :, : q.shape[2], : q.shape[3]]


def _whole_map_unsupported(
    q: Tensor, k: Tensor, v: Tensor, region: Size, topk: int | None, num_heads: int, scale: float
) -> str | None:
    count = -(-q.shape[-2] // region[0]) * -(-q.shape[-1] // region[1])
    if topk is not None and topk < count:
        return f"a region attends to {topk} of {count} regions"
    return _tiled_unsupported(q, k, v, region, topk, num_heads, scale)


def _tiled_unsupported(
    q: Tensor, k: Tensor, v: Tensor, region: Size, topk: int | None, num_heads: int, scale: float
) -> str | None:
    if q.shape[1] != v.shape[1]:
        return f"value width {v.shape[1]} differs from query width {q.shape[1]}"
    return None


def _like(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Size, num_heads: int, scale: float) -> Tensor:
    batch, channels, height, width = q.shape
    return q.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Size, num_heads: int, scale: float
) -> tuple[Tensor | None, ...]:
    from .fused.bilevel_routing import routed_backward, routed_forward

    out, lse = routed_forward(q, k, v, routes, region, num_heads, scale)
    return *routed_backward(grad, q, k, v, routes, out, lse, region, num_heads, scale), None


@opaque(
    "bilevel_routing_attention_triton",
    "Tensor q, Tensor k, Tensor v, Tensor routes, int[] region, int num_heads, float scale",
    _like,
    _gradients,
)
def _routed(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Size, num_heads: int, scale: float) -> Tensor:
    from .fused.bilevel_routing import RoutedAttention

    return cast(Tensor, RoutedAttention.apply(q, k, v, routes, region, num_heads, scale))


def _fused(q: Tensor, k: Tensor, v: Tensor, region: Size, topk: int | None, num_heads: int, scale: float) -> Tensor:
    return _routed(q, k, v, routed_regions(q, k, region, topk), region, num_heads, scale)


def _fused_unsupported(
    q: Tensor, k: Tensor, v: Tensor, region: Size, topk: int | None, num_heads: int, scale: float
) -> str | None:
    reason = triton_unsupported(q.shape[1] // num_heads, q, k, v)
    return reason or _tiled_unsupported(q, k, v, region, topk, num_heads, scale)


def bench_inputs(side: int, heads: int, dim: int = 64, batch: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments: a map of side x side with ``dim`` channels in 7 x 7 regions, routed as in BiFormer.

    Its stages, at sides of 56, 28 and 14, attend to 1, 4 and 16 regions.
    """
    maps = torch.randn(batch, 3 * dim, side, side).contiguous(memory_format=torch.channels_last).chunk(3, dim=1)
    topk = min(16, max(1, (56 // side) ** 2))
    return (*maps, (-(-side // 7),) * 2, topk, heads, dim**-0.5), {}


BILEVEL_ROUTING_ATTENTION_OP = Op(
    "bilevel_routing_attention",
    bilevel_routing_attention_reference,
    (
        Candidate("whole", _whole_map, _whole_map_unsupported),
        Candidate("triton", _fused, _fused_unsupported),
        Candidate("tiled", _tiled, _tiled_unsupported),
    ),
    bench_inputs,
    exported=bilevel_routing_attention_indexed,
)


@register_notrace_function
def bilevel_routing_attention(
    q: Tensor, k: Tensor, v: Tensor, region: Size, topk: int | None, num_heads: int, scale: float
) -> Tensor:
    """Bi-level routing attention by the fastest implementation that applies; see the module's docstring.

    Args:
        q, k, v: maps (B, C, H, W), the values of any width.
        region: (h, w) of a region, tokens.
        topk: regions that a region attends to; None for all of them.
        num_heads: heads that the channels are split into.
        scale: of the logits between tokens.
    """
    return BILEVEL_ROUTING_ATTENTION_OP(q, k, v, region, topk, num_heads, scale)
