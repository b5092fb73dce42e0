"""InLine attention: linear attention whose weights sum to one, and a local residual (arXiv:2412.06590)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...kernels.dynamic_conv import dynamic_depthwise_conv
from ...kernels.linear_attention import linear_attention
from ..geometry import Size, num_heads_for
from ..tokens import pack_tokens, unpack_tokens
from .attention import join_heads, split_heads

Factory = Callable[[int], nn.Module]
SIDE = 3  # of the local kernels


def kernel_predictor(dim: int, num_heads: int) -> nn.Sequential:
    """The mean of a map (B, C, 1, 1) -> its local kernels (B, 9C, 1, 1), channel by channel; each head by itself."""
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Conv2d(dim, dim, 1, groups=num_heads),
            act=nn.GELU(),
            fc2=nn.Conv2d(dim, SIDE * SIDE * dim, 1, groups=num_heads),
        )
    )


class InLineAttention(nn.Module):
    """Linear attention over all positions, plus a 3 x 3 depthwise convolution of the values with predicted kernels.

    (B, C, H, W) -> (B, C, H, W), O(N C D) for N = H * W and heads of width D. The kernels are predicted from the mean
    of the input. Where there is ``lepe``, its learned depthwise kernel is added to the predicted ones.

    Args:
        dim: channels.
        grid: unused.
        num_heads: by default the divisor of ``dim`` nearest to ``dim / 32``.
        split_queries: whether queries have a projection of their own (``q`` and ``kv``, not ``qkv``), as in PVT.
        lepe: whether a learned depthwise convolution of the values is added as well, as in CSWin.
        norm: of the input, where the mean must not be that of a normalised map; none by default.
        prefix: class tokens in front of the map; they attend and are attended to, and have no local residual.
    """

    takes_prefix = True
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(
        self,
        dim: int,
        grid: Size | None = None,
        num_heads: int | None = None,
        split_queries: bool = False,
        lepe: bool = False,
        norm: Factory = nn.Identity,
        prefix: int = 0,
    ) -> None:
        super().__init__()
        heads = self.num_heads = num_heads or num_heads_for(dim, 32)
        self.scale = (dim // heads) ** -0.5
        self.norm = norm(dim)
        self.split_queries = split_queries
        if split_queries:
            self.q, self.kv = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, 2 * dim, 1)
        else:
            self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.local = kernel_predictor(dim, heads)
        self.lepe = nn.Conv2d(dim, dim, SIDE, padding=SIDE // 2, groups=dim) if lepe else None
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        kernels = self.local(x.mean((2, 3), keepdim=True)).flatten(1).unflatten(1, (-1, SIDE, SIDE))
        q, k, v = self._projected(self.norm(x))
        heads = self.num_heads
        tokens = split_heads(q, heads), split_heads(k, heads), split_heads(v, heads)
        out = join_heads(linear_attention(*tokens, "inline", self.scale), x)
        return self.proj(out + self._local(v, kernels, size))

    def _local(self, v: Tensor, kernels: Tensor, size: Size | None) -> Tensor:
        """The local residual of the values (B, C, H, W), or of the map in packed ones."""
        if size is not None:
            prefix, v = unpack_tokens(v, size)
            return pack_tokens(torch.zeros_like(prefix), self._local(v, kernels, None))
        if self.lepe is None:
            return dynamic_depthwise_conv(v, kernels)
        out = dynamic_depthwise_conv(v, kernels + self.lepe.weight.squeeze(1))
        return out if self.lepe.bias is None else out + self.lepe.bias.view(-1, 1, 1)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.split_queries:
            k, v = self.kv(x).chunk(2, dim=1)
            return self.q(x), k, v
        q, k, v = self.qkv(x).chunk(3, dim=1)
        return q, k, v
