"""1x1 convolutions as matrix products on channels-last maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PointwiseLinear(nn.Linear):
    """A 1x1 convolution as a linear layer over the last axis of a channels-last map: (B, C, H, W) -> (B, C', H, W).

    On channels-last memory neither permutation copies.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def as_pointwise(module: nn.Module) -> nn.Module:
    """``module`` with every dense 1x1 convolution replaced by `PointwiseLinear`, in place."""
    if isinstance(module, nn.Conv2d):
        return _pointwise(module) if _is_pointwise(module) else module
    for name, child in module.named_children():
        setattr(module, name, as_pointwise(child))
    return module


def _is_pointwise(conv: nn.Conv2d) -> bool:
    plain = conv.stride == (1, 1) and conv.padding in ((0, 0), "valid") and conv.dilation == (1, 1)
    return type(conv) is nn.Conv2d and conv.kernel_size == (1, 1) and conv.groups == 1 and plain


def _pointwise(conv: nn.Conv2d) -> PointwiseLinear:
    linear = PointwiseLinear(conv.in_channels, conv.out_channels, bias=conv.bias is not None, device="meta")
    linear.weight = nn.Parameter(conv.weight.detach().flatten(1), requires_grad=False)
    if conv.bias is not None:
        linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    return linear
