"""Pooling as the token mixer (PoolFormer, arXiv:2111.11418): ``avg_pool3x3(x) - x``."""

from __future__ import annotations

from torch import Tensor, nn

from ..geometry import Size
from ..pooling import padded_avg_pool


class PoolMixer(nn.Module):
    """Mean of the valid neighbours in a k x k window, minus the input: (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: channels (unused: pooling has no weights).
        grid: unused.
        kernel_size: window side, odd.
    """

    def __init__(self, dim: int, grid: Size | None = None, kernel_size: int = 3) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        return padded_avg_pool(x, self.kernel_size) - x
