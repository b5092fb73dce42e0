"""Large kernel attention (VAN, arXiv:2202.09741)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ...kernels.depthwise_conv2d import decomposed
from ..conv import DepthwiseConv2d
from ..geometry import Size
from ..residual import FoldedResidual


class LargeKernelGate(nn.Module):
    """``x * conv1x1(dilated depthwise(depthwise(x)))``: the receptive field of a large kernel from three small ones.

    (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: channels.
        kernel_size: side of the large kernel; 21 is made of 5 x 5 and 7 x 7.
        dilation: of the second convolution.
    """

    def __init__(self, dim: int, kernel_size: int = 21, dilation: int = 3) -> None:
        super().__init__()
        plain, dilated = decomposed(kernel_size, dilation)
        self.conv0 = DepthwiseConv2d(dim, plain)
        self.conv_spatial = DepthwiseConv2d(dim, dilated, dilation)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv1(self.conv_spatial(self.conv0(x)))


class LargeKernelAttention(nn.Module):
    """Large kernel attention: ``x + proj_2(gate(gelu(proj_1(x))))``, with its own shortcut from its input.

    (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: channels.
        grid: unused.
        kernel_size, dilation: of the gate's large kernel.
    """

    def __init__(self, dim: int, grid: Size | None = None, kernel_size: int = 21, dilation: int = 3) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(dim, dim, 1)
        self.act = nn.GELU()
        self.gate = LargeKernelGate(dim, kernel_size, dilation)
        self.proj_2 = nn.Conv2d(dim, dim, 1)

    def folded(self) -> nn.Module:
        """The same sum as a `FoldedResidual`, whose chain fuses with its neighbours."""
        inner = OrderedDict(proj_1=self.proj_1, act=self.act, gate=self.gate, proj_2=self.proj_2)
        return FoldedResidual(nn.Sequential(inner))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj_2(self.gate(self.act(self.proj_1(x))))
