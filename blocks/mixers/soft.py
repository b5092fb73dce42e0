"""Softmax-free attention (SOFT, arXiv:2110.11945; SOFT++, arXiv:2207.03341)."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import LayerNorm2d, register_notrace_module
from torch import Tensor, nn

from ...kernels.soft_attention import soft_attention
from ..geometry import Size, num_heads_for, pad_to_windows
from .attention import join_heads, split_heads

LANDMARKS = 7  # a side, at the model's image size


class HeadwiseConv2d(nn.Module):
    """A depthwise convolution without bias whose kernel is the same for all channels of a head.

    (B, heads * D, H, W) -> the same shape.

    Args:
        num_heads: heads.
        head_dim: channels D of a head.
        kernel_size: odd.
    """

    def __init__(self, num_heads: int, head_dim: int, kernel_size: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.weight = nn.Parameter(nn.Conv2d(num_heads, num_heads, kernel_size, groups=num_heads).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.repeat_interleave(self.head_dim, dim=0)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=weight.shape[0])

    def folded(self) -> nn.Module:
        """A plain depthwise convolution."""
        weight = self.weight.detach().repeat_interleave(self.head_dim, dim=0)
        dim, side = weight.shape[0], weight.shape[-1]
        conv = nn.Conv2d(dim, dim, side, padding=side // 2, groups=dim, bias=False).to(weight)
        conv.weight.data = weight
        return conv


@register_notrace_module
class Landmarks(nn.Module):
    """Strided convolution, LayerNorm and GELU, the same for every head: (B, heads * D, H, W) -> (B, heads, M, D).

    M = ceil(H / ratio) * ceil(W / ratio). A map that does not divide is zero-padded at the bottom and right.

    Args:
        head_dim: channels D of a head.
        ratio: side of the patch that a landmark sums up.
    """

    def __init__(self, head_dim: int, ratio: int) -> None:
        super().__init__()
        self.head_dim, self.ratio = head_dim, ratio
        self.conv = nn.Conv2d(head_dim, head_dim, ratio, ratio, bias=False)
        self.norm = LayerNorm2d(head_dim, eps=1e-5)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(1, (-1, self.head_dim))  # (B, heads, D, H, W)
        landmarks = self.act(self.norm(self.conv(pad_to_windows(heads.flatten(0, 1), (self.ratio, self.ratio)))))
        return landmarks.flatten(2).transpose(1, 2).unflatten(0, (-1, heads.shape[1]))


class SoftAttention(nn.Module):
    """Attention by a Gaussian kernel of the queries, of low rank through landmarks: (B, C, H, W) -> (B, C, H, W).

    Keys are the queries. O(N M C) for N positions and M landmarks; see `mixzoo.kernels.soft_attention`. A depthwise
    convolution of the values joins the result. The map is padded for the landmarks alone (see `Landmarks`).

    Args:
        dim: channels.
        grid: (h, w) of the map at the model's ``img_size``, from which ``ratio`` comes by default.
        num_heads: by default C / 32, or the nearest divisor of C.
        ratio: side of the patch that a landmark sums up; by default for about 7 x 7 landmarks.
        kernel_size: side of the depthwise kernel on the values, odd; 0 for none.
        symmetric: whether the inverse is normalised from both sides, as in SOFT++.
    """

    input_layers = ("q", "v")  # take the affine map of a norm before the mixer, when the model is folded
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(
        self,
        dim: int,
        grid: Size | None = None,
        num_heads: int | None = None,
        ratio: int | None = None,
        kernel_size: int = 5,
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads or num_heads_for(dim, 32)
        head_dim = dim // self.num_heads
        self.scale = head_dim**-0.25
        self.symmetric = symmetric
        self.q = nn.Conv2d(dim, dim, 1)
        self.v = nn.Conv2d(dim, dim, 1)
        self.landmarks = Landmarks(head_dim, ratio or max(1, round(max(grid or (1, 1)) / LANDMARKS)))
        self.local = HeadwiseConv2d(self.num_heads, head_dim, kernel_size) if kernel_size else None
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.q(x) * self.scale, self.v(x)
        heads = self.num_heads
        out = soft_attention(split_heads(q, heads), self.landmarks(q), split_heads(v, heads), self.symmetric)
        joined = join_heads(out, x)
        return self.proj(joined if self.local is None else joined + self.local(v))
