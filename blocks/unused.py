"""Learned tensors that the authors' models carry and never read."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Unused(nn.Module):
    """Keeps a tensor (1, 1, C) of the authors' checkpoints that no output depends on, so that conversion gives it back.

    The input passes unchanged. The tensor is saved and never trained; folding the model leaves it out.

    Args:
        dim: channels C.
    """

    unused: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("unused", torch.zeros(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x

    def folded(self) -> nn.Module:
        return nn.Identity()
