"""Downsampling between stages: (B, C, H, W) -> (B, C', ~H/2, ~W/2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from timm.layers import SqueezeExcite
from torch import nn

from .channel import norm_mlp
from .conv import conv_norm, depthwise_norm
from .residual import Residual

Factory = Callable[[int], nn.Module]  # channels -> module
DownsampleFactory = Callable[[int, int], nn.Module]  # (dim, out_dim) -> module


def strided_conv(
    dim: int,
    out_dim: int,
    kernel_size: int = 3,
    stride: int = 2,
    padding: int = 1,
    pre_norm: Factory | None = None,
    post_norm: Factory | None = None,
) -> nn.Sequential:
    """A strided convolution with bias, and a norm before or after it."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if pre_norm:
        layers["norm"] = pre_norm(dim)
    layers["conv"] = nn.Conv2d(dim, out_dim, kernel_size, stride, padding)
    if post_norm:
        layers["norm"] = post_norm(out_dim)
    return nn.Sequential(layers)


def patch_merging(dim: int, out_dim: int) -> nn.Sequential:
    """Inverted bottleneck of width 4C with a stride-2 depthwise 3x3 and squeeze-excitation (arXiv:2305.07027)."""
    hidden = 4 * dim
    return nn.Sequential(
        OrderedDict(
            conv1=conv_norm(dim, hidden),
            act1=nn.ReLU(),
            conv2=depthwise_norm(hidden, stride=2),
            act2=nn.ReLU(),
            se=SqueezeExcite(hidden, rd_ratio=0.25),
            conv3=conv_norm(hidden, out_dim),
        )
    )


def sandwich_merging(dim: int, out_dim: int) -> nn.Sequential:
    """`patch_merging` between residual depthwise 3x3 and MLP branches, at the old width and at the new one."""
    return nn.Sequential(
        OrderedDict(
            dw0=Residual(depthwise_norm(dim)),
            ffn0=Residual(norm_mlp()(dim)),
            merge=patch_merging(dim, out_dim),
            dw1=Residual(depthwise_norm(out_dim)),
            ffn1=Residual(norm_mlp()(out_dim)),
        )
    )


def separable_downsample(dim: int, out_dim: int) -> nn.Sequential:
    """1x1 conv-BN, GELU, depthwise 3x3 stride-2 conv-BN, GELU, 1x1 conv-BN (TinyViT, arXiv:2207.10666)."""
    return nn.Sequential(
        OrderedDict(
            conv1=conv_norm(dim, out_dim),
            act1=nn.GELU(),
            conv2=depthwise_norm(out_dim, stride=2),
            act2=nn.GELU(),
            conv3=conv_norm(out_dim, out_dim),
        )
    )
