"""No token mixing (IdentityFormer, arXiv:2210.13452): the control of the MetaFormer experiments."""

from __future__ import annotations

from torch import nn

from ..geometry import Size


class IdentityMixer(nn.Identity):
    """No mixing: (B, C, H, W) -> the same tensor."""

    def __init__(self, dim: int, grid: Size | None = None) -> None:
        super().__init__()
