"""Large kernel attention (VAN, arXiv:2202.09741)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ..geometry import Size
from ..residual import FoldedResidual


class LargeKernelGate(nn.Module):
    """``x * conv1x1(dilated 7x7 depthwise(5x5 depthwise(x)))``: a 21 x 21 receptive field from three small kernels.

    (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, 7, padding=9, groups=dim, dilation=3)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv1(self.conv_spatial(self.conv0(x)))


class LargeKernelAttention(nn.Module):
    """``x + proj_2(gate(gelu(proj_1(x))))``: (B, C, H, W) -> (B, C, H, W), with its own shortcut from its input.

    Args:
        dim: channels.
        grid: unused.
    """

    def __init__(self, dim: int, grid: Size | None = None) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(dim, dim, 1)
        self.act = nn.GELU()
        self.gate = LargeKernelGate(dim)
        self.proj_2 = nn.Conv2d(dim, dim, 1)

    def folded(self) -> nn.Module:
        """The same sum as a `FoldedResidual`, whose chain fuses with its neighbours."""
        inner = OrderedDict(proj_1=self.proj_1, act=self.act, gate=self.gate, proj_2=self.proj_2)
        return FoldedResidual(nn.Sequential(inner))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj_2(self.gate(self.act(self.proj_1(x))))
