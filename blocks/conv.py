"""Convolution pairs that many families share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch.nn.functional as F
from timm.layers import make_divisible
from torch import Tensor, nn

from ..kernels.depthwise_conv2d import depthwise_conv2d
from .ffn import with_hidden


def conv_norm(
    dim: int, out_dim: int, kernel_size: int = 1, stride: int = 1, groups: int = 1, bn_weight: float = 1.0
) -> nn.Sequential:
    """Convolution without bias, then BatchNorm (children ``conv`` and ``bn``): (B, C, H, W) -> (B, C', H', W').

    Padding is ``kernel_size // 2``, so each stride-2 step gives ceil(n / 2).

    Args:
        bn_weight: initial BatchNorm weight; 0 starts a residual branch as the identity.
    """
    padding = kernel_size // 2
    conv = nn.Conv2d(dim, out_dim, kernel_size, stride, padding, groups=groups, bias=False)
    bn = nn.BatchNorm2d(out_dim)
    nn.init.constant_(bn.weight, bn_weight)
    return nn.Sequential(OrderedDict(conv=conv, bn=bn))


def depthwise_norm(dim: int, kernel_size: int = 3, stride: int = 1, bn_weight: float = 1.0) -> nn.Sequential:
    """Depthwise `conv_norm`."""
    return conv_norm(dim, dim, kernel_size, stride, groups=dim, bn_weight=bn_weight)


def conv_norm_act(
    dim: int, out_dim: int, kernel_size: int = 1, stride: int = 1, act: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """`conv_norm`, then an activation."""
    return nn.Sequential(OrderedDict(pair=conv_norm(dim, out_dim, kernel_size, stride), act=act()))


def inverted_bottleneck(
    dim: int, out_dim: int, ratio: float = 4.0, stride: int = 1, act: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """1x1 expansion, depthwise 3x3 and 1x1 projection, each with BatchNorm, an activation after the first two.

    The hidden width is ``ratio * dim``, rounded to a multiple of 8; no shortcut. Source: MobileNetV2, arXiv:1801.04381.
    """
    hidden = make_divisible(round(ratio * dim), 8)
    layers = OrderedDict(
        expand=conv_norm(dim, hidden),
        act1=act(),
        dw=depthwise_norm(hidden, stride=stride),
        act2=act(),
        project=conv_norm(hidden, out_dim),
    )
    return with_hidden(nn.Sequential(layers), "expand.conv", "project.conv")


def depthwise_conv(dim: int, kernel_size: int = 3) -> nn.Conv2d:
    """Depthwise convolution with bias that keeps the map."""
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)


def pointwise_norm_act(dim: int, out_dim: int, act: Callable[[], nn.Module] = nn.SiLU) -> nn.Sequential:
    """1x1 convolution with bias, BatchNorm, activation."""
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(dim, out_dim, 1), bn=nn.BatchNorm2d(out_dim), act=act()))


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution that keeps the map's size, by the fastest kernel for its side (`depthwise_conv2d`).

    (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: channels.
        kernel_size: odd.
        dilation: distance between taps.
        bias: whether there is one.
    """

    def __init__(self, dim: int, kernel_size: int, dilation: int = 1, bias: bool = True) -> None:
        reach = dilation * (kernel_size // 2)
        super().__init__(dim, dim, kernel_size, padding=reach, dilation=dilation, groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias, self.dilation[0])

    def folded(self) -> nn.Module:
        """A plain convolution, which can be packed."""
        side, dilation, dim = self.kernel_size[0], self.dilation[0], self.in_channels
        reach = dilation * (side // 2)
        plain = nn.Conv2d(dim, dim, side, padding=reach, dilation=dilation, groups=dim, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain


class BranchedConv(nn.Module):
    """Conv-BN with a large kernel plus conv-BN with a small one; folding makes one convolution of both.

    (B, C, H, W) -> (B, C', H', W'). Source: structural re-parameterisation, arXiv:2101.03697.

    Args:
        dim, out_dim: channels.
        kernel_size: of the large kernel, odd.
        small: of the small kernel, odd.
        stride, groups: of both.
    """

    main_branch = "large"  # the one that tells how the map's size changes

    def __init__(
        self, dim: int, out_dim: int, kernel_size: int = 7, small: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.large = conv_norm(dim, out_dim, kernel_size, stride, groups)
        self.small = conv_norm(dim, out_dim, small, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x)

    def folded(self) -> nn.Module:
        large, small = self.large, self.small
        assert isinstance(large, nn.Conv2d) and isinstance(small, nn.Conv2d)
        assert large.bias is not None and small.bias is not None  # their batch norms are folded
        edge = (large.kernel_size[0] - small.kernel_size[0]) // 2
        large.weight.data = large.weight + F.pad(small.weight, (edge, edge, edge, edge))
        large.bias.data = large.bias + small.bias
        return large
