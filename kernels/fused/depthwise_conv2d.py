"""Depthwise convolution with large kernels in Triton, as products of matrices.

A row of taps acts on a row of the map as a banded matrix, T[p, w] = weight[(p - w) / dilation]: a program takes a tile
of rows of one channel, of any images, times the band of every row of taps. The gradient of the map is the same with
the taps in reverse. That of a row of taps is the sums of the diagonals of one matrix, the product of the gradients of
all rows with the rows that they came from. Sums are made in float32, and nothing is added atomically.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .precision import product_precision

MAX_ROWS, MAX_TILE = 64, 4096  # rows of a program; numbers that it reads at once, for shared memory of 96 KiB


@triton.jit
def _rows(base, image, y, column, is_row, channel, channels, height, width):
    """(rows, columns) of the map at ``base`` in float32; zeros outside of it."""
    inside = (is_row & (y >= 0) & (y < height))[:, None] & ((column >= 0) & (column < width))[None, :]
    place = ((image.to(tl.int64) * channels + channel) * height + y) * width
    return tl.load(base + place[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _forward(
    x, weight, bias, out, rows, channels, height, width, kh, kw, dilation,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(2)
    first = tl.program_id(1) * COLS
    image, y, is_row = row // height, row % height, row < rows
    column = first - (kw // 2) * dilation + tl.arange(0, SPAN)
    steps = tl.arange(0, SPAN)[:, None] - tl.arange(0, COLS)[None, :]  # from an output to what is read
    tap = steps // dilation
    is_tap = (steps >= 0) & (steps % dilation == 0) & (tap < kw)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for i in range(kh):
        read = _rows(x, image, y + (i - kh // 2) * dilation, column, is_row, channel, channels, height, width)
        band = tl.load(weight + (channel * kh + i) * kw + tap, mask=is_tap, other=0.0).to(tl.float32)
        total += tl.dot(read, band, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + channel).to(tl.float32)
    column = first + tl.arange(0, COLS)
    place = ((image.to(tl.int64) * channels + channel) * height + y) * width
    inside = is_row[:, None] & (column < width)[None, :]
    tl.store(out + place[:, None] + column[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _taps(
    x, grad, out, rows, channels, height, width, kh, kw, dilation,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """The gradient of one row of taps of one channel, over all rows of all images."""
    i, channel = tl.program_id(0), tl.program_id(1)
    total = tl.zeros((COLS, SPAN), tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        image, y, is_row = row // height, row % height, row < rows
        for first in range(0, width, COLS):
            column = first + tl.arange(0, COLS)
            given = _rows(grad, image, y, column, is_row, channel, channels, height, width)
            column = first - (kw // 2) * dilation + tl.arange(0, SPAN)
            read = _rows(x, image, y + (i - kh // 2) * dilation, column, is_row, channel, channels, height, width)
            total += tl.dot(tl.trans(given), read, input_precision=PRECISION)
    steps = tl.arange(0, SPAN)[None, :] - tl.arange(0, COLS)[:, None]
    for j in range(kw):
        diagonal = tl.sum(tl.sum(tl.where(steps == j * dilation, total, 0.0), 1), 0)
        tl.store(out + (channel * kh + i) * kw + j, diagonal)


def _blocks(x: Tensor, weight: Tensor, dilation: int) -> dict[str, int | str]:
    """Sizes of a program's tile."""
    columns = 16 if x.shape[3] <= 16 else 32
    span = triton.next_power_of_2(columns + (weight.shape[3] - 1) * dilation)
    rows = min(MAX_ROWS, MAX_TILE // span, max(16, triton.next_power_of_2(x.shape[0] * x.shape[2])))
    return {"PRECISION": product_precision(x.dtype), "ROWS": rows, "COLS": columns, "SPAN": span}


def depthwise_forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """x (B, C, H, W) and weight (C, 1, kh, kw), both contiguous, bias (C,) -> (B, C, H, W)."""
    (batch, channels, height, width), (kh, kw) = x.shape, weight.shape[2:]
    blocks, out = _blocks(x, weight, dilation), torch.empty_like(x)
    grid = (triton.cdiv(batch * height, blocks["ROWS"]), triton.cdiv(width, blocks["COLS"]), channels)
    _forward[grid](
        x, weight, x if bias is None else bias, out, batch * height, channels, height, width, kh, kw, dilation,
        HAS_BIAS=bias is not None, **blocks,
    )  # fmt: skip
    return out


def depthwise_taps(x: Tensor, grad: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """The gradient of ``weight`` in float32, from the map and the gradient of the result, both contiguous."""
    (batch, channels, height, width), (kh, kw) = x.shape, weight.shape[2:]
    out = torch.empty(weight.shape, dtype=torch.float32, device=x.device)
    blocks = _blocks(x, weight, dilation)
    _taps[(kh, channels)](x, grad, out, batch * height, channels, height, width, kh, kw, dilation, **blocks)
    return out
