"""Factorised self-attention (FaViT): part of the channels looks at a reduced map, the others at averaged windows."""

from __future__ import annotations

from collections import OrderedDict

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels import attention
from ...kernels.dispatch import exporting, known
from ..conv import DepthwiseConv2d
from ..geometry import Size, num_heads_for
from ..pooling import pooling_matrix
from .attention import join_heads, split_heads
from .spatial_reduction import StridedReduction

SIDE = 7  # taps on a side of a window


def mirrored(positions: Tensor, size: int) -> Tensor:
    """Positions behind the edge of an axis of ``size``, mirrored at it, as often as it takes."""
    period = torch.full_like(positions, 2 * size - 2).clamp(min=1)
    inside = positions % period
    return torch.minimum(inside, period - inside)


def window_taps(size: Size, dilation: int, device: torch.device) -> tuple[Tensor, int]:
    """Where every tap of every window is in a flat h x w map, (49 * windows) taps first, and the number of windows.

    Windows of ``dilation * 6 + 1`` positions a side lie side by side, in row order; what is behind the edge of the map
    is mirrored at it.
    """
    reach = dilation * (SIDE - 1) + 1
    rows, cols = ((n + reach - 1) // reach for n in size)
    number = torch.arange(SIDE * SIDE * rows * cols, device=device)  # no axis is as short as one, which graphs fix
    tap = torch.div(number, rows * cols, rounding_mode="floor")
    window = number - tap * (rows * cols)
    tap_row, row = (torch.div(n, by, rounding_mode="floor") for n, by in ((tap, SIDE), (window, cols)))
    y = mirrored(tap_row * dilation + row * reach, size[0])
    x = mirrored((tap - tap_row * SIDE) * dilation + (window - row * cols) * reach, size[1])
    return y * size[1] + x, rows * cols


def axis_taps(length: int, dilation: int, device: torch.device) -> Tensor:
    """Positions of the 7 taps of the windows along one axis, (7 * windows,) tap by tap; see `window_taps`."""
    reach = dilation * (SIDE - 1) + 1
    taps = torch.arange(SIDE, device=device) * dilation
    starts = torch.arange((length + reach - 1) // reach, device=device) * reach
    return mirrored((taps[:, None] + starts).flatten(), length)


def run_means(x: Tensor, count: int) -> Tensor:
    """(B, N, count * L) -> (B, N, count): means of runs of L; by a product where a graph leaves L open."""
    if known(x.shape[2]):
        return x.unflatten(2, (count, -1)).mean(3)
    return x @ pooling_matrix(x.shape[2], count, x).t()


class AveragedWindow(nn.Module):
    """Keys and values of one window that stands for all: (B, C, H, W) -> two of (B, heads, 49, C / heads).

    Dilated 7 x 7 windows lie side by side, mirrored at the bottom and right. As in the official code, the mean of a tap
    is not over windows: the values of a head, window by window and channel by channel in each, are averaged in runs as
    long as there are windows, so that channels mix. Two linear layers make keys and values of the result, and a
    depthwise convolution of the values over the window is added to them.

    Args:
        dim: channels C.
        num_heads: divides ``dim``.
        dilation: distance between taps.
    """

    def __init__(self, dim: int, num_heads: int, dilation: int) -> None:
        super().__init__()
        width = dim // num_heads
        self.num_heads, self.dilation = num_heads, dilation
        self.fc = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.dwconv = DepthwiseConv2d(dim, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.kv(self.fc(self.averaged(x))).chunk(2, dim=3)
        window = v.transpose(2, 3).reshape(v.shape[0], -1, SIDE, SIDE)  # (B, C, 7, 7)
        return k, split_heads(window + self.dwconv(window), self.num_heads)

    def averaged(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, 49, C / heads)."""
        if exporting() and known(*x.shape[2:]):
            return self._by_products(x)
        taps, windows = window_taps((x.shape[2], x.shape[3]), self.dilation, x.device)
        width = x.shape[1] // self.num_heads
        positions = (
            x.unflatten(1, (self.num_heads, width)).flatten(0, 1).flatten(2).transpose(1, 2)
        )  # (B * heads, N, D)
        runs = positions.index_select(1, taps).flatten(1).unflatten(1, (SIDE * SIDE, windows * width))
        return run_means(runs, width).unflatten(0, (-1, self.num_heads))

    def _by_products(self, x: Tensor) -> Tensor:
        """`averaged` with taps taken by products with ones and zeros: ncnn gathers nothing."""
        batch, channels, height, width = x.shape
        down, across = (axis_taps(n, self.dilation, x.device) for n in (height, width))
        rows, cols = (_one_hot(taps, n, x) for taps, n in ((down, height), (across, width)))
        taps = (rows @ x @ cols.t()).reshape(batch, channels * SIDE, down.shape[0] // SIDE, SIDE, -1).transpose(2, 3)
        taps = taps.reshape(batch, self.num_heads, channels // self.num_heads, SIDE * SIDE, -1)
        runs = taps.permute(0, 1, 3, 4, 2)  # (B, heads, 49, windows, D)
        return runs.reshape(*runs.shape[:3], runs.shape[4], runs.shape[3]).mean(4)


def _one_hot(positions: Tensor, length: int, like: Tensor) -> Tensor:
    """(N,) positions of an axis -> (N, length), one where a position is."""
    return (positions[:, None] == torch.arange(length, device=like.device)).to(like.dtype)


@register_notrace_module
class FactorisedAttention(nn.Module):
    """FaSA: softmax attention to a reduced map, to an averaged window, and to an averaged dilated one, by channels.

    (B, C, H, W) -> (B, C, H, W), O(N (N / ratio^2 + 98) C) for N = H * W. The first C / 8 channels are one head over
    the map reduced by ``ratio``, with a depthwise convolution of the values added to them. The others are heads, each
    in two parts, of dilation 1 and ``ratio``, or in one where that is 1; a part has one 7 x 7 window of keys and values
    for all queries (`AveragedWindow`). Queries lie head by head, keys, values and results part by part. No published
    paper; facts of the authors' code, github.com/q2479036243/FaViT.

    Rows and columns that do not fill a reduction kernel are left out of the keys; the authors' code takes no such map,
    nor one so small that its windows are mirrored more than once.

    Args:
        dim: channels C.
        grid: unused.
        num_heads: heads of the window parts, or the nearest count that divides them; by default about C / 32.
        ratio: reduction of the map, and dilation of the last part.
    """

    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(self, dim: int, grid: Size | None = None, num_heads: int | None = None, ratio: int = 2) -> None:
        super().__init__()
        whole = max(1, dim // 8)
        rest = dim - whole
        self.num_heads = heads = num_heads_for(rest, rest / (num_heads or num_heads_for(dim, 32)))
        width = rest // heads
        self.whole = whole
        self.widths = (width // 2, width - width // 2) if ratio > 1 and width > 1 else (width,)  # of a head's parts
        self.q = nn.Conv2d(dim, dim, 1)
        self.reduce = StridedReduction(whole, ratio)
        self.kv = nn.Conv2d(whole, 2 * whole, 1)
        self.dwconv = DepthwiseConv2d(whole, 3)
        self.local = nn.Sequential(OrderedDict(dw=DepthwiseConv2d(rest, 3), point=nn.Conv2d(rest, rest, 1)))
        self.windows = nn.ModuleList(
            AveragedWindow(heads * part, heads, dilation)
            for part, dilation in zip(self.widths, (1, ratio), strict=False)
        )
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        whole, rest = x.split((self.whole, x.shape[1] - self.whole), dim=1)
        query, queries = self.q(x).split((self.whole, x.shape[1] - self.whole), dim=1)
        outs = [self._reduced(query, whole)]
        parts = split_heads(queries, self.num_heads).split(self.widths, dim=3)
        sources = self.local(rest).split([self.num_heads * width for width in self.widths], dim=1)
        for part, source, window, width in zip(parts, sources, self.windows, self.widths, strict=True):
            k, v = window(source)
            outs.append(join_heads(attention(part, k, v, width**-0.5), x))
        return self.proj(torch.cat(outs, dim=1))

    def _reduced(self, query: Tensor, x: Tensor) -> Tensor:
        k, v = self.kv(self.reduce(x)).chunk(2, dim=1)
        k, v = split_heads(k, 1), split_heads(v + self.dwconv(v), 1)
        return join_heads(attention(split_heads(query, 1), k, v, self.whole**-0.5), query)
