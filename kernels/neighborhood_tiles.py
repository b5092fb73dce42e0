"""Neighborhood attention by tiles: which queries and keys meet, as index tables made once per map size.

A tile of th x tw queries needs the union of their windows, a rectangle of at most (th + k - 1) x (tw + k - 1) keys;
pairs outside a query's own window are masked. With dilation, the positions of an axis fall into residue classes that
never meet; a tile lies in one class per axis. Tiles whose masks agree share one (see `TilePlan.classes`): an axis has
one mask for its interior and a few for its ends, whatever the size of the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_TILE = 16  # side of a tile, unless one tile takes the whole map
Ints = NDArray[np.int64]


class AxisPlan(NamedTuple):
    """Tiles along one axis of ``length`` positions: T tiles of t queries and m keys."""

    queries: Ints  # (T, t) positions; the last one of a residue class is repeated to fill a tile
    keys: Ints  # (T, m) positions
    patterns: Ints  # (P, t, m) key minus query in steps of the dilation, plus kernel - 1; -1 outside the window
    pattern: Ints  # (T,) the pattern of each tile
    slots: Ints  # (length,) where in (T, t) each position is


@dataclass(frozen=True)
class TilePlan:
    """Tiles of a map: T tiles of ``num_queries`` queries and ``num_keys`` keys each.

    Attributes:
        queries: (T * num_queries,) flat positions in the map.
        keys: (T * num_keys,) flat positions in the map.
        slots: (H * W,) where in ``queries`` each position is.
        first: (T * num_queries,) whether a query is there for the first time, and not to fill its tile.
        offsets: (P * num_queries * num_keys,) entries of the flattened bias table; its length where no pair meets.
        classes: (T,) the mask of each tile, among P.
        masked: whether any pair does not meet.
        entries: length of the flattened bias table.
    """

    num_queries: int
    num_keys: int
    queries: Tensor
    keys: Tensor
    slots: Tensor
    first: Tensor
    offsets: Tensor
    classes: Tensor
    masked: bool
    entries: int

    @property
    def num_tiles(self) -> int:
        return len(self.classes)


def plan_axis(length: int, kernel: int, dilation: int, tile: int) -> AxisPlan:
    """Tiles of at most ``tile`` queries; every residue class holds at least ``kernel`` positions."""
    longest = -(-length // dilation)
    tile = min(tile, longest)
    span = min(tile + kernel - 1, longest)
    starts = [(r, s) for r in range(dilation) for s in range(0, -(-(length - r) // dilation), tile)]
    residue, first = np.array(starts, np.int64).T[:, :, None]  # (T, 1) each
    count = -(-(length - residue) // dilation)  # positions in the class
    query = np.minimum(first + np.arange(tile), count - 1)  # (T, t), within the class
    key = np.clip(first - kernel // 2, 0, np.maximum(count - span, 0)) + np.arange(span)  # (T, m)
    window = np.clip(query - kernel // 2, 0, count - kernel)[:, :, None]
    meets = (key[:, None] >= window) & (key[:, None] < window + kernel)
    offsets = np.where(meets, key[:, None] - query[:, :, None] + kernel - 1, -1)
    patterns, pattern = np.unique(offsets.reshape(len(starts), -1), axis=0, return_inverse=True)
    queries = query * dilation + residue
    slots = np.empty(length, np.int64)
    slots[queries.ravel()[::-1]] = np.arange(queries.size)[::-1]  # the first of repeated positions stays
    keys = np.minimum(key, count - 1) * dilation + residue
    return AxisPlan(queries, keys, patterns.reshape(-1, tile, span), pattern.reshape(-1), slots)


def _outer(rows: Ints, cols: Ints, width: int) -> Ints:
    """(Ty, a), (Tx, b) positions on both axes -> (Ty * Tx * a * b,) flat positions in a map ``width`` wide."""
    return (rows[:, None, :, None] * width + cols[None, :, None, :]).reshape(-1)


def _pairs(rows: AxisPlan, cols: AxisPlan, kernel: int) -> Ints:
    """(P, num_queries * num_keys) entries of the flattened table of side 2 * kernel - 1, its length where none is."""
    side = 2 * kernel - 1
    down, across = rows.patterns[:, None, :, None, :, None], cols.patterns[None, :, None, :, None, :]
    pairs = np.where((down < 0) | (across < 0), side * side, down * side + across)
    return pairs.reshape(len(rows.patterns) * len(cols.patterns), -1)


def _slots(rows: AxisPlan, cols: AxisPlan) -> Ints:
    (_, th), (tiles_x, tw) = rows.queries.shape, cols.queries.shape
    tile_y, y = np.divmod(rows.slots[:, None], th)
    tile_x, x = np.divmod(cols.slots[None, :], tw)
    slots: Ints = ((tile_y * tiles_x + tile_x) * th + y) * tw + x
    return slots.reshape(-1)


def axis_cost(length: int, kernel: int, dilation: int, tile: int) -> tuple[int, int, int]:
    """(tiles, queries, keys) of `plan_axis` without the tables."""
    longest = -(-length // dilation)
    tile = min(tile, longest)
    counts = (-(-(length - residue) // dilation) for residue in range(dilation))
    return sum(-(-count // tile) for count in counts), tile, min(tile + kernel - 1, longest)


def choose_tile(size: tuple[int, int], kernel: int, dilation: int) -> tuple[int, int]:
    """Sides of a tile: the fewest query-key pairs, counting what a tile costs beside them (fitted on a CPU)."""
    best, chosen = float("inf"), (1, 1)
    sides = [sorted({min(t, -(-n // dilation)) for t in range(1, MAX_TILE + 1)}) for n in size]
    for th in sides[0]:
        ty, qy, ky = axis_cost(size[0], kernel, dilation, th)
        for tw in sides[1]:
            tx, qx, kx = axis_cost(size[1], kernel, dilation, tw)
            cost = ty * tx * (qy * qx + 16) * (ky * kx + 16)
            if cost < best:
                best, chosen = cost, (th, tw)
    return chosen


@lru_cache(maxsize=128)
def tile_plan(
    size: tuple[int, int], kernel: int, dilation: int, device: torch.device, tile: tuple[int, int] | None = None
) -> TilePlan:
    """The tiles of an (H, W) map. Tables hold O(H W) integers and are kept for later calls."""
    tile = tile or choose_tile(size, kernel, dilation)
    rows, cols = (plan_axis(n, kernel, dilation, t) for n, t in zip(size, tile, strict=True))
    pairs, slots = _pairs(rows, cols, kernel), _slots(rows, cols)
    first = np.zeros(rows.queries.size * cols.queries.size, bool)
    first[slots] = True
    classes = rows.pattern[:, None] * len(cols.patterns) + cols.pattern

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    with torch.inference_mode(False):
        return TilePlan(
            num_queries=rows.queries.shape[1] * cols.queries.shape[1],
            num_keys=rows.keys.shape[1] * cols.keys.shape[1],
            queries=tensor(_outer(rows.queries, cols.queries, size[1])),
            keys=tensor(_outer(rows.keys, cols.keys, size[1])),
            slots=tensor(slots),
            first=tensor(first),
            offsets=tensor(pairs.reshape(-1)),
            classes=tensor(classes.reshape(-1)),
            masked=bool((pairs == (2 * kernel - 1) ** 2).any()),
            entries=(2 * kernel - 1) ** 2,
        )


# tensors in tiles


def rows_of(x: Tensor) -> Tensor:
    """(B, heads, H, W, D) -> (B, N, heads * D), positions in rows."""
    batch, _, height, width, _ = x.shape
    return x.permute(0, 2, 3, 1, 4).reshape(batch, height * width, -1).contiguous()


def map_of(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `rows_of`, with the shape of ``like``."""
    batch, heads, height, width, dim = like.shape
    return rows.reshape(batch, height, width, heads, dim).permute(0, 3, 1, 2, 4)


def additive_masks(plan: TilePlan, bias: Tensor | None, like: Tensor) -> Tensor | None:
    """(P, heads, queries, keys) additive masks; one head, or None where every pair meets, if there is no bias."""
    if bias is None and not plan.masked:
        return None
    table = like.new_zeros(1, plan.entries) if bias is None else bias.flatten(1).to(like.dtype)
    table = torch.cat((table, table.new_full((len(table), 1), float("-inf"))), 1)
    masks = table.index_select(1, plan.offsets)
    return masks.reshape(len(table), -1, plan.num_queries, plan.num_keys).transpose(0, 1)


def take_tiles(rows: Tensor, index: Tensor, count: int, heads: int) -> Tensor:
    """(B, N, heads * D) and positions of tiles of ``count`` -> (B * tiles, heads, count, D)."""
    return rows.index_select(1, index).reshape(-1, count, heads, rows.shape[2] // heads).transpose(1, 2)
