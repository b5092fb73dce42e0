"""Two-dimensional rotary position embedding (arXiv:2104.09864; in the form of arXiv:2411.07635)."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..kernels import exporting
from ..kernels.rotary import Rope, rope_tables
from .geometry import Size

BASE = 10000.0


def frequencies(head_dim: int, device: torch.device | None = None) -> Tensor:
    """(head_dim / 4,) float32 angles per step, from 1 down to 1 / 10000.

    In float32 whatever the model's type is, as the authors' tables are.

    Raises:
        ValueError: ``head_dim`` is not a multiple of four: two axes of pairs.
    """
    if head_dim % 4:
        raise ValueError(f"two-dimensional rotary embedding takes heads of a multiple of 4 channels, not {head_dim}")
    return 1.0 / BASE ** torch.linspace(0, 1, head_dim // 4, dtype=torch.float32, device=device)


def map_tables(head_dim: int, size: Size, like: Tensor, by_channel: bool = False) -> Rope:
    """Cosines and signed sines (H * W, head_dim) for a map.

    The first half of a head turns by row, the second by column. The tables are of the type of ``like``, or float32
    where that is half precision; with ``by_channel``, tokens are adjacent in memory, as in a (B, C, H, W) map.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    step = frequencies(head_dim, like.device).to(dtype)
    rows, cols = (torch.arange(n, dtype=dtype, device=like.device)[:, None] * step for n in size)  # (n, head_dim / 4)
    shape = (*size, head_dim // 4)
    angles = torch.cat((rows[:, None].expand(shape), cols[None].expand(shape)), dim=-1)
    cos, sin = rope_tables(angles.flatten(0, 1))
    return (cos.t().contiguous().t(), sin.t().contiguous().t()) if by_channel else (cos, sin)


@register_notrace_module
class RotaryEmbedding(nn.Module):
    """Rotary tables of a map: ``forward(size, like)`` gives cosines and signed sines (H * W, head_dim).

    They lie in memory as the map ``like`` does.

    Args:
        head_dim: channels of a head, a multiple of 4.
        grid: (h, w) that the tables are kept for when the model is folded.
    """

    def __init__(self, head_dim: int, grid: Size | None = None) -> None:
        super().__init__()
        frequencies(head_dim)  # refuses widths that do not fit
        self.head_dim, self.grid = head_dim, grid

    def forward(self, size: Size, like: Tensor) -> Rope:
        return map_tables(self.head_dim, size, like, not exporting() and like.stride(1) != 1)

    def fixed(self, like: Tensor) -> nn.Module:
        """The same with the tables of its own grid made beforehand, in the type of ``like``."""
        return self if self.grid is None else FixedRotaryEmbedding(self.head_dim, self.grid, like)


@register_notrace_module
class FixedRotaryEmbedding(nn.Module):
    """`RotaryEmbedding` whose tables of its own grid are made, for channels-last maps, as the deploy form has them.

    Other maps get theirs, and under export all do.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, grid: Size, like: Tensor) -> None:
        super().__init__()
        self.head_dim, self.grid = head_dim, grid
        cos, sin = map_tables(head_dim, grid, like)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, size: Size, like: Tensor) -> Rope:
        if not exporting() and size == self.grid:  # a table would fix the size of an exported graph
            return self.cos, self.sin
        return map_tables(self.head_dim, size, like, not exporting() and like.stride(1) != 1)
