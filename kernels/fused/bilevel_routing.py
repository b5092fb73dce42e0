"""Attention of regions to routed regions that are read where they lie: nothing is padded, cut up or gathered.

A program takes a block of the queries of one region and one head, and walks over the keys of the regions it is routed
to, with the softmax kept up as it goes. Positions outside the map are zeros. The backward kernel recomputes the weights
from the saved log-sum-exp; gradients of keys and values are summed by atomic adds in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..windows import Size
from .precision import product_precision

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _keys(  # type: ignore[no-untyped-def]
    start, routes, cols, height, width,
    topk: tl.constexpr, area: tl.constexpr, w: tl.constexpr, h: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows, columns, whether they exist, and whether they are on the map, of keys from ``start`` on."""
    m = start + tl.arange(0, BLOCK)
    real = m < topk * area
    region = tl.load(routes + m // area, mask=real, other=0)
    t = m % area
    y, x = (region // cols) * h + t // w, (region % cols) * w + t % w
    return y, x, real, real & (y < height) & (x < width)


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    q, k, v, routes, out, lse, scale,
    qb, qc, qy, qx, kb, kc, ky, kx, vb, vc, vy, vx, ob, oc, oy, ox,
    heads, count, cols, height, width,
    topk: tl.constexpr, h: tl.constexpr, w: tl.constexpr, dim: tl.constexpr,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    image, region = (row // count).to(tl.int64), row % count
    area: tl.constexpr = h * w
    t = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    d = tl.arange(0, DIM)
    y, x = (region // cols) * h + t // w, (region % cols) * w + t % w
    here = (t < area) & (y < height) & (x < width)
    channel = (head * dim + d)[None, :]
    tile = here[:, None] & (d < dim)[None, :]
    query = tl.load(q + image * qb + channel * qc + (y * qy + x * qx)[:, None], mask=tile, other=0.0)
    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    result = tl.zeros((QUERIES, DIM), tl.float32)
    for start in range(0, topk * area, KEYS):
        ty, tx, real, inside = _keys(start, routes + row * topk, cols, height, width, topk, area, w, h, KEYS)
        tile_k = inside[:, None] & (d < dim)[None, :]
        key = tl.load(k + image * kb + channel * kc + (ty * ky + tx * kx)[:, None], mask=tile_k, other=0.0)
        value = tl.load(v + image * vb + channel * vc + (ty * vy + tx * vx)[:, None], mask=tile_k, other=0.0)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * LOG2E)
        logits = tl.where(real[None, :], logits, float("-inf"))
        new = tl.maximum(most, tl.max(logits, 1))
        weights = tl.exp2(logits - new[:, None])
        shrink = tl.exp2(most - new)
        total = total * shrink + tl.sum(weights, 1)
        result = result * shrink[:, None]
        result += tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
        most = new
    result = result / total[:, None]
    tl.store(out + image * ob + channel * oc + (y * oy + x * ox)[:, None], result.to(out.dtype.element_ty), mask=tile)
    tl.store(lse + (row * heads + head) * area + t, most + tl.log2(total), mask=t < area)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    q, k, v, routes, out, lse, grad, dq, dk, dv, scale,
    qb, qc, qy, qx, kb, kc, ky, kx, vb, vc, vy, vx, ob, oc, oy, ox, gb, gc, gy, gx, db, dy, dx,
    heads, count, cols, height, width,
    topk: tl.constexpr, h: tl.constexpr, w: tl.constexpr, dim: tl.constexpr,
    PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    image, region = (row // count).to(tl.int64), row % count
    area: tl.constexpr = h * w
    t = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    d = tl.arange(0, DIM)
    y, x = (region // cols) * h + t // w, (region % cols) * w + t % w
    here = (t < area) & (y < height) & (x < width)
    channel = (head * dim + d)[None, :]
    tile = here[:, None] & (d < dim)[None, :]
    query = tl.load(q + image * qb + channel * qc + (y * qy + x * qx)[:, None], mask=tile, other=0.0)
    answer = tl.load(out + image * ob + channel * oc + (y * oy + x * ox)[:, None], mask=tile, other=0.0)
    g = tl.load(grad + image * gb + channel * gc + (y * gy + x * gx)[:, None], mask=tile, other=0.0)
    delta = tl.sum(answer.to(tl.float32) * g.to(tl.float32), 1)
    norm = tl.load(lse + (row * heads + head) * area + t, mask=t < area, other=0.0)
    result = tl.zeros((QUERIES, DIM), tl.float32)
    for start in range(0, topk * area, KEYS):
        ty, tx, real, inside = _keys(start, routes + row * topk, cols, height, width, topk, area, w, h, KEYS)
        tile_k = inside[:, None] & (d < dim)[None, :]
        key = tl.load(k + image * kb + channel * kc + (ty * ky + tx * kx)[:, None], mask=tile_k, other=0.0)
        value = tl.load(v + image * vb + channel * vc + (ty * vy + tx * vx)[:, None], mask=tile_k, other=0.0)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * LOG2E)
        weights = tl.where(real[None, :] & here[:, None], tl.exp2(logits - norm[:, None]), 0.0)
        toward = tl.dot(g, tl.trans(value), input_precision=PRECISION)
        slope = weights * (toward - delta[:, None]) * scale
        result += tl.dot(slope.to(key.dtype), key, input_precision=PRECISION)
        place = image * db + channel + (ty * dy + tx * dx)[:, None]
        by_value = tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision=PRECISION)
        tl.atomic_add(dv + place, by_value, mask=tile_k)
        by_key = tl.dot(tl.trans(slope.to(query.dtype)), query, input_precision=PRECISION)
        tl.atomic_add(dk + place, by_key, mask=tile_k)
    place = image * db + channel + (y * dy + x * dx)[:, None]
    tl.store(dq + place, result.to(dq.dtype.element_ty), mask=tile)


def _launch(area: int, dim: int, rows: int, heads: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Grid and block sizes."""
    queries = min(64, max(16, triton.next_power_of_2(area)))
    blocks = {"QUERIES": queries, "KEYS": 64, "DIM": max(16, triton.next_power_of_2(dim))}
    return (rows, heads, triton.cdiv(area, queries)), blocks


def _tokens_first(like: Tensor, dtype: torch.dtype, fill: float | None = None) -> Tensor:
    """A (B, C, H, W) map whose channels are adjacent in memory; ``fill`` None leaves it unset."""
    batch, channels, height, width = like.shape
    shape = (batch, height, width, channels)
    made = like.new_empty(shape, dtype=dtype) if fill is None else like.new_full(shape, fill, dtype=dtype)
    return made.permute(0, 3, 1, 2)


def _shape(q: Tensor, routes: Tensor, region: Size, num_heads: int) -> tuple[int, ...]:
    """What both kernels know of the problem."""
    (_, channels, height, width), (_, count, topk), (h, w) = q.shape, routes.shape, region
    return num_heads, count, -(-width // w), height, width, topk, h, w, channels // num_heads


def routed_forward(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Size, num_heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Three maps (B, C, H, W), routes (B, R, topk) -> the result, and (B * R, heads, T) log-sum-exps of the queries."""
    shape, rows, area = _shape(q, routes, region, num_heads), len(q) * routes.shape[1], region[0] * region[1]
    out = _tokens_first(q, q.dtype)
    lse = q.new_empty(rows, num_heads, area, dtype=torch.float32)
    grid, blocks = _launch(area, shape[-1], rows, num_heads)
    strides = [n for t in (q, k, v, out) for n in t.stride()]
    routes, precision = routes.to(torch.int32).contiguous(), product_precision(q.dtype)
    _forward[grid](q, k, v, routes, out, lse, scale, *strides, *shape, PRECISION=precision, **blocks)
    return out, lse


def routed_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, routes: Tensor, out: Tensor, lse: Tensor, region: Size,
    num_heads: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the three maps, from what `routed_forward` gave."""
    shape = _shape(q, routes, region, num_heads)
    grid, blocks = _launch(region[0] * region[1], shape[-1], len(q) * routes.shape[1], num_heads)
    dq = _tokens_first(q, torch.float32)
    dk, dv = (_tokens_first(t, torch.float32, 0.0) for t in (k, v))
    strides = [n for t in (q, k, v, out, grad) for n in t.stride()]
    strides += [dq.stride(0), dq.stride(2), dq.stride(3)]
    routes, precision = routes.to(torch.int32).contiguous(), product_precision(q.dtype)
    _backward[grid](q, k, v, routes, out, lse, grad, dq, dk, dv, scale, *strides, *shape, PRECISION=precision, **blocks)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


class RoutedAttention(torch.autograd.Function):
    """``apply(q, k, v, routes, region, num_heads, scale)``: three maps (B, C, H, W) and routes (B, R, topk)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, routes: Tensor, region: Size, num_heads: int, scale: float
    ) -> Tensor:
        out, lse = routed_forward(q, k, v, routes, region, num_heads, scale)
        ctx.save_for_backward(q, k, v, routes, out, lse)
        ctx.options = tuple(region), num_heads, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *routed_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None
