"""Linear attention with the feature map of choice (see `mixzoo.kernels.linear_attention`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.linear_attention import focus, linear_attention, resolve_kind
from ..geometry import Size, num_heads_for
from ..tables import PositionEmbedding
from .attention import join_heads, split_heads


class FocusedFeatures(nn.Module):
    """FLatten's feature map over all channels of a position: scaled ReLU, cubed with its norm kept (arXiv:2308.00442).

    (B, C, H, W) -> the same shape, non-negative. One scale per channel serves queries and keys.
    """

    def __init__(self, dim: int, num_heads: int, power: int = 3) -> None:
        super().__init__()
        self.power = power
        self.scale = nn.Parameter(torch.zeros(dim, 1, 1))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        scale = 1 / F.softplus(self.scale)
        return focus(q, self.power, 1, scale), focus(k, self.power, 1, scale)


class HedgehogProjection(nn.Module):
    """What Hedgehog learns: a linear map of each head's queries and of its keys, first the identity (arXiv:2402.04347).

    (B, C, H, W) -> the same shape; the softmax over channels and their negatives is the op's.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.q, self.k = (nn.Conv2d(dim, dim, 1, groups=num_heads) for _ in range(2))
        for conv in (self.q, self.k):
            nn.init.dirac_(conv.weight, num_heads)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q(q), self.k(k)


# learned feature maps (dim, num_heads) -> module of (q, k) maps, and the kind of the op that takes what they give
LEARNED: dict[str, tuple[Callable[[int, int], nn.Module], str]] = {
    "focused": (FocusedFeatures, "given"),
    "hedgehog": (HedgehogProjection, "hedgehog"),
}


class SharedDepthwise(nn.Module):
    """A depthwise convolution whose kernels are the same for every head: (B, heads * D, H, W) -> the same shape.

    Args:
        head_dim: channels D of a head.
        num_heads: heads.
        kernel_size: odd.
    """

    def __init__(self, head_dim: int, num_heads: int, kernel_size: int) -> None:
        super().__init__()
        self.num_heads, self.padding = num_heads, kernel_size // 2
        self.weight = nn.Parameter(torch.empty(head_dim, 1, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(head_dim))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.repeat(self.num_heads, 1, 1, 1), self.bias.repeat(self.num_heads)
        return F.conv2d(x, weight, bias, padding=self.padding, groups=weight.shape[0])

    def folded(self) -> nn.Module:
        """A plain depthwise convolution."""
        dim = self.num_heads * self.weight.shape[0]
        conv = nn.Conv2d(dim, dim, 2 * self.padding + 1, padding=self.padding, groups=dim).to(self.weight)
        conv.weight.data = self.weight.detach().repeat(self.num_heads, 1, 1, 1)
        assert conv.bias is not None
        conv.bias.data = self.bias.detach().repeat(self.num_heads)
        return conv


class LinearAttention(nn.Module):
    """Linear attention over all positions: (B, C, H, W) -> (B, C, H, W), O(N C D) for N positions and heads of width D.

    Args:
        dim: channels.
        grid: (h, w) of the map at the model's ``img_size``; used by ``position`` alone.
        kind: name in `mixzoo.kernels.linear_attention.KINDS`: elu, relu, focused, inline, rala, mala, sla, hedgehog,
            l2vit, nala.
        head_dim: wanted width of a head.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        split_queries: whether queries have a projection of their own (``q`` and ``kv``, not ``qkv``), as in PVT.
        local: side of a depthwise kernel on the values, shared by the heads and added to the answers; 0 for none.
        lepe: side of another one, which every channel has its own of, as in CSWin (arXiv:2107.00652); 0 for none.
        position: whether keys get a learned position embedding, resized bicubically for maps that are not ``grid``.

    Raises:
        ValueError: no such kind.
    """

    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(
        self,
        dim: int,
        grid: Size | None = None,
        kind: str = "elu",
        head_dim: int = 32,
        qkv_bias: bool = True,
        split_queries: bool = False,
        local: int = 0,
        lepe: int = 0,
        position: bool = False,
    ) -> None:
        super().__init__()
        heads = self.num_heads = num_heads_for(dim, head_dim)
        if split_queries:
            self.q = nn.Conv2d(dim, dim, 1, bias=qkv_bias)
            self.kv = nn.Conv2d(dim, 2 * dim, 1, bias=qkv_bias)
        else:
            self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=qkv_bias)
        self.split_queries = split_queries
        self.input_layers = ("q", "kv") if split_queries else ("qkv",)  # take the affine map of a norm before them
        features, self.kind = LEARNED.get(kind, (None, kind))
        resolve_kind(self.kind)
        self.features = features(dim, heads) if features else None
        self.position = _key_position(dim, grid) if position else nn.Identity()
        self.local = SharedDepthwise(dim // heads, heads, local) if local else None
        self.lepe = nn.Conv2d(dim, dim, lepe, padding=lepe // 2, groups=dim) if lepe else None
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.split_queries:
            q, (k, v) = self.q(x), self.kv(x).chunk(2, dim=1)
        else:
            q, k, v = self.qkv(x).chunk(3, dim=1)
        k = self.position(k)
        if self.features is not None:
            q, k = self.features(q, k)
        heads = self.num_heads
        out = linear_attention(split_heads(q, heads), split_heads(k, heads), split_heads(v, heads), self.kind)
        joined = join_heads(out, x)
        for around in (self.local, self.lepe):
            joined = joined if around is None else joined + around(v)
        return self.proj(joined)


def _key_position(dim: int, grid: Size | None) -> nn.Module:
    if grid is None:
        raise ValueError("a position embedding belongs to a grid: give the (h, w) of the map")
    return PositionEmbedding(dim, grid)
