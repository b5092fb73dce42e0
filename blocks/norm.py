"""Norms of (B, C, H, W) maps, beyond those of timm.layers.

timm's `LayerNorm2d` (per position, over channels) and `GroupNorm1` (over channels and map) serve where they have an
affine bias; the MetaFormer baselines use the same norms without one.
"""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import GroupNorm1
from torch import Tensor


class GroupNorm1NoBias(GroupNorm1):
    """Norm over (C, H, W) jointly, scaled per channel, without bias (arXiv:2210.13452)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps)
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 1, self.weight, None, self.eps)
