"""Projections of a map to queries, keys and values: (B, C, H, W) -> (B, 3C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def joint_projection(dim: int) -> nn.Module:
    """One 1x1 convolution with bias."""
    return nn.Conv2d(dim, 3 * dim, 1)


class SplitProjection(nn.Module):
    """Queries from one 1x1 convolution, keys and values from another, as PVT names them (arXiv:2102.12122)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q = nn.Conv2d(dim, dim, 1)
        self.kv = nn.Conv2d(dim, 2 * dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.q(x), self.kv(x)), dim=1)

    def folded(self) -> nn.Module:
        """Both in one convolution."""
        dim = self.q.in_channels
        joint = nn.Conv2d(dim, 3 * dim, 1).to(self.q.weight)
        joint.weight.data = torch.cat((self.q.weight, self.kv.weight))
        assert joint.bias is not None and self.q.bias is not None and self.kv.bias is not None
        joint.bias.data = torch.cat((self.q.bias, self.kv.bias))
        return joint
