"""Forward cross attention (FcaFormer, arXiv:2211.07198): tokens of earlier blocks of the stage join the keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels import attention
from ..geometry import Size, num_heads_for, resize_table
from ..tables import GridModule, RelativeBias
from .attention import join_heads, split_heads

CROSS_STRIDE = 4  # side of the patch that one cross token sums up


def cross_grid(grid: Size) -> Size:
    """Grid of the cross tokens that a block on ``grid`` hands forward: ceil(h / 4) x ceil(w / 4)."""
    return -(-grid[0] // CROSS_STRIDE), -(-grid[1] // CROSS_STRIDE)


def cross_embedding(dim: int) -> nn.Conv2d:
    """What makes cross tokens of a map: depthwise 7x7, stride 4, no bias: (B, C, H, W) -> (B, C, ~H/4, ~W/4)."""
    return nn.Conv2d(dim, dim, 7, stride=CROSS_STRIDE, padding=3, groups=dim, bias=False)


class CrossTokens(GridModule):
    """Scales and normalises the cross tokens of ``num_sources`` earlier blocks, and biases the logits towards them.

    ``forward(maps)``: list of (B, C, h, w) -> tokens (B, T, C) and bias (heads, 1, T), T = num_sources * h * w.
    """

    grid_tables = ("scale", "bias")

    def __init__(self, dim: int, grid: Size, num_heads: int, num_sources: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_sources, *grid))
        self.bias = nn.Parameter(torch.zeros(num_heads, num_sources, *grid))
        self.norm = nn.LayerNorm(dim)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        size = (maps[0].shape[-2], maps[0].shape[-1])
        tokens = torch.cat([m.flatten(2) for m in maps], dim=2).transpose(1, 2)  # (B, T, C)
        scale = resize_table(self.scale, size).reshape(1, -1, 1)
        return self.norm(tokens * scale), resize_table(self.bias, size).flatten(1)[:, None]


@register_notrace_module
class ForwardCrossAttention(nn.Module):
    """Multi-head self-attention whose keys and values also hold the cross tokens of earlier blocks.

    ``forward(x, maps)``: (B, C, H, W) and a list of ``num_sources`` maps (B, C, ceil(H/4), ceil(W/4)), oldest first
    -> (B, C, H, W). One softmax runs over positions and cross tokens together: O(N (N + T) C). Cross tokens use the
    same projection as positions; their queries are never computed. The stage keeps the maps (`CrossStage`).

    Position tables belong to ``grid``; at another map size they are resized bicubically.

    Args:
        dim: channels.
        grid: (h, w) of the map at the model's ``img_size``.
        num_heads: by default C / 32, or the nearest divisor of C.
        num_sources: how many earlier blocks hand tokens to this one.
    """

    crosses = True  # the stage must thread cross tokens through its blocks
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(self, dim: int, grid: Size, num_heads: int | None = None, num_sources: int = 0) -> None:
        super().__init__()
        self.num_heads = num_heads or num_heads_for(dim, 32)
        self.scale = (dim // self.num_heads) ** -0.5
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.bias = RelativeBias(self.num_heads, grid)
        self.cross = CrossTokens(dim, cross_grid(grid), self.num_heads, num_sources) if num_sources else None
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, maps: Sequence[Tensor] = ()) -> Tensor:
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, dim=1))
        bias = self.bias((x.shape[-2], x.shape[-1]))  # (heads, N, N)
        if self.cross is not None:
            tokens, token_bias = self.cross(maps)
            token_k, token_v = self._keys_and_values(tokens)
            k, v = torch.cat((k, token_k), dim=2), torch.cat((v, token_v), dim=2)
            bias = torch.cat((bias, token_bias.expand(-1, bias.shape[1], -1)), dim=2)
        return self.proj(join_heads(attention(q, k, v, self.scale, bias), x))

    def _keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, T, D) of tokens (B, T, C), by the key and value rows of ``qkv``."""
        dim = tokens.shape[-1]
        projected = F.linear(
            tokens, self.qkv.weight.flatten(1)[dim:], None if self.qkv.bias is None else self.qkv.bias[dim:]
        )
        k, v = projected.chunk(2, dim=2)
        return tuple(t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (k, v))
