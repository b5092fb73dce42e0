"""Attention in a cross of stripes (CSWin, arXiv:2107.00652)."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels.dispatch import known
from ...kernels.window_attention import window_attention
from ..geometry import Size, from_windows, num_heads_for, pad_to_windows, to_windows
from .window import masked


@register_notrace_module
class CrossWindowAttention(nn.Module):
    """Softmax attention, half of the channels in vertical stripes and half in horizontal ones.

    (B, C, H, W) -> (B, C, H, W). Stripes are as long as the map and ``split`` wide; a map that does not divide is
    padded at the bottom and right, and the padding is masked. To what a stripe answers, a depthwise 3x3 convolution of
    its values is added, which does not look beyond the stripe (LePE). O(N split max(H, W) C) for N = H * W.

    Args:
        dim: channels C; odd ones have a single branch.
        grid: unused.
        num_heads: of both branches together; by default with heads near to 32 wide.
        split: width of a stripe; None for one branch over the whole map.
    """

    input_layers = ("qkv",)  # take the affine map of a norm before the mixer, when the model is folded
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(self, dim: int, grid: Size | None = None, num_heads: int | None = None, split: int | None = 7) -> None:
        super().__init__()
        self.split = None if dim % 2 else split
        self.branches = 1 if self.split is None else 2
        width = dim // self.branches
        self.num_heads = num_heads // self.branches if num_heads else num_heads_for(width, 32)
        self.scale = (width // self.num_heads) ** -0.5
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.lepe = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(self.branches))
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        qkv = self.qkv(x)
        if self.split is None:
            return self.proj(self._branch(0, qkv, (height, width)))
        down, across = masked(self.split, (height, width))
        stripes = (height, across), (down, width)
        parts = [t.chunk(2, dim=1) for t in qkv.chunk(3, dim=1)]  # halves of q, k and v
        outs = [self._branch(i, torch.cat([t[i] for t in parts], dim=1), window) for i, window in enumerate(stripes)]
        return self.proj(torch.cat(outs, dim=1))

    def _branch(self, index: int, qkv: Tensor, window: Size) -> Tensor:
        values, conv = qkv.chunk(3, dim=1)[2], self.lepe[index]
        out = window_attention(qkv, self.num_heads, window, self.scale)
        return out + (conv(values) if self.split is None else _in_windows(conv, values, window))


def _in_windows(conv: nn.Module, x: Tensor, window: Size) -> Tensor:
    """``conv`` of each window of (B, C, H, W) by itself."""
    height, width = x.shape[-2:]
    if known(height, width) and window == (height, width):
        return conv(x)
    padded = pad_to_windows(x, window)
    out = from_windows(conv(to_windows(padded, window)), (padded.shape[-2], padded.shape[-1]))
    return out[:, :, :height, :width]
