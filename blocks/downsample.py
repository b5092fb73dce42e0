"""Downsampling between stages: (B, C, H, W) -> (B, C', ~H/2, ~W/2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from timm.layers import SqueezeExcite, register_notrace_module
from torch import Tensor, nn

from .channel import norm_mlp
from .conv import conv_norm, depthwise_norm
from .geometry import Reshaping, Size, pad_to_windows
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
    bias: bool = True,
    act: Callable[[], nn.Module] | None = None,
) -> nn.Sequential:
    """A strided convolution, a norm before or after it, and an activation at the end."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if pre_norm:
        layers["norm"] = pre_norm(dim)
    layers["conv"] = nn.Conv2d(dim, out_dim, kernel_size, stride, padding, bias=bias)
    if post_norm:
        layers["norm"] = post_norm(out_dim)
    if act:
        layers["act"] = act()
    return nn.Sequential(layers)


@register_notrace_module
class PadToMultiple(Reshaping):
    """Zero-pads (B, C, H, W) at the bottom and right to multiples of ``side``."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def out_size(self, size: Size) -> Size:
        return size[0] + -size[0] % self.side, size[1] + -size[1] % self.side

    def forward(self, x: Tensor) -> Tensor:
        return pad_to_windows(x, (self.side, self.side))


def padded_conv(dim: int, out_dim: int, pre_norm: Factory) -> nn.Sequential:
    """A norm, zero-padding to even sides, and a convolution of patches of 2 x 2: ceil(n / 2) of a side n."""
    conv = nn.Conv2d(dim, out_dim, 2, 2)
    return nn.Sequential(OrderedDict(norm=pre_norm(dim), pad=PadToMultiple(2), conv=conv))


@register_notrace_module
class PatchGather(Reshaping):
    """2 x 2 neighbours into channels: (B, C, H, W) -> (B, 4C, H/2, W/2).

    Their order is top left, bottom left, top right, bottom right. An odd side is zero-padded at its end.
    """

    stride = 2

    def out_size(self, size: Size) -> Size:
        return -(-size[0] // 2), -(-size[1] // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_windows(x, (2, 2))
        top, bottom = x[:, :, ::2], x[:, :, 1::2]
        return torch.cat((top[..., ::2], bottom[..., ::2], top[..., 1::2], bottom[..., 1::2]), dim=1)


def patch_merging(
    dim: int, out_dim: int, pre_norm: Factory | None = None, post_norm: Factory | None = None
) -> nn.Sequential:
    """`PatchGather` and a 1x1 convolution without bias, and a norm before or after it.

    Swin has the norm before, over 4C channels (arXiv:2103.14030); Swin V2 after it (arXiv:2111.09883).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(gather=PatchGather())
    if pre_norm:
        layers["norm"] = pre_norm(4 * dim)
    layers["conv"] = nn.Conv2d(4 * dim, out_dim, 1, bias=False)
    if post_norm:
        layers["norm"] = post_norm(out_dim)
    return nn.Sequential(layers)


def excite_merging(dim: int, out_dim: int) -> nn.Sequential:
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
    """`excite_merging` between residual depthwise 3x3 and MLP branches, at the old width and at the new one."""
    return nn.Sequential(
        OrderedDict(
            dw0=Residual(depthwise_norm(dim)),
            ffn0=Residual(norm_mlp()(dim)),
            merge=excite_merging(dim, out_dim),
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
