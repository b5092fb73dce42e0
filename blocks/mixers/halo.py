"""Attention in windows that also look at a border around them (HaloNet, arXiv:2103.12731)."""

from __future__ import annotations

from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels.halo_attention import halo_attention
from ..geometry import Size, num_heads_for
from ..tables import SignedRelativeBias
from .window import masked


@register_notrace_module
class HaloAttention(nn.Module):
    """Softmax attention of each window to itself and ``halo`` positions around it: (B, C, H, W) -> (B, C, H, W).

    The bias is learned by signed offset, as Swin's; HaloNet's own depends on the query. A map that does not divide is
    padded at the bottom and right; keys outside the map are left out. A side shorter than the window makes the window
    that much shorter. O(N (w + 2 halo)^2 C) for N = H * W.

    Args:
        dim: channels C.
        grid: unused: the bias belongs to the window.
        num_heads: by default the divisor of C nearest to C / 32.
        window: side of a window.
        halo: width of the border.
    """

    undecayed = ("bias.table",)  # parameters trained without weight decay
    input_layers = ("qkv",)  # take the affine map of a norm before the mixer, when the model is folded
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(
        self, dim: int, grid: Size | None = None, num_heads: int | None = None, window: int = 8, halo: int = 3
    ) -> None:
        super().__init__()
        self.num_heads = num_heads or num_heads_for(dim, 32)
        self.window, self.halo = window, halo
        self.scale = (dim // self.num_heads) ** -0.5
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.bias = SignedRelativeBias(self.num_heads, (window + halo, window + halo))
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        window = masked(self.window, (x.shape[-2], x.shape[-1]))
        bias = self.bias(window, self.halo)
        return self.proj(halo_attention(self.qkv(x), self.num_heads, window, self.halo, self.scale, bias))
