"""Attention in windows that shift from block to block (Swin, arXiv:2103.14030)."""

from __future__ import annotations

from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels.window_attention import window_attention
from ..geometry import Size, num_heads_for
from ..tables import SignedRelativeBias


def clamped(window: int, size: Size) -> Size:
    """The window of a map: a side that is shorter than the window makes it that much shorter."""
    return min(window, size[0]), min(window, size[1])


def shifts(window: int, size: Size, index: int) -> Size:
    """How far the windows of block ``index`` are moved: half a window in odd blocks, along sides longer than one."""
    by = window // 2 if index % 2 else 0
    return by * (size[0] > window), by * (size[1] > window)


@register_notrace_module
class WindowAttention(nn.Module):
    """Softmax attention inside windows, with a learned bias by signed offset: (B, C, H, W) -> (B, C, H, W).

    Windows of odd blocks are moved by half a window; what the cyclic shift brings together is masked. A map that does
    not divide is padded at the bottom and right, and the padding is masked. A side shorter than the window makes the
    window that much shorter, and the bias keeps the meaning of its offsets. O(N w^2 C) for N = H * W.

    Args:
        dim: channels C.
        grid: unused: the bias belongs to the window.
        num_heads: by default the divisor of C nearest to C / 32.
        window: side of a window.
        index: position of the block in its stage.
    """

    per_block = True
    undecayed = ("bias.table",)  # parameters trained without weight decay
    input_layers = ("qkv",)  # take the affine map of a norm before the mixer, when the model is folded
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(
        self, dim: int, grid: Size | None = None, num_heads: int | None = None, window: int = 7, index: int = 0
    ) -> None:
        super().__init__()
        self.num_heads = num_heads or num_heads_for(dim, 32)
        self.window, self.index = window, index
        self.scale = (dim // self.num_heads) ** -0.5
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.bias = SignedRelativeBias(self.num_heads, (window, window))
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        window = clamped(self.window, size)
        shift = shifts(self.window, size, self.index)
        out = window_attention(self.qkv(x), self.num_heads, window, self.scale, self.bias(window), shift)
        return self.proj(out)
