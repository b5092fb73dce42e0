"""The linear global attention of L2ViT (arXiv:2501.16182)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels.linear_attention import linear_attention
from ..geometry import Size, num_heads_for
from .attention import join_heads, split_heads


class LinearGlobalAttention(nn.Module):
    """ReLU linear attention with a learned scale per head: (B, C, H, W) -> (B, C, H, W), O(N C D) for N positions.

    The weights of a query are divided by their sum, or by 100 where that is less, which keeps training stable.

    Args:
        dim: channels C.
        grid: unused.
        head_dim: wanted width D of a head.
    """

    input_layers = ("qkv",)  # take the affine map of a norm before the mixer, when the model is folded
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(self, dim: int, grid: Size | None = None, head_dim: int = 32) -> None:
        super().__init__()
        heads = self.num_heads = num_heads_for(dim, head_dim)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.temperature: nn.Parameter | None = nn.Parameter(torch.full((heads, 1, 1), (dim // heads) ** -0.5))
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(t, self.num_heads) for t in self._projected(x))
        if self.temperature is not None:
            v = v * self.temperature
        return self.proj(join_heads(linear_attention(q, k, v, "l2vit"), x))

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, dim=1)  # unpacked, not iterated: torch.fx traces this
        return q, k, v

    def folded(self) -> nn.Module:
        """With the scales of the heads in the projection to values."""
        if self.temperature is not None:
            assert self.qkv.bias is not None
            width = self.qkv.in_channels
            scale = self.temperature.detach().flatten().repeat_interleave(width // self.num_heads)
            scale = torch.cat((torch.ones_like(scale).repeat(2), scale))
            self.qkv.weight.data = self.qkv.weight * scale.reshape(-1, 1, 1, 1)
            self.qkv.bias.data = self.qkv.bias * scale
            self.temperature = None
        return self
