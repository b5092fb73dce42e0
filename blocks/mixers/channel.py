"""The two attentions of DaViT (arXiv:2204.03645): between channels that saw the whole map, and inside plain windows."""

from __future__ import annotations

from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels import attention_reference
from ...kernels.window_attention import window_attention
from ..geometry import Size, num_heads_for, pad_to_windows


class ChannelAttention(nn.Module):
    """Softmax attention between the channels of a group: (B, C, H, W) -> (B, C, H, W), O(N C head_dim) for N = H * W.

    Per group of D channels: ``softmax(k^T v / sqrt(D)) q^T`` with (N, D) queries, keys and values, so the map that
    weighs channels is D x D for any size. No position information.

    Args:
        dim: channels.
        grid: unused.
        num_heads: channel groups, or the nearest count that divides ``dim``; by default about dim / 32.
        qkv_bias: whether the query, key and value projection has a bias.
    """

    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(self, dim: int, grid: Size | None = None, num_heads: int | None = None, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads_for(dim, dim / num_heads if num_heads else 32)
        self.scale = (dim // self.num_heads) ** -0.5
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=qkv_bias)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.flatten(2).unflatten(1, (self.num_heads, -1)) for t in self._projected(x))  # (B, heads, D, N)
        out = attention_reference(k, v, q, self.scale)  # its tokens are channels
        return self.proj(out.flatten(1, 2).unflatten(2, x.shape[-2:]))

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, dim=1)  # unpacked, not iterated: torch.fx traces this
        return q, k, v


@register_notrace_module
class PaddedWindowAttention(nn.Module):
    """Softmax attention inside windows that stay where they are, without a position bias: (B, C, H, W) -> the same.

    A map that does not divide is zero-padded at the bottom and right; the padding takes part in the attention, as in
    the official code. O(N w^2 C) for N = H * W.

    Args:
        dim: channels C.
        grid: unused.
        head_dim: wanted width of a head.
        window: side of a window.
    """

    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(self, dim: int, grid: Size | None = None, head_dim: int = 32, window: int = 7) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads_for(dim, head_dim), (window, window)
        self.scale = (dim // self.num_heads) ** -0.5
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(pad_to_windows(x, self.window))  # padded before, so that it has queries and keys of its own
        out = window_attention(qkv, self.num_heads, self.window, self.scale)
        return self.proj(out[:, :, : x.shape[2], : x.shape[3]])
