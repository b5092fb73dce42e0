"""Activations that timm.layers does not have."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SquaredReLU(nn.Module):
    """``relu(x) ** 2`` (Primer, arXiv:2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().square()


class ShiftedSquaredReLU(nn.Module):
    """``relu(x) ** 2 + shift``: what is left of StarReLU when its scale is folded into the next layer.

    Args:
        shift: scalar tensor (1,).
    """

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(shift.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().square() + self.shift


class StarReLU(nn.Module):
    """``scale * relu(x) ** 2 + bias`` with one learned scalar each (arXiv:2210.13452, section 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.relu().square() + self.bias
