"""Stems: images (B, in_chans, H, W) -> (B, dim, H', W')."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from .conv import conv_norm
from .downsample import DownsampleFactory, Factory, PadToMultiple, strided_conv

StemFactory = Callable[[int, int], nn.Module]  # (in_chans, dim) -> module


def patch_stem(padding: int, norm: Factory | None = None) -> StemFactory:
    """7x7 convolution, stride 4, then ``norm``."""
    return partial(strided_conv, kernel_size=7, stride=4, padding=padding, post_norm=norm)


def whole_patch_stem(side: int, norm: Factory | None = None) -> StemFactory:
    """A convolution of non-overlapping patches, with padding where they do not divide the image, then ``norm``."""
    return padded_stem(side, partial(strided_conv, kernel_size=side, stride=side, padding=0), norm)


def padded_stem(side: int, stem: StemFactory, norm: Factory | None = None) -> StemFactory:
    """Zero-padding at the bottom and right to multiples of ``side``, the layers of ``stem``, then ``norm``."""
    return partial(_padded_stem, side=side, stem=stem, norm=norm)


def _padded_stem(in_chans: int, dim: int, side: int, stem: StemFactory, norm: Factory | None) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(pad=PadToMultiple(side))
    layers.update(stem(in_chans, dim).named_children())
    if norm:
        layers["norm"] = norm(dim)
    return nn.Sequential(layers)


def double_conv_stem(norm: Factory) -> StemFactory:
    """Two 3x3 stride-2 convolutions with nothing between them, the first half as wide, then ``norm``: stride 4.

    Source: NAT, arXiv:2204.07143.
    """
    return partial(_double_conv_stem, norm=norm)


def _double_conv_stem(in_chans: int, dim: int, norm: Factory) -> nn.Module:
    conv1, conv2 = nn.Conv2d(in_chans, dim // 2, 3, 2, 1), nn.Conv2d(dim // 2, dim, 3, 2, 1)
    return nn.Sequential(OrderedDict(conv1=conv1, conv2=conv2, norm=norm(dim)))


_conv_bn = partial(conv_norm, kernel_size=3, stride=2)


def conv_stem(steps: int, act: Callable[[], nn.Module], conv: DownsampleFactory = _conv_bn) -> StemFactory:
    """``steps`` 3x3 stride-2 convolutions with norm, each twice as wide as the one before, with ``act`` between them.

    The stride is 2^steps. Source: LeViT, arXiv:2104.01136; there, as by default, ``conv`` has no bias.
    """
    return partial(_conv_stem, steps=steps, act=act, conv=conv)


def _conv_stem(in_chans: int, dim: int, steps: int, act: Callable[[], nn.Module], conv: DownsampleFactory) -> nn.Module:
    widths = [in_chans] + [dim // 2 ** (steps - 1 - i) for i in range(steps)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(steps):
        if i:
            layers[f"act{i}"] = act()
        layers[f"conv{i + 1}"] = conv(widths[i], widths[i + 1])
    return nn.Sequential(layers)


def deep_stem(
    in_chans: int,
    dim: int,
    act: Callable[[], nn.Module] = nn.GELU,
    hidden: int | None = None,
    strides: Sequence[int] = (2, 1, 1, 2),
    last_act: bool = False,
) -> nn.Module:
    """3x3 convolutions with bias and BatchNorm, ``act`` between them.

    All but the last have ``hidden`` channels, by default half of ``dim``. Source: RAVLT, arXiv:2411.07635; with three
    convolutions 32 wide and a ReLU after the last, SOFT, arXiv:2110.11945.
    """
    widths = (in_chans, *[hidden or dim // 2] * (len(strides) - 1), dim)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, stride in enumerate(strides, start=1):
        layers[f"conv{i}"] = nn.Conv2d(widths[i - 1], widths[i], 3, stride, padding=1)
        layers[f"norm{i}"] = nn.BatchNorm2d(widths[i])
        if i < len(strides) or last_act:
            layers[f"act{i}"] = act()
    return nn.Sequential(layers)
