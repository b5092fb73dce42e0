"""Convolutions as token mixers: inverted separable (as in ConvFormer), depthwise (ConvNeXt), and FFNified attention."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from ..act import StarReLU
from ..conv import BranchedConv, DepthwiseConv2d, conv_norm
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
        self.dwconv = DepthwiseConv2d(hidden, kernel_size, bias=False)
        self.pwconv2 = nn.Conv2d(hidden, dim, 1, bias=False)

    def folded(self) -> nn.Module:
        """The same layers as a chain, which fuses with its neighbours."""
        return nn.Sequential(OrderedDict(self.named_children()))

    def forward(self, x: Tensor) -> Tensor:
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x))))


class DepthwiseMixer(DepthwiseConv2d):
    """Depthwise k x k convolution with bias, the mixer of ConvNeXt (arXiv:2201.03545).

    Args:
        dim: channels.
        grid: unused.
        kernel_size: odd.
    """

    def __init__(self, dim: int, grid: Size | None = None, kernel_size: int = 7) -> None:
        super().__init__(dim, kernel_size)


class LocalConcentrationMixer(nn.Sequential):
    """Depthwise k x k, GELU, BatchNorm, depthwise k x k, both with bias: (B, C, H, W) -> (B, C, H, W).

    L2ViT puts it after linear attention, whose weights are spread over the whole map (arXiv:2501.16182).

    Args:
        dim: channels.
        grid: unused.
        kernel_size: odd.
    """

    def __init__(self, dim: int, grid: Size | None = None, kernel_size: int = 7) -> None:
        conv1, conv2 = (DepthwiseConv2d(dim, kernel_size) for _ in range(2))
        super().__init__(OrderedDict(conv1=conv1, act=nn.GELU(), bn=nn.BatchNorm2d(dim), conv2=conv2))


def branched_depthwise(dim: int, kernel_size: int) -> nn.Module:
    """Depthwise k x k conv-BN plus depthwise 3x3 conv-BN."""
    return BranchedConv(dim, dim, kernel_size, groups=dim)


class FFNifiedAttention(nn.Module):
    """1x1 conv-BN, depthwise k x k, GELU, depthwise k x k: attention's two products as an MLP with fixed "keys".

    (B, C, H, W) -> (B, C, H, W); the first depthwise convolution stands for the products with the keys, the second for
    those with the values. Source: MetaMixer, arXiv:2406.02021.

    Args:
        dim: channels.
        grid: unused.
        kernel_size: odd.
        project: factory of the first layer.
        spatial: (dim, kernel_size) -> module; makes each of the depthwise layers.
    """

    def __init__(
        self,
        dim: int,
        grid: Size | None = None,
        kernel_size: int = 7,
        project: Callable[[int], nn.Module] | None = None,
        spatial: Callable[[int, int], nn.Module] = branched_depthwise,
    ) -> None:
        super().__init__()
        self.fc = project(dim) if project else conv_norm(dim, dim)
        self.conv1 = spatial(dim, kernel_size)
        self.act = nn.GELU()
        self.conv2 = spatial(dim, kernel_size)

    def folded(self) -> nn.Module:
        """The same layers as a chain, which fuses with its neighbours."""
        return nn.Sequential(OrderedDict(self.named_children()))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.act(self.conv1(self.fc(x))))
