"""Convolutions as token mixers: inverted separable (MobileNetV2 style, as in ConvFormer) and plain depthwise."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from ..act import StarReLU
from ..geometry import Size


class SeparableConvMixer(nn.Module):
    """1x1 expansion, activation, depthwise k x k, 1x1 projection; no biases, no shortcut of its own.

    (B, C, H, W) -> (B, C, H, W). Source: ConvFormer in arXiv:2210.13452.

    Args:
        dim: channels.
        grid: unused.
        ratio: expansion of the hidden width.
        kernel_size: of the depthwise convolution, odd.
        act: activation factory.
    """

    def __init__(
        self,
        dim: int,
        grid: Size | None = None,
        ratio: float = 2.0,
        kernel_size: int = 7,
        act: Callable[[], nn.Module] = StarReLU,
    ) -> None:
        super().__init__()
        hidden = int(ratio * dim)
        self.pwconv1 = nn.Conv2d(dim, hidden, 1, bias=False)
        self.act1 = act()
        self.dwconv = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden, bias=False)
        self.pwconv2 = nn.Conv2d(hidden, dim, 1, bias=False)

    def folded(self) -> nn.Module:
        """The same layers as a chain, which fuses with its neighbours."""
        return nn.Sequential(OrderedDict(self.named_children()))

    def forward(self, x: Tensor) -> Tensor:
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x))))


class DepthwiseMixer(nn.Conv2d):
    """Depthwise k x k convolution with bias, the mixer of ConvNeXt (arXiv:2201.03545).

    Args:
        dim: channels.
        grid: unused.
        kernel_size: odd.
    """

    def __init__(self, dim: int, grid: Size | None = None, kernel_size: int = 7) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
