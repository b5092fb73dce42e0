"""Neighborhood attention in Triton: one program per tile of queries and head, with scores that never leave the chip.

A program walks over the keys of its tile (see `TilePlan`) in blocks, with a running maximum and sum. Each pair of a
query and a key has an entry of the bias table, or none where they do not meet. Sums are made in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..neighborhood_tiles import TilePlan

BLOCK_KEYS = 64


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, table_ptr, out_ptr, queries_ptr, keys_ptr, offsets_ptr, classes_ptr,
    stride_b, stride_h, stride_n, stride_d, heads, positions, entries, scale, num_queries, num_keys, dim,
    HAS_BIAS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tile, head, image = tl.program_id(0), tl.program_id(1) % heads, tl.program_id(1) // heads
    row, channel = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_D)
    is_row, is_channel = row < num_queries, channel < dim
    base = image.to(tl.int64) * stride_b + head * stride_h
    place = tl.load(queries_ptr + tile * num_queries + row, mask=is_row, other=0)
    inside = is_row[:, None] & is_channel[None, :]
    across = channel[None, :] * stride_d
    q = tl.load(q_ptr + base + place[:, None] * stride_n + across, mask=inside, other=0.0)
    pairs = offsets_ptr + tl.load(classes_ptr + tile) * num_queries * num_keys + row[:, None] * num_keys
    best = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    mixed = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for start in range(0, num_keys, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        is_column = column < num_keys
        at = tl.load(keys_ptr + tile * num_keys + column, mask=is_column, other=0)
        seen = is_column[:, None] & is_channel[None, :]
        k = tl.load(k_ptr + base + at[:, None] * stride_n + across, mask=seen, other=0.0)
        v = tl.load(v_ptr + base + at[:, None] * stride_n + across, mask=seen, other=0.0)
        entry = tl.load(pairs + column[None, :], mask=is_row[:, None] & is_column[None, :], other=entries)
        meets = entry < entries
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if HAS_BIAS:
            logits += tl.load(table_ptr + head * entries + entry, mask=meets, other=0.0).to(tl.float32)
        logits = tl.where(meets, logits, float("-inf"))
        greatest = tl.maximum(best, tl.max(logits, 1))
        shift = tl.where(greatest == float("-inf"), 0.0, greatest)  # no key of the row's window seen yet
        weights = tl.exp(logits - shift[:, None])
        fade = tl.exp(best - shift)
        total = total * fade + tl.sum(weights, 1)
        mixed = mixed * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        best = greatest
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    rows = (image.to(tl.int64) * positions + place[:, None]) * heads + head
    tl.store(out_ptr + rows * dim + channel[None, :], mixed.to(out_ptr.dtype.element_ty), mask=inside)


def attend(q: Tensor, k: Tensor, v: Tensor, plan: TilePlan, scale: float, bias: Tensor | None) -> Tensor:
    """q, k, v (B, heads, H, W, D), bias (heads, 2k - 1, 2k - 1) -> (B, heads, H, W, D), stored (B, H, W, heads, D)."""
    batch, heads, height, width, dim = q.shape
    rows = [t.flatten(2, 3) for t in (q, k, v)]
    if len({t.stride() for t in rows}) > 1:
        rows = [t.contiguous() for t in rows]
    out = q.new_empty(batch, height, width, heads, dim)
    table = None if bias is None else bias.contiguous()
    _forward[(plan.num_tiles, batch * heads)](
        *rows, out if table is None else table, out, plan.queries, plan.keys, plan.offsets, plan.classes,
        *rows[0].stride(), heads, height * width, plan.entries, scale, plan.num_queries, plan.num_keys, dim,
        HAS_BIAS=table is not None,
        BLOCK_Q=max(16, triton.next_power_of_2(plan.num_queries)),
        BLOCK_K=min(BLOCK_KEYS, max(16, triton.next_power_of_2(plan.num_keys))),
        BLOCK_D=max(16, triton.next_power_of_2(dim)),
    )  # fmt: skip
    return out.permute(0, 3, 1, 2, 4)
