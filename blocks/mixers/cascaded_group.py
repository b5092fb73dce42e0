"""Cascaded group attention in local windows (EfficientViT, arXiv:2305.07027)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels import attention
from ..conv import conv_norm, depthwise_norm
from ..geometry import Size, from_windows, num_heads_for, pad_to_windows, refuse_open, to_windows
from ..tables import RelativeBias


@register_notrace_module
class CascadedGroupAttention(nn.Module):
    """Each head attends over its own slice of the channels, plus what the head before it returned.

    (B, C, H, W) -> (B, C, H, W). Per head: 1x1 conv-BN to q, k, v; depthwise conv-BN on q; softmax attention with a
    relative position bias. The heads are joined, then ReLU and a 1x1 conv-BN.

    Windows: a map larger than ``window`` is split into windows, zero-padded at the bottom and right; the padding takes
    part in the attention, as in the official code. A side shorter than ``window`` makes the window that much shorter.
    The bias table is made for ``min(window, grid)`` and resized bicubically for windows of another size. Cost is
    O(N w^2 C) for N = H * W positions.

    Args:
        dim: channels C; divided by ``num_heads``.
        grid: (h, w) of the map at the model's ``img_size``.
        num_heads: groups in the cascade; by default the divisor of C nearest to C / 32.
        key_dim: width of queries and keys of a head.
        kernels: side of the depthwise kernel on q, per head; the last one repeats.
        window: side of a window.
    """

    undecayed = ("bias.table",)  # parameters trained without weight decay

    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(
        self,
        dim: int,
        grid: Size,
        num_heads: int | None = None,
        key_dim: int = 16,
        kernels: Sequence[int] = (5,),
        window: int = 7,
    ) -> None:
        super().__init__()
        num_heads = num_heads or num_heads_for(dim, 32)
        width = dim // num_heads
        sides = [kernels[min(i, len(kernels) - 1)] for i in range(num_heads)]
        self.window = window
        self.splits = (key_dim, key_dim, width)
        self.scale = key_dim**-0.5
        self.num_heads = num_heads
        self.qkvs = nn.ModuleList(conv_norm(width, sum(self.splits)) for _ in sides)
        self.dws = nn.ModuleList(depthwise_norm(key_dim, side) for side in sides)
        self.bias = RelativeBias(num_heads, (min(window, grid[0]), min(window, grid[1])))
        self.act = nn.ReLU(inplace=True)  # on the fresh result of a concatenation
        self.proj = conv_norm(dim, dim, bn_weight=0.0)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        refuse_open(
            (height, width), "cascaded groups look at padding in whole windows, and at none in one that is cut short"
        )
        window = (min(self.window, height), min(self.window, width))
        if window == (height, width):
            return self._attend(x)
        padded = pad_to_windows(x, window)
        out = from_windows(self._attend(to_windows(padded, window)), (padded.shape[-2], padded.shape[-1]))
        return out[:, :, :height, :width]

    def _attend(self, x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        biases = self.bias(size).unbind(0)  # (N, N) per head
        out: list[Tensor] = []
        for i, chunk in enumerate(x.chunk(self.num_heads, dim=1)):
            q, k, v = self.qkvs[i](chunk + out[-1] if out else chunk).split(self.splits, dim=1)
            tokens = (t.flatten(2).transpose(1, 2) for t in (self.dws[i](q), k, v))  # (B, N, D) each
            out.append(attention(*tokens, self.scale, biases[i]).transpose(1, 2).unflatten(2, size))
        return self.proj(self.act(torch.cat(out, dim=1)))
