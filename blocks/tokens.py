"""Class tokens beside a map: how they are packed, how blocks run on them, and how they are read.

A packed map has class tokens and positions along one axis: (B, C, prefix + N, 1), tokens first, N = H * W in row order.
Norms and 1x1 convolutions take it as the map that it looks like. Mixers that can tell tokens from positions say so by
``takes_prefix = True``: they are built with ``prefix``, the number of tokens, and called with the size (H, W) of the
map as their second argument.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from .geometry import Size, resize_table
from .residual import Residual
from .tables import GridModule


def pack_tokens(tokens: Tensor, x: Tensor) -> Tensor:
    """Tokens (B or 1, C, prefix, 1) in front of the positions of a map (B, C, H, W): (B, C, prefix + N, 1)."""
    return torch.cat((tokens.expand(x.shape[0], -1, -1, -1), x.flatten(2).unsqueeze(3)), dim=2)


def unpack_tokens(x: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """A packed map of ``size`` as its tokens (B, C, prefix, 1) and the map (B, C, H, W)."""
    prefix = x.shape[2] - size[0] * size[1]
    return x[:, :, :prefix], x[:, :, prefix:].reshape(x.shape[0], x.shape[1], *size)


@register_notrace_module
class ClassToken(GridModule):
    """Adds a learned position embedding to a map and packs it behind a class token: (B, C, H, W) -> (B, C, 1 + N, 1).

    At a size other than ``grid`` the table is resized. Source: ViT, arXiv:2010.11929.

    Args:
        dim: channels.
        grid: (h, w) the table is made for.
        mode: how it is resized, 'bicubic' or 'bilinear'.
    """

    grid_tables = ("table",)
    undecayed = ("token", "position", "table")  # parameters trained without weight decay

    def __init__(self, dim: int, grid: Size, mode: str = "bicubic") -> None:
        super().__init__()
        self.resize_mode = mode
        self.token = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.position = nn.Parameter(torch.zeros(1, dim, 1, 1))  # of the token
        self.table = nn.Parameter(torch.zeros(1, dim, *grid))
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        table = resize_table(self.table, (x.shape[-2], x.shape[-1]), self.resize_mode)
        return pack_tokens(self.token + self.position, x + table)


class TokenBranch(Residual):
    """The mixing branch of a block on packed maps: ``forward(x, size)``, with the size given on to the mixer."""

    def __init__(
        self, members: OrderedDict[str, nn.Module], drop_path: float = 0.0, shortcut: nn.Module | None = None
    ) -> None:
        super().__init__(nn.Sequential(members), drop_path, shortcut)

    def forward(self, x: Tensor, size: Size) -> Tensor:  # type: ignore[override]
        out = x
        for member in self.fn if isinstance(self.fn, nn.Sequential) else (self.fn,):  # folding may leave one alone
            out = member(out, size) if getattr(member, "takes_prefix", False) else member(out)
        return self.shortcut(x) + self.drop_path(out)

    def folded(self) -> nn.Module:
        return self


class TokenBlock(nn.Sequential):
    """A block with a `TokenBranch`: ``forward(x, size)``, packed map to packed map."""

    def forward(self, x: Tensor, size: Size) -> Tensor:  # type: ignore[override]
        for part in self:
            x = part(x, size) if isinstance(part, TokenBranch) else part(x)
        return x


class TokenPool(nn.Module):
    """One vector of tokens (B, prefix + N, C): (B, C), or the tokens themselves.

    Args:
        pool_type: 'token' takes the first token, 'avg' and 'max' pool the positions, '' keeps all.
        prefix: number of class tokens.

    Raises:
        ValueError: another pooling.
    """

    def __init__(self, pool_type: str, prefix: int) -> None:
        super().__init__()
        if pool_type not in ("token", "avg", "max", ""):
            raise ValueError(f"global_pool={pool_type!r}: a model with a class token has 'token', 'avg', 'max' and ''")
        self.pool_type, self.prefix = pool_type, prefix

    def is_identity(self) -> bool:
        return not self.pool_type

    def feat_mult(self) -> int:
        """Width of the vector in multiples of C."""
        return 1

    def forward(self, x: Tensor) -> Tensor:
        if self.pool_type == "token":
            return x[:, 0]
        if self.pool_type == "avg":
            return x[:, self.prefix :].mean(dim=1)
        return x[:, self.prefix :].amax(dim=1) if self.pool_type else x

    def extra_repr(self) -> str:
        return f"{self.pool_type!r}, prefix={self.prefix}"
