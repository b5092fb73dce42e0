"""Flow attention as a mixer (Flowformer, arXiv:2202.06258)."""

from __future__ import annotations

from torch import Tensor, nn

from ...kernels.flow_attention import flow_attention
from ..geometry import Size, num_heads_for
from .attention import join_heads, split_heads


class FlowAttention(nn.Module):
    """Linear attention by conserved flow: (B, C, H, W) -> (B, C, H, W), O(N C D) for N positions and heads of width D.

    Args:
        dim: channels.
        grid: unused.
        num_heads: by default C / 32, or the nearest divisor of C.
        guard: added to every flow; the authors' vision code has 1e-6.
    """

    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(self, dim: int, grid: Size | None = None, num_heads: int | None = None, guard: float = 1e-6) -> None:
        super().__init__()
        self.num_heads = num_heads or num_heads_for(dim, 32)
        self.guard = guard
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)
        heads = self.num_heads
        out = flow_attention(split_heads(q, heads), split_heads(k, heads), split_heads(v, heads), self.guard)
        return self.proj(join_heads(out, x))
