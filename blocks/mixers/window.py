"""Attention in windows that shift from block to block (Swin, arXiv:2103.14030; Swin V2, arXiv:2111.09883)."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels.dispatch import known
from ...kernels.window_attention import window_attention
from ...kernels.windows import num_windows
from ..geometry import Size, num_heads_for, refuse_open
from ..tables import ContinuousBias, SignedRelativeBias

MAX_LOG_SCALE = math.log(100.0)


def clamped(window: int, size: Size) -> Size:
    """The window of a map: a side that is shorter than the window makes it that much shorter."""
    return min(window, size[0]), min(window, size[1])


def masked(window: int, size: Size) -> Size:
    """`clamped`, but whole where a graph leaves a side open: padding, which is masked, fills a window just as well."""
    height, width = (min(window, n) if known(n) else window for n in size)
    return height, width


def shifts(window: int, size: Size, index: int) -> Size:
    """How far the windows of block ``index`` are moved: half a window in odd blocks, along sides longer than one."""
    by = window // 2 if index % 2 else 0
    return by * several(window, size[0]), by * several(window, size[1])


def several(window: int, length: int) -> int:
    """1 where an axis is longer than one window, else 0; without a branch, as ``length`` may be a symbol of a graph."""
    if known(length):
        return int(length > window)
    count = num_windows(length, window)
    return 2 * (count - 1) // count


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
        window = masked(self.window, size)
        shift = shifts(self.window, size, self.index)
        out = window_attention(self.qkv(x), self.num_heads, window, self.scale, self.bias(window), shift)
        return self.proj(out)


class BiasedProjection(nn.Module):
    """Queries, keys and values by one 1x1 convolution, without a bias of the keys: (B, C, H, W) -> (B, 3C, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))

    def joint_bias(self) -> Tensor:
        return torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight, self.joint_bias())

    def folded(self) -> nn.Module:
        """The convolution with its bias."""
        conv = copy.deepcopy(self.conv)
        conv.bias = nn.Parameter(self.joint_bias().detach().clone(), requires_grad=False)
        return conv


def unit_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, heads * D, H, W) with the channels of each head scaled to length one, which float16 could not square."""
    heads = x.unflatten(1, (num_heads, -1))
    half = heads.dtype in (torch.float16, torch.bfloat16)
    return F.normalize(heads.float() if half else heads, dim=2).to(x.dtype).flatten(1, 2)


@register_notrace_module
class CosineWindowAttention(nn.Module):
    """Attention by cosine inside windows, with a continuous bias by log-spaced offset: (B, C, H, W) -> (B, C, H, W).

    ``softmax(scale cos(q, k) + bias) v`` with a learned scale per head, at most 100. Shift, padding and masks are those
    of `WindowAttention`. A side shorter than the window makes the window that much shorter, and offsets are measured in
    windows of that size, as in a model that is made for it.

    Args:
        dim: channels C.
        grid: (h, w) of the map at the model's ``img_size``; only a folded model's bias looks at it.
        num_heads: by default the divisor of C nearest to C / 32.
        window: side of a window.
        index: position of the block in its stage.
    """

    per_block = True
    undecayed = ("log_scale", "bias.mlp.0.weight", "bias.mlp.2.weight")  # trained without weight decay
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(self, dim: int, grid: Size, num_heads: int | None = None, window: int = 8, index: int = 0) -> None:
        super().__init__()
        self.num_heads = num_heads or num_heads_for(dim, 32)
        self.window, self.index = window, index
        self.qkv = BiasedProjection(dim)
        self.log_scale = nn.Parameter(torch.full((self.num_heads, 1, 1), math.log(10.0)))
        self.bias = ContinuousBias(self.num_heads, clamped(window, grid))
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        refuse_open(size, "the bias of a cosine window that is cut short is measured in other units")
        window = clamped(self.window, size)
        q, k, v = self.qkv(x).chunk(3, dim=1)
        scale = self.log_scale.clamp(max=MAX_LOG_SCALE).exp().expand(-1, x.shape[1] // self.num_heads, 1)
        q = unit_heads(q, self.num_heads) * scale.reshape(1, -1, 1, 1)
        qkv = torch.cat((q, unit_heads(k, self.num_heads), v), dim=1)
        shift = shifts(self.window, size, self.index)
        return self.proj(window_attention(qkv, self.num_heads, window, 1.0, self.bias(window), shift))
