"""DFC attention as a token mixer (GhostNetV2, arXiv:2211.12905)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from ..geometry import Size
from ..ghost import DFCGate, GhostConv


class DFCMixer(GhostConv):
    """A ghost convolution weighted by what stands in the same row and column: (B, C, H, W) -> (B, C, H, W), O(N C^2).

    See `mixzoo.blocks.ghost` for both parts, and for how the gate treats odd sides.

    Args:
        dim: channels C.
        grid: unused.
        kernel_size: reach of the gate along rows and columns of the halved map, odd.
        act: activation factory of the ghost convolution.
    """

    def __init__(
        self, dim: int, grid: Size | None = None, kernel_size: int = 5, act: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__(dim, dim, act, partial(DFCGate, kernel_size=kernel_size))
