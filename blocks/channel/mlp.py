"""Channel mixers: (B, C, H, W) -> (B, C, H, W), every position by itself or with its nearest neighbours.

The plain MLP is timm's `ConvMlp`; here are factories that fix its options, and the variants that timm does not have.
Each variant says by `with_hidden` between which of its layers the hidden channels are, so that its width can be nested.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from timm.layers import ConvMlp
from torch import nn

from ..conv import conv_norm
from ..ffn import with_hidden
from ..residual import Residual

ChannelFactory = Callable[[int], nn.Module]


def mlp(ratio: float = 4.0, act: Callable[[], nn.Module] = nn.GELU, bias: bool = True) -> ChannelFactory:
    """Factory of 1x1 conv, activation, 1x1 conv."""
    return partial(_conv_mlp, ratio=ratio, act=act, bias=bias)


def norm_mlp(ratio: float = 2.0, act: Callable[[], nn.Module] = nn.ReLU) -> ChannelFactory:
    """Factory of 1x1 conv-BN, activation, 1x1 conv-BN whose last norm starts at zero (LeViT, arXiv:2104.01136)."""
    return partial(_norm_mlp, ratio=ratio, act=act)


def depthwise_mlp(
    ratio: float = 4.0, act: Callable[[], nn.Module] = nn.GELU, inner_act: Callable[[], nn.Module] | None = None
) -> ChannelFactory:
    """Factory of 1x1 conv, depthwise 3x3, activation, 1x1 conv, all with bias (PVTv2, arXiv:2106.13797).

    Args:
        ratio: expansion.
        act: after the depthwise convolution.
        inner_act: before it; none by default.
    """
    return partial(_depthwise_mlp, ratio=ratio, act=act, inner_act=inner_act)


def residual_depthwise_mlp(ratio: float = 3.5, act: Callable[[], nn.Module] = nn.GELU) -> ChannelFactory:
    """Factory of 1x1 conv, activation, residual depthwise 3x3, 1x1 conv, all with bias (RAVLT, arXiv:2411.07635)."""
    return partial(_residual_depthwise_mlp, ratio=ratio, act=act)


def local_mlp(local: ChannelFactory, ratio: float = 4.0, act: Callable[[], nn.Module] = nn.GELU) -> ChannelFactory:
    """Factory of ``local``, which mixes near positions, then 1x1 conv, activation, 1x1 conv, both with bias."""
    return partial(_local_mlp, local=local, ratio=ratio, act=act)


def _local_mlp(dim: int, local: ChannelFactory, ratio: float, act: Callable[[], nn.Module]) -> nn.Module:
    hidden = int(ratio * dim)
    fc1, fc2 = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
    return with_hidden(nn.Sequential(OrderedDict(local=local(dim), fc1=fc1, act=act(), fc2=fc2)), "fc1", "fc2")


def _conv_mlp(dim: int, ratio: float, act: Callable[[], nn.Module], bias: bool) -> nn.Module:
    return ConvMlp(dim, int(ratio * dim), act_layer=act, bias=bias)  # type: ignore[arg-type]


def _norm_mlp(dim: int, ratio: float, act: Callable[[], nn.Module]) -> nn.Module:
    hidden = int(ratio * dim)
    layers = OrderedDict(fc1=conv_norm(dim, hidden), act=act(), fc2=conv_norm(hidden, dim, bn_weight=0.0))
    return with_hidden(nn.Sequential(layers), "fc1.conv", "fc2.conv")


def _depthwise_mlp(
    dim: int, ratio: float, act: Callable[[], nn.Module], inner_act: Callable[[], nn.Module] | None
) -> nn.Module:
    hidden = int(ratio * dim)
    layers: OrderedDict[str, nn.Module] = OrderedDict(fc1=nn.Conv2d(dim, hidden, 1))
    if inner_act is not None:
        layers["inner_act"] = inner_act()
    layers["dwconv"] = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
    return with_hidden(nn.Sequential(OrderedDict(**layers, act=act(), fc2=nn.Conv2d(hidden, dim, 1))), "fc1", "fc2")


def _residual_depthwise_mlp(dim: int, ratio: float, act: Callable[[], nn.Module]) -> nn.Module:
    hidden = int(ratio * dim)
    fc1, fc2 = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
    dwconv = Residual(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden))
    return with_hidden(nn.Sequential(OrderedDict(fc1=fc1, act=act(), dwconv=dwconv, fc2=fc2)), "fc1", "fc2")
