"""Bi-level routing attention with local enhancement, and attention of the whole map with it (arXiv:2303.08810)."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels import attention
from ...kernels.bilevel_routing_attention import bilevel_routing_attention
from ..geometry import Size, num_heads_for
from .attention import join_heads, split_heads


def local_enhancement(dim: int, kernel_size: int = 5) -> nn.Conv2d:
    """Depthwise convolution that is added to what attention returns (LePE, arXiv:2107.00652)."""
    return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)


@register_notrace_module
class BiLevelRoutingAttention(nn.Module):
    """Attention of every region of the map to the regions that its mean matches best: (B, C, H, W) -> (B, C, H, W).

    The map has ``num_regions`` regions a side, so that their size follows that of the map. Where it does not divide,
    there is padding at the bottom and right, which takes part in the attention as in the authors' code, of which two
    versions differ:

    - ``pad_input``: the input is zero-padded to ``num_regions`` equal regions a side. Padding carries the bias of the
      projection, and counts in the means of regions and in the convolution of the values.
    - otherwise: regions have the side floor(n / num_regions), at least 1, and queries, keys and values are zero-padded,
      which may make more regions. Means are over real positions, and so is the convolution.

    O(N^2 topk C / num_regions^2) time for N = H * W, and O(N C) memory.

    Args:
        dim: channels.
        grid: unused.
        topk: regions that a region attends to; None for all. Where there are fewer, all of them.
        num_regions: regions along each side of the map. The authors take more for larger images: 7 at 224 px, 8 at 512,
            16 for detection.
        head_dim: wanted width of a head; where it does not divide ``dim``, the nearest head count that does is taken.
        pad_input: which of the two paddings.
    """

    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(
        self,
        dim: int,
        grid: Size | None = None,
        topk: int | None = 4,
        num_regions: int = 7,
        head_dim: int = 32,
        pad_input: bool = True,
    ) -> None:
        super().__init__()
        self.topk, self.num_regions, self.pad_input = topk, num_regions, pad_input
        self.num_heads = num_heads_for(dim, head_dim)
        self.scale = dim**-0.5  # of the whole width: the authors keep it for their checkpoints
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.lepe = local_enhancement(dim)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        (height, width), count = x.shape[-2:], self.num_regions
        if self.pad_input:
            region = (height + count - 1) // count, (width + count - 1) // count
            x = _pad(x, (count * region[0], count * region[1]))
        else:
            region = max(1, height // count), max(1, width // count)
        q, k, v = self.qkv(x).chunk(3, dim=1)
        out = bilevel_routing_attention(q, k, v, region, self.topk, self.num_heads, self.scale)
        return self.proj((out + self.lepe(v))[:, :, :height, :width])


def _pad(x: Tensor, size: Size) -> Tensor:
    """Zero-pad (B, C, H, W) at the bottom and right to ``size``."""
    return F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))


class EnhancedAttention(nn.Module):
    """Attention over all positions with local enhancement: (B, C, H, W) -> (B, C, H, W), O(N^2 C) for N = H * W.

    Args:
        dim: channels.
        grid: unused.
        head_dim: wanted width of a head; where it does not divide ``dim``, the nearest head count that does is taken.
        enhance_input: whether the convolution runs on the input of the mixer, as in the first version of the authors'
            code, or on the values.
    """

    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(self, dim: int, grid: Size | None = None, head_dim: int = 32, enhance_input: bool = False) -> None:
        super().__init__()
        self.enhance_input = enhance_input
        self.num_heads = num_heads_for(dim, head_dim)
        self.scale = (dim // self.num_heads) ** -0.5
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.lepe = local_enhancement(dim)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)
        heads = self.num_heads
        out = attention(split_heads(q, heads), split_heads(k, heads), split_heads(v, heads), self.scale)
        return self.proj(join_heads(out, x) + self.lepe(x if self.enhance_input else v))
