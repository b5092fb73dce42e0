"""Gradients of neighborhood attention by tiles, recomputed from queries, keys and values.

With weights P = softmax(scale * Q K^T + M) of a tile and the gradient G of its output, the gradients are
dV = P^T G, dS = P * (G V^T - rowsum(P * G V^T)), dQ = scale * dS K, dK = scale * dS^T Q, and the sum of dS over the
pairs that share an entry of the bias table. Time O(N k^2 D) per head; memory O(N D), nothing is kept from the forward
pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .neighborhood_tiles import TilePlan, additive_masks, map_of, rows_of, take_tiles

Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None]


def neighborhood_attention_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: TilePlan, scale: float, bias: Tensor | None, step: int = 64
) -> Gradients:
    """Gradients of q, k, v and the bias (None without one), ``step`` tiles of every image at a time.

    Sums are made in float32 for half-precision inputs.
    """
    wide = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
    masks = additive_masks(plan, bias, q.new_empty(0, dtype=wide))
    rows = [rows_of(t) for t in (q, k, v, grad)]
    sums = [torch.zeros_like(t, dtype=wide) for t in rows[:3]]
    table = None if bias is None else rows[0].new_zeros(len(bias), plan.entries + 1, dtype=wide)
    for start in range(0, plan.num_tiles, step):
        _add_tiles(sums, table, [t.to(wide) for t in rows], plan, slice(start, start + step), q.shape[1], scale, masks)
    gradients = [map_of(total.to(q.dtype), q) for total in sums]
    found = None if table is None or bias is None else table[:, :-1].reshape(bias.shape).to(bias.dtype)
    return gradients[0], gradients[1], gradients[2], found


def _add_tiles(
    sums: list[Tensor], table: Tensor | None, rows: list[Tensor], plan: TilePlan, tiles: slice, heads: int,
    scale: float, masks: Tensor | None,
) -> None:  # fmt: skip
    """Add what the tiles ``tiles`` give to the gradients ``sums`` (B, N, heads * D) and ``table`` (heads, entries)."""
    batch, nq, nk = rows[0].shape[0], plan.num_queries, plan.num_keys
    classes = plan.classes[tiles]
    queries, keys = plan.queries[tiles.start * nq : tiles.stop * nq], plan.keys[tiles.start * nk : tiles.stop * nk]
    q, g = (take_tiles(rows[i], queries, nq, heads) for i in (0, 3))
    k, v = (take_tiles(rows[i], keys, nk, heads) for i in (1, 2))
    g = g * plan.first[tiles.start * nq : tiles.stop * nq].reshape(-1, 1, nq, 1).repeat(batch, 1, 1, 1)
    logits = scale * q @ k.transpose(2, 3)
    if masks is not None:
        logits = logits + masks.index_select(0, classes.repeat(batch))
    weights = logits.softmax(-1)
    back = g @ v.transpose(2, 3)
    back = weights * (back - (weights * back).sum(-1, keepdim=True))  # (B * tiles, heads, queries, keys)
    parts = (scale * back @ k, scale * back.transpose(2, 3) @ q, weights.transpose(2, 3) @ g)
    for total, part, index in zip(sums, parts, (queries, keys, keys), strict=True):
        total.index_add_(1, index, part.transpose(1, 2).reshape(batch, -1, total.shape[2]))
    if table is not None:
        shared = back.new_zeros(len(plan.offsets) // (nq * nk), heads, nq, nk).index_add_(
            0, classes.repeat(batch), back
        )
        table.index_add_(1, plan.offsets, shared.transpose(0, 1).reshape(heads, -1))
