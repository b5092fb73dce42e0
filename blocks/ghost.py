"""Ghost convolutions, half of whose channels come cheaply from the other half, and the DFC attention that gates them.

Sources: GhostNet, arXiv:1911.11907; GhostNetV2 with decoupled fully connected (DFC) attention, arXiv:2211.12905.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import SqueezeExcite
from torch import Tensor, nn

from .conv import conv_norm, depthwise_norm
from .geometry import pad_to_least
from .residual import Residual

Act = Callable[[], nn.Module]


def _strip(dim: int, height: int, width: int) -> nn.Sequential:
    """Depthwise convolution along one axis, and BatchNorm."""
    conv = nn.Conv2d(dim, dim, (height, width), padding=(height // 2, width // 2), groups=dim, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(dim)))


class DFCGate(nn.Module):
    """Weights in (0, 1) for a map from its rows and columns: (B, C, H, W) -> (B, C', H, W).

    2x2 average pooling, 1x1 conv-BN, depthwise 1 x k and k x 1 conv-BN in turn, sigmoid, nearest upsampling. An odd
    last row or column is left out of the pooling, as in the official code; a side of 1 is zero-padded to 2.

    Args:
        dim, out_dim: channels of the map and of the weights.
        kernel_size: k, odd.
    """

    def __init__(self, dim: int, out_dim: int, kernel_size: int = 5) -> None:
        super().__init__()
        self.point = conv_norm(dim, out_dim)
        self.row = _strip(out_dim, 1, kernel_size)
        self.column = _strip(out_dim, kernel_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(pad_to_least(x, (2, 2)), 2)
        gate = self.column(self.row(self.point(pooled))).sigmoid()
        return F.interpolate(gate, size=x.shape[-2:], mode="nearest")


class GhostConv(nn.Module):
    """1x1 conv-BN for half of the channels, depthwise 3x3 conv-BN of those for the others.

    (B, C, H, W) -> (B, C', H, W).

    Args:
        dim, out_dim: channels.
        act: activation factory, after both.
        gate: (dim, out_dim) -> module whose result multiplies the output.
    """

    def __init__(
        self, dim: int, out_dim: int, act: Act = nn.ReLU, gate: Callable[[int, int], nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.out_dim = out_dim
        half = -(-out_dim // 2)
        self.primary = nn.Sequential(OrderedDict(pair=conv_norm(dim, half), act=act()))
        self.cheap = nn.Sequential(OrderedDict(pair=depthwise_norm(half), act=act()))
        self.gate = gate(dim, out_dim) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        half = self.primary(x)
        out = torch.cat((half, self.cheap(half)), dim=1)[:, : self.out_dim]
        return out if self.gate is None else out * self.gate(x)


def ghost_bottleneck(
    dim: int, hidden: int, out_dim: int, kernel_size: int = 3, stride: int = 1, se_ratio: float = 0.0
) -> nn.Module:
    """The block of GhostNetV2: gated ghost expansion, strided depthwise conv-BN, squeeze-excitation, ghost projection.

    (B, dim, H, W) -> (B, out_dim, H', W'). Where size or width change, the shortcut is a depthwise and a 1x1 conv-BN.

    Args:
        dim, hidden, out_dim: channels.
        kernel_size, stride: of the depthwise convolution, which only a stride above 1 brings in.
        se_ratio: width of the squeezed vector over ``hidden``; 0 for no squeeze-excitation.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(ghost1=GhostConv(dim, hidden, gate=DFCGate))
    if stride > 1:
        layers["dw"] = depthwise_norm(hidden, kernel_size, stride)
    if se_ratio:
        layers["se"] = SqueezeExcite(hidden, rd_ratio=se_ratio, rd_divisor=4, gate_layer="hard_sigmoid")
    layers["ghost2"] = GhostConv(hidden, out_dim, nn.Identity)
    if stride == 1 and dim == out_dim:
        return Residual(nn.Sequential(layers))
    shortcut: OrderedDict[str, nn.Module] = OrderedDict(
        dw=depthwise_norm(dim, kernel_size, stride), point=conv_norm(dim, out_dim)
    )
    return Residual(nn.Sequential(layers), shortcut=nn.Sequential(shortcut))
