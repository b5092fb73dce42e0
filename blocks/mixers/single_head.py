"""Single-head attention on part of the channels (SHViT, arXiv:2401.16456)."""

from __future__ import annotations

import torch
from timm.layers import GroupNorm1
from torch import Tensor, nn

from ...kernels import attention
from ..conv import conv_norm
from ..geometry import Size


class SingleHeadAttention(nn.Module):
    """One attention head over the first ``partial_dim`` channels; the rest passes by; then ReLU and a projection.

    (B, C, H, W) -> (B, C, H, W), O(N^2 (qk_dim + partial_dim)) for N = H * W. The attended part is normalised over
    channels and map jointly (GroupNorm with one group), the rest is not.

    Args:
        dim: channels C.
        grid: unused.
        partial_dim: channels that attend; by default C / 4.67, the paper's ratio.
        qk_dim: width of queries and keys.
    """

    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(self, dim: int, grid: Size | None = None, partial_dim: int | None = None, qk_dim: int = 16) -> None:
        super().__init__()
        self.partial_dim = partial_dim or max(1, round(dim / 4.67))
        self.splits = (qk_dim, qk_dim, self.partial_dim)
        self.rest = dim - self.partial_dim
        self.scale = qk_dim**-0.5
        self.norm = GroupNorm1(self.partial_dim)
        self.qkv = conv_norm(self.partial_dim, sum(self.splits))
        self.act = nn.ReLU(inplace=True)  # on the fresh result of a concatenation
        self.proj = conv_norm(dim, dim, bn_weight=0.0)

    def forward(self, x: Tensor) -> Tensor:
        attended, rest = x.split((self.partial_dim, self.rest), dim=1)
        qkv = self.qkv(self.norm(attended)).flatten(2).transpose(1, 2)  # (B, N, 2 * qk_dim + partial_dim)
        q, k, v = qkv.split(self.splits, dim=2)
        out = attention(q, k, v, self.scale).transpose(1, 2).unflatten(2, x.shape[-2:])
        return self.proj(self.act(torch.cat((out, rest), dim=1)))
