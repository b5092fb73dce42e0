"""Convolution pairs that many families share."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


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
