"""Norms of (B, C, H, W) maps, beyond those of timm.layers.

timm's `LayerNorm2d` (per position, over channels) and `GroupNorm1` (over channels and map) serve where they have an
affine bias; the MetaFormer baselines use the same norms without one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import GroupNorm1
from torch import Tensor, nn


class GroupNorm1NoBias(GroupNorm1):
    """Norm over (C, H, W) jointly, scaled per channel, without bias (arXiv:2210.13452)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps)
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 1, self.weight, None, self.eps)


class DeviationNorm2d(nn.Module):
    """Norm per position over channels that divides by ``std + eps`` instead of ``sqrt(var + eps)`` (CVNets).

    Args:
        dim: channels.
        eps: added to the standard deviation.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        deviation = centred.square().mean(1, keepdim=True).sqrt()
        scale, shift = self.weight[:, None, None], self.bias[:, None, None]
        return torch.addcmul(shift, centred / (deviation + self.eps), scale)
