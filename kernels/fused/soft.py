"""Products with a Gaussian kernel in Triton: the kernel's numbers never leave the chip.

A program takes a tile of rows of one head and walks over a share of the columns in blocks. Everything is in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
PROGRAMS = 512  # a product with few rows is split along its columns until about so many programs run


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    a_ptr, b_ptr, w_ptr, out_ptr, a_n, a_r, a_d, b_n, b_c, b_d, w_n, w_c, w_e, rows, columns, share, dim, width,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    tile, head, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    heads = tl.num_programs(1)
    row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    channel, target = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    is_row, is_channel, is_target = row < rows, channel < dim, target < width
    a = tl.load(
        a_ptr + head * a_n + row[:, None] * a_r + channel[None, :] * a_d,
        mask=is_row[:, None] & is_channel[None, :], other=0.0,
    ).to(tl.float32)  # fmt: skip
    half_a = tl.sum(a * a, 1) / 2
    mixed = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)
    for start in range(part * share, min((part + 1) * share, columns), BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        is_column = column < columns
        b = tl.load(
            b_ptr + head * b_n + column[:, None] * b_c + channel[None, :] * b_d,
            mask=is_column[:, None] & is_channel[None, :], other=0.0,
        ).to(tl.float32)  # fmt: skip
        w = tl.load(
            w_ptr + head * w_n + column[:, None] * w_c + target[None, :] * w_e,
            mask=is_column[:, None] & is_target[None, :], other=0.0,
        ).to(tl.float32)  # fmt: skip
        exponent = tl.dot(a, tl.trans(b), input_precision="ieee") - half_a[:, None] - (tl.sum(b * b, 1) / 2)[None, :]
        mixed += tl.dot(tl.exp(tl.minimum(exponent, 0.0)), w, input_precision="ieee")
    place = ((part * heads + head) * rows + row[:, None]) * width + target[None, :]
    tl.store(out_ptr + place, mixed, mask=is_row[:, None] & is_target[None, :])


def gaussian_product(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """``K(a, b) w`` in float32: a (n, R, D), b (n, C, D), w (n, C, E) -> (n, R, E)."""
    (count, rows, dim), columns, width = a.shape, b.shape[1], w.shape[2]
    tiles, blocks = triton.cdiv(rows, BLOCK), triton.cdiv(columns, BLOCK)
    parts = max(1, min(blocks, PROGRAMS // (tiles * count)))
    share = triton.cdiv(blocks, parts) * BLOCK
    parts = triton.cdiv(columns, share)
    out = torch.empty(parts, count, rows, width, dtype=torch.float32, device=a.device)
    _product[(tiles, count, parts)](
        a, b, w, out, *a.stride(), *b.stride(), *w.stride(), rows, columns, share, dim, width,
        BLOCK_R=BLOCK, BLOCK_C=BLOCK, BLOCK_D=max(16, triton.next_power_of_2(dim)),
        BLOCK_E=max(16, triton.next_power_of_2(width)),
    )  # fmt: skip
    return out[0] if parts == 1 else out.sum(0)
