"""Adaptive frequency filter (AFFNet, arXiv:2307.14008)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...kernels.frequency_filter import frequency_filter
from ..geometry import Size, num_heads_for


class FrequencyFilterMixer(nn.Module):
    """A global convolution by a mask over the input's own spectrum, with its own shortcut: (B, C, H, W) -> the same.

    The mask is made by two complex linear layers within channel groups, so no weight depends on the map's size.
    O(N log N C + N C^2 / groups) for N = H * W; see `mixzoo.kernels.frequency_filter`.

    Args:
        dim: channels C.
        grid: unused.
        groups: channel groups of the linear layers; where it does not divide ``dim``, the nearest count that does.
        act: activation factory, applied to real and imaginary parts.
        threshold: mask values of at most this size become zero.
    """

    def __init__(
        self,
        dim: int,
        grid: Size | None = None,
        groups: int = 8,
        act: Callable[[], nn.Module] = nn.ReLU,
        threshold: float = 0.01,
    ) -> None:
        super().__init__()
        groups = num_heads_for(dim, dim / groups)
        width = dim // groups
        self.w1 = nn.Parameter(0.02 * torch.randn(2, groups, width, width))
        self.b1 = nn.Parameter(0.02 * torch.randn(2, groups, width))
        self.w2 = nn.Parameter(0.02 * torch.randn(2, groups, width, width))
        self.b2 = nn.Parameter(0.02 * torch.randn(2, groups, width))
        self.act = act()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return frequency_filter(x, self.w1, self.b1, self.w2, self.b2, self.act, self.threshold)
