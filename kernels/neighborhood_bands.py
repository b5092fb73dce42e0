"""Neighborhood attention as exported graphs compute it: by tiles of a map of known size, with slices and no gathers.

An axis is cut into tiles of t queries, which need min(t + k - 1, L) keys in a row. Inner tiles mask alike, whatever the
size of the map; those at its ends mask each in its own way. Tiles that mask alike along both axes attend together, in
dense products with one additive mask: for t = k about four times the products that are needed, and no copies of keys
but where tiles overlap. A short axis is one tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import attention_reference
from .windows import PADDED, Size, from_heads, to_heads, to_tokens


class Band(NamedTuple):
    """Tiles along one axis that mask alike: where the first one's queries and each one's keys begin."""

    first: int
    keys: tuple[int, ...]


class Axis(NamedTuple):
    """An axis of ``length`` positions in ``bands``, whose tiles have ``tile`` queries and ``span`` keys each."""

    length: int
    kernel: int
    tile: int
    span: int
    bands: list[Band]


def axis_bands(length: int, kernel: int) -> Axis:
    """The tiles of an axis; the last one may reach beyond it."""
    count = 1 if length <= 2 * kernel else length // kernel
    tile = -(-length // count)
    span, bands = min(tile + kernel - 1, length), list[Band]()
    whole = False
    for first in range(0, length, tile):
        wanted = first - kernel // 2
        key = min(max(wanted, 0), length - span)
        inner = key == wanted and first + tile - 1 <= length - 1 - kernel // 2
        if inner and whole:
            bands[-1] = Band(bands[-1].first, (*bands[-1].keys, key))
        else:
            bands.append(Band(first, (key,)))
        whole = inner
    return Axis(length, kernel, tile, span, bands)


def offsets(axis: Axis, band: Band, device: torch.device) -> tuple[Tensor, Tensor]:
    """(tile, span) key minus query plus kernel - 1 of a tile of ``band``, and whether they meet."""
    query = (torch.arange(axis.tile, device=device) + band.first).clamp(max=axis.length - 1)[:, None]
    key = torch.arange(axis.span, device=device) + band.keys[0]
    window = (query - axis.kernel // 2).clamp(min=0, max=axis.length - axis.kernel)
    return key - query + axis.kernel - 1, (key >= window) & (key < window + axis.kernel)


def _mask(down: tuple[Tensor, Tensor], across: tuple[Tensor, Tensor], bias: Tensor | None, like: Tensor) -> Tensor:
    """What is added to the logits (N, M) of a tile, or (heads, N, M) with a bias (heads, 2k - 1, 2k - 1)."""
    meets = down[1][:, None, :, None] & across[1][None, :, None, :]
    shape = (meets.shape[0] * meets.shape[1], meets.shape[2] * meets.shape[3])
    apart = (~meets).reshape(shape).to(like.dtype) * PADDED
    if bias is None:
        return apart
    rows, cols = (axis[0].clamp(min=0, max=bias.shape[2] - 1) for axis in (down, across))
    entries = (rows[:, None, :, None] * bias.shape[2] + cols[None, :, None, :]).reshape(shape)
    return bias.flatten(1)[:, entries] + apart


def _tiles_of_keys(x: Tensor, dim: int, axis: Axis, band: Band) -> Tensor:
    """The keys of each tile of ``band`` along axis ``dim``, side by side."""
    if len(band.keys) == 1 and axis.span == axis.length:
        return x
    parts = [x.narrow(dim, key, axis.span) for key in band.keys]
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def neighborhood_attention_banded(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Neighborhood attention without dilation: (B, heads, H, W, D), H and W known and at least ``kernel_size``."""
    heads, height, width = q.shape[1:4]
    down, across = axis_bands(height, kernel_size), axis_bands(width, kernel_size)
    q, k, v = (x.permute(0, 1, 4, 2, 3).flatten(1, 2) for x in (q, k, v))  # (B, heads * D, H, W)
    lack = (-height % down.tile, -width % across.tile)
    q = F.pad(q, (0, lack[1], 0, lack[0])) if any(lack) else q
    both, rows = torch.cat((k, v), dim=1), []
    for row in down.bands:
        near, mine, parts = _tiles_of_keys(both, 2, down, row), offsets(down, row, q.device), []
        for col in across.bands:
            mask = _mask(mine, offsets(across, col, q.device), bias, q)
            size = (down.tile * len(row.keys), across.tile * len(col.keys))
            queries = q.narrow(2, row.first, size[0]).narrow(3, col.first, size[1])
            keys = _tiles_of_keys(near, 3, across, col)
            parts.append(_attend(queries, keys, (down.tile, across.tile), (down.span, across.span), heads, scale, mask))
        rows.append(torch.cat(parts, dim=3) if len(parts) > 1 else parts[0])
    out = torch.cat(rows, dim=2) if len(rows) > 1 else rows[0]
    out = out[:, :, :height, :width]
    return out.reshape(out.shape[0], heads, -1, height, width).permute(0, 1, 3, 4, 2)


def _attend(q: Tensor, kv: Tensor, tile: Size, span: Size, heads: int, scale: float, mask: Tensor) -> Tensor:
    """A map of whole tiles of queries to the keys and values (B, 2 * heads * D, ...) of whole spans."""
    k, v = to_tokens(kv, span).chunk(2, dim=2)
    queries, keys, values = (to_heads(x, heads) for x in (to_tokens(q, tile), k, v))
    return from_heads(attention_reference(queries, keys, values, scale, mask), tile, (q.shape[2], q.shape[3]))


def by_residues(x: Tensor, dilation: int) -> Tensor:
    """(B, heads, H, W, D) -> (B, heads * d * d, H / d, W / d, D): residue classes, which never meet, as heads."""
    batch, heads, height, width, dim = x.shape
    apart = F.pixel_unshuffle(x.permute(0, 1, 4, 2, 3).flatten(1, 2), dilation)  # (B, heads * D * d * d, H / d, W / d)
    apart = apart.reshape(batch, heads, dim, dilation**2, -1).transpose(2, 3)
    size = (height // dilation, width // dilation)
    return apart.reshape(batch, heads * dilation**2, dim, *size).permute(0, 1, 3, 4, 2)


def from_residues(x: Tensor, dilation: int) -> Tensor:
    """The inverse of `by_residues`."""
    batch, classes, height, width, dim = x.shape
    heads = classes // dilation**2
    joined = x.permute(0, 1, 4, 2, 3).reshape(batch, heads, dilation**2, dim, -1).transpose(2, 3)
    whole = F.pixel_shuffle(joined.reshape(batch, heads * dim * dilation**2, height, width), dilation)
    return whole.reshape(batch, heads, dim, height * dilation, width * dilation).permute(0, 1, 3, 4, 2)
