"""Multi-head self-attention over all positions of the map."""

from __future__ import annotations

from collections.abc import Callable

from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels import attention
from ..geometry import Size, num_heads_for
from ..tables import SignedGridBias


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, heads * D, H, W) -> (B, heads, N, D) without a copy, N = H * W."""
    return x.flatten(2).unflatten(1, (num_heads, -1)).transpose(2, 3)


def join_heads(x: Tensor, like: Tensor) -> Tensor:
    """(B, heads, N, D) -> (B, heads * D, H, W) with the map size of ``like``."""
    return x.transpose(2, 3).flatten(1, 2).unflatten(2, like.shape[-2:])


class Attention(nn.Module):
    """Softmax self-attention: (B, C, H, W) -> (B, C, H, W), O(N^2 C) for N = H * W.

    No position information. Source: arXiv:1706.03762; without biases as in CAFormer, arXiv:2210.13452.

    Args:
        dim: channels.
        grid: unused.
        head_dim: wanted width of a head; where it does not divide ``dim``, the nearest head count that does is taken.
        qkv_bias: whether the query, key and value projection has a bias.
        proj_bias: whether the output projection has a bias.
        projection: factory (dim) of another projection to queries, keys and values (see `mixzoo.blocks.projection`).
        prefix: class tokens in front of the map; they attend and are attended to like positions.
    """

    takes_prefix = True

    input_layers = ("qkv",)  # take the affine map of a norm before the mixer, when the model is folded
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(
        self,
        dim: int,
        grid: Size | None = None,
        head_dim: int = 32,
        qkv_bias: bool = False,
        proj_bias: bool = False,
        projection: Callable[[int], nn.Module] | None = None,
        prefix: int = 0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads_for(dim, head_dim)
        self.scale = (dim // self.num_heads) ** -0.5
        self.qkv = projection(dim) if projection else nn.Conv2d(dim, 3 * dim, 1, bias=qkv_bias)
        self.proj = nn.Conv2d(dim, dim, 1, bias=proj_bias)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)  # unpacked, not iterated: torch.fx traces this
        heads = self.num_heads
        out = attention(split_heads(q, heads), split_heads(k, heads), split_heads(v, heads), self.scale)
        return self.proj(join_heads(out, x))


@register_notrace_module
class RelativeAttention(nn.Module):
    """Softmax self-attention with a learned bias by signed offset: (B, C, H, W) -> (B, C, H, W), O(N^2 C).

    The table of biases is resized bicubically for maps that are not ``grid``. Source: ViT with relative position
    biases, arXiv:2209.15001.

    Args:
        dim: channels.
        grid: (h, w) of the map at the model's ``img_size``.
        head_dim: wanted width of a head, as in `Attention`.
    """

    undecayed = ("bias.table",)  # parameters trained without weight decay
    input_layers = ("qkv",)  # take the affine map of a norm before the mixer, when the model is folded
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(self, dim: int, grid: Size, head_dim: int = 32) -> None:
        super().__init__()
        self.num_heads = num_heads_for(dim, head_dim)
        self.scale = (dim // self.num_heads) ** -0.5
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.bias = SignedGridBias(self.num_heads, grid)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, dim=1))
        return self.proj(join_heads(attention(q, k, v, self.scale, self.bias((x.shape[-2], x.shape[-1]))), x))
