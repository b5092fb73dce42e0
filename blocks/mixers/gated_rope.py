"""Attention with rotary positions, a depthwise branch on the values and a gate (RALA, MALA, NaLa).

Sources: arXiv:2411.07635 (RALA, RAVLT), arXiv:2507.00698 (MALA, MAViT) and arXiv:2506.21137 (NaLaFormer), whose
networks share this layout: linear attention on large maps, softmax attention on small ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ...kernels import attention
from ...kernels.linear_attention import linear_attention
from ...kernels.rotary import Rope, rotate_pairs
from ..geometry import Size
from ..rope import RotaryEmbedding
from .attention import join_heads, split_heads


def rotary_heads(dim: int, head_dim: int) -> int:
    """The head count nearest to ``dim / head_dim`` that gives heads of a multiple of four channels.

    Raises:
        ValueError: ``dim`` is not a multiple of four.
    """
    counts = [n for n in range(1, dim // 4 + 1) if dim % (4 * n) == 0]
    if not counts:
        raise ValueError(f"rotary positions on two axes take a multiple of 4 channels, not {dim}")
    return min(counts, key=lambda n: (abs(n - dim / head_dim), n))


class RopeAttention(nn.Module):
    """``proj(norm(attend(q, k, v) + lepe(v)) * gate(o))`` with softmax attention: (B, C, H, W) -> the same, O(N^2 C).

    q, k, v and o come from one 1x1 convolution; q and k turn by row and column; lepe is a depthwise 5x5. Nothing is
    bound to a map size.

    Args:
        dim: channels, a multiple of 4.
        grid: (h, w) that rotary tables are kept for when the model is folded.
        head_dim: wanted width of a head.
        norm: factory of the norm before the gate; none by default.
        gate: factory of the gate's activation; none by default.
    """

    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(
        self,
        dim: int,
        grid: Size | None = None,
        head_dim: int = 64,
        norm: Callable[[int], nn.Module] = nn.Identity,
        gate: Callable[[], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        self.num_heads = rotary_heads(dim, head_dim)
        self.scale = (dim // self.num_heads) ** -0.5
        self.qkvo = nn.Conv2d(dim, 4 * dim, 1)
        self.lepe = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.rope: nn.Module = RotaryEmbedding(dim // self.num_heads, grid)
        self.norm, self.gate = norm(dim), gate()
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, gate = self.qkvo(x).chunk(4, dim=1)
        rope = self.rope((x.shape[-2], x.shape[-1]), q)
        heads = self.num_heads
        out = self.attend(split_heads(q, heads), split_heads(k, heads), split_heads(v, heads), rope)
        return self.proj(self.norm(join_heads(out, x) + self.lepe(v)) * self.gate(gate))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rope: Rope) -> Tensor:
        """(B, heads, N, D) of queries, keys, values -> the same of answers."""
        q, k = (rotate_pairs(t, rope).to(t.dtype) for t in (q, k))
        return attention(q, k, v, self.scale)

    def folded(self) -> nn.Module:
        """With the rotary tables of its own grid made beforehand."""
        if isinstance(self.rope, RotaryEmbedding):
            self.rope = self.rope.fixed(self.qkvo.weight)
        return self


class RankAugmentedAttention(RopeAttention):
    """`RopeAttention` whose core is RALA, linear in the positions: keys are weighted by their share of a mean query."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rope: Rope) -> Tensor:
        return linear_attention(q, k, v, "rala", rope=rope)


class MagnitudeAwareAttention(RopeAttention):
    """`RopeAttention` whose core is MALA, linear in the positions: the size of a query sharpens its weights."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rope: Rope) -> Tensor:
        return linear_attention(q, k, v, "mala", rope=rope)


class NormAwareAttention(RopeAttention):
    """`RopeAttention` whose core is NaLa, linear in the positions: queries with a large norm attend more sharply.

    Positive and negative channels are features of their own, so that opposite directions do not meet. The gate is a
    SiLU, after a LayerNorm over the channels.
    """

    def __init__(self, dim: int, grid: Size | None = None, head_dim: int = 64) -> None:
        super().__init__(dim, grid, head_dim, partial(LayerNorm2d, eps=1e-5), nn.SiLU)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rope: Rope) -> Tensor:
        return linear_attention(q, k, v, "nala", rope=rope)
