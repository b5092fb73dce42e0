"""Rotary position embedding: pairs of channels turned by an angle that depends on the position (arXiv:2104.09864).

``x'[2i] = x[2i] cos - x[2i+1] sin`` and ``x'[2i+1] = x[2i+1] cos + x[2i] sin``, in real numbers and without strided
slices, so that any runtime takes the graph. Time and memory O(N D) for x (..., N, D).
"""

from __future__ import annotations

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]  # cosines and signed sines (N, D)


def rope_tables(angles: Tensor) -> Rope:
    """Tables for angles (..., D / 2), one for each pair of neighbouring channels: cosines and signed sines (..., D).

    The sine of the even channel of a pair carries the minus sign, so that turning is ``x * cos + swapped(x) * sin``.
    """
    sin = angles.sin()
    return angles.cos().repeat_interleave(2, dim=-1), torch.stack((-sin, sin), dim=-1).flatten(-2)


def rotate_pairs(x: Tensor, rope: Rope) -> Tensor:
    """``x`` (..., N, D) turned by tables (N, D); fastest where both lie in memory in the same order."""
    cos, sin = rope
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cos, swapped, sin)
