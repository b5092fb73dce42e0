"""Spatial-reduction attention, whose keys and values come from a smaller map (arXiv:2102.12122, arXiv:2106.13797)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ...kernels import attention
from ..affine import affine_after, batch_norm_affine
from ..geometry import Size, num_heads_for, pad_to_least
from ..pooling import adaptive_avg_pool
from ..tokens import pack_tokens, unpack_tokens
from .attention import join_heads, split_heads

Factory = Callable[[int], nn.Module]
_norm: Factory = partial(LayerNorm2d, eps=1e-5)


class _ReducedAttention(nn.Module):
    """Softmax attention of all positions to those of ``reduce(x)``: (B, C, H, W) -> (B, C, H, W).

    Class tokens in front of a packed map attend and are attended to; only the map is reduced.
    """

    takes_prefix = True
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(self, dim: int, num_heads: int | None, reduce: nn.Module) -> None:
        super().__init__()
        self.num_heads = num_heads or num_heads_for(dim, 64)
        self.scale = (dim // self.num_heads) ** -0.5
        self.reduce = reduce
        if isinstance(reduce, nn.Identity):
            self.input_layers = ("q", "kv")  # take the affine map of a norm before the mixer, when the model is folded
        self.q = nn.Conv2d(dim, dim, 1)
        self.kv = nn.Conv2d(dim, 2 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        k, v = self.kv(self._reduced(x, size)).chunk(2, dim=1)
        heads = self.num_heads
        out = attention(split_heads(self.q(x), heads), split_heads(k, heads), split_heads(v, heads), self.scale)
        return self.proj(join_heads(out, x))

    def _reduced(self, x: Tensor, size: Size | None) -> Tensor:
        if size is None or isinstance(self.reduce, nn.Identity):
            return self.reduce(x)
        tokens, positions = unpack_tokens(x, size)
        return pack_tokens(tokens, self.reduce(positions))


class StridedReduction(nn.Sequential):
    """A convolution whose kernel is its stride, then a norm: (B, C, H, W) -> (B, C, H // ratio, W // ratio).

    Rows and columns that do not fill a kernel are dropped, as in the official code; a side shorter than the kernel is
    zero-padded to it.
    """

    def __init__(self, dim: int, ratio: int, norm: Factory = _norm) -> None:
        super().__init__(OrderedDict(conv=nn.Conv2d(dim, dim, ratio, ratio), norm=norm(dim)))
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_to_least(x, (self.ratio, self.ratio)))

    def folded(self) -> nn.Module:
        """The same with a batch norm taken into the convolution."""
        conv, norm = self
        if isinstance(norm, nn.BatchNorm2d):
            assert isinstance(conv, nn.Conv2d)
            affine_after(conv, *batch_norm_affine(norm))
            self[1] = nn.Identity()
        return self


class PooledReduction(nn.Sequential):
    """Average pooling to a fixed grid, 1x1 convolution, norm, GELU: (B, C, H, W) -> (B, C, side, side)."""

    def __init__(self, dim: int, side: int, norm: Factory = _norm) -> None:
        super().__init__(OrderedDict(conv=nn.Conv2d(dim, dim, 1), norm=norm(dim), act=nn.GELU()))
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(adaptive_avg_pool(x, (self.side, self.side)))


class SpatialReductionAttention(_ReducedAttention):
    """Attention to a map that a strided convolution made ``ratio`` times smaller: O(N^2 C / ratio^2) for N = H * W.

    No position information. Source: arXiv:2102.12122, section 3.3.

    Args:
        dim: channels.
        grid: (h, w) of the map at the model's ``img_size``; only the default of ``ratio`` looks at it.
        num_heads: by default the divisor of ``dim`` nearest to ``dim / 64``.
        ratio: stride and kernel of the reduction; 1 for none. By default the reduced map is about 7 wide, as in the
            paper.
        norm: of the reduced map.
        prefix: class tokens in front of the map.
    """

    def __init__(
        self,
        dim: int,
        grid: Size | None = None,
        num_heads: int | None = None,
        ratio: int | None = None,
        norm: Factory = _norm,
        prefix: int = 0,
    ) -> None:
        ratio = ratio or max(1, min(grid or (14, 14)) // 7)
        super().__init__(dim, num_heads, StridedReduction(dim, ratio, norm) if ratio > 1 else nn.Identity())


class PooledAttention(_ReducedAttention):
    """Attention to a map that was averaged to ``side`` x ``side``: O(N side^2 C), the linear attention of PVT v2.

    No position information. Source: arXiv:2106.13797, section 3.1.

    Args:
        dim: channels.
        grid: unused.
        num_heads: by default the divisor of ``dim`` nearest to ``dim / 64``.
        side: of the pooled map.
        norm: of the pooled map.
        prefix: class tokens in front of the map.
    """

    def __init__(
        self,
        dim: int,
        grid: Size | None = None,
        num_heads: int | None = None,
        side: int = 7,
        norm: Factory = _norm,
        prefix: int = 0,
    ) -> None:
        super().__init__(dim, num_heads, PooledReduction(dim, side, norm))
