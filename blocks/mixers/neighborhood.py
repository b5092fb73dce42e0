"""Neighborhood attention (NAT, arXiv:2204.07143) and its dilated form (DiNAT, arXiv:2209.15001)."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels.neighborhood_attention import neighborhood_attention
from ..geometry import Size, num_heads_for, pad_to_least
from ..tables import SignedRelativeBias


@register_notrace_module
class NeighborhoodAttention(nn.Module):
    """Softmax attention of every position to the k x k positions nearest to it: (B, C, H, W) -> (B, C, H, W).

    At the borders the window is moved inside, so that every query has k * k keys. A map with a side below k * dilation
    is zero-padded at the bottom and right up to that; as in the official code the padding takes part, and the output
    is cropped. O(N k^2 C) for N = H * W.

    Args:
        dim: channels C.
        grid: unused: the bias belongs to the window.
        num_heads: by default the divisor of C nearest to C / 32.
        kernel_size: side k of the window, odd.
        dilations: steps between the keys of a window; block i of a stage takes entry i, and after the last one the
            first again.
        relative_bias: whether there is a learned bias by offset (heads, 2k - 1, 2k - 1), indexed key minus query.
        index: position of the block in its stage.
    """

    per_block = True
    undecayed = ("bias.table",)  # parameters trained without weight decay
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(
        self,
        dim: int,
        grid: Size | None = None,
        num_heads: int | None = None,
        kernel_size: int = 7,
        dilations: Sequence[int] = (1,),
        relative_bias: bool = True,
        index: int = 0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads or num_heads_for(dim, 32)
        self.kernel_size, self.dilation = kernel_size, dilations[index % len(dilations)]
        self.scale = (dim // self.num_heads) ** -0.5
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.bias = SignedRelativeBias(self.num_heads, (kernel_size, kernel_size)) if relative_bias else None
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        least = self.kernel_size * self.dilation
        qkv = self.qkv(pad_to_least(x, (least, least)))
        qkv = qkv.unflatten(1, (3 * self.num_heads, -1)).permute(0, 1, 3, 4, 2)  # (B, 3 * heads, H, W, D)
        q, k, v = qkv.chunk(3, dim=1)
        bias = None if self.bias is None else self.bias.table
        out = neighborhood_attention(q, k, v, self.kernel_size, self.dilation, self.scale, bias)
        return self.proj(out.permute(0, 1, 4, 2, 3).flatten(1, 2)[:, :, :height, :width])
