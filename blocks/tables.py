"""Position parameters that belong to a grid, and how they follow another one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..kernels.dispatch import known
from ..kernels.windows import positions
from .geometry import Size, as_table, resize_table


class GridModule(nn.Module):
    """A module whose parameters named in ``grid_tables`` end in (h, w) and may come from another grid.

    Loading a checkpoint made at another image size resizes them (``resize_mode``), which is what the official
    fine-tuning scripts do. A table whose count fits no grid is left as it is, so that `load_state_dict` reports its
    shape.
    """

    grid_tables: tuple[str, ...] = ()
    resize_mode = "bicubic"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self.grid_tables:
            key = prefix + name
            own = getattr(self, name, None)
            if own is not None and key in state_dict and state_dict[key].shape != own.shape:
                try:
                    state_dict[key] = as_table(state_dict[key], own, self.resize_mode)
                except ValueError:
                    continue
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def offset_index(size: Size, device: torch.device | None = None) -> Tensor:
    """(N, N) int64 index ``|dy| * w + |dx|`` between all positions of an h x w grid, N = h * w."""
    y, x = positions(size, device)
    return (y[:, None] - y[None]).abs() * size[1] + (x[:, None] - x[None]).abs()


@register_notrace_module
class RelativeBias(GridModule):
    """Attention bias by absolute offset (LeViT, arXiv:2104.01136): one learned value per head and per (|dy|, |dx|).

    ``forward(size)`` gives (heads, N, N) for an h x w grid, N = h * w. At a size other than ``grid`` the table is
    resized bicubically.

    Args:
        num_heads: number of heads.
        grid: (h, w) the table is made for.
    """

    grid_tables = ("table",)
    index: Tensor

    def __init__(self, num_heads: int, grid: Size) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.zeros(num_heads, *grid))
        self.register_buffer("index", offset_index(grid), persistent=False)

    def forward(self, size: Size) -> Tensor:
        return (
            self.table.flatten(1)[:, self.index] if known(*size) and size == self.grid else grid_bias(self.table, size)
        )

    def folded(self) -> nn.Module:
        return FixedRelativeBias(self)


def signed_offset_index(queries: Size, table: Size, device: torch.device | None = None, halo: int = 0) -> Tensor:
    """(N, M) int64 index of the offset query minus key into a flat (2h - 1, 2w - 1) ``table`` whose centre is zero.

    N = rows * columns of ``queries``, a window; keys are the M positions up to ``halo`` around it, at most h x w from
    its first position to their last.
    """
    h, w = (table[0] + 1) // 2, (table[1] + 1) // 2
    (y, x), (key_y, key_x) = positions(queries, device), positions(queries, device, halo)
    return (y[:, None] - key_y + h - 1) * (2 * w - 1) + x[:, None] - key_x + w - 1


@register_notrace_module
class SignedRelativeBias(GridModule):
    """Attention bias by signed offset (arXiv:1803.02155, in two dimensions as Swin has it, arXiv:2103.14030).

    One learned value per head and offset: a (heads, 2h - 1, 2w - 1) ``table`` for windows of h x w. A table of a
    checkpoint with other windows is resized bicubically. ``forward(window)`` gives (heads, N, N), query times key, for
    a window that is at most h x w, N its positions: a smaller one uses the centre of the table. With a ``halo``, keys
    are also the positions around the window, and the table is made for window and halo together.

    Args:
        num_heads: number of heads.
        window: (h, w) of a window.
    """

    grid_tables = ("table",)

    def __init__(self, num_heads: int, window: Size) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_heads, 2 * window[0] - 1, 2 * window[1] - 1))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, window: Size, halo: int = 0) -> Tensor:
        size = (self.table.shape[-2], self.table.shape[-1])
        return self.table.flatten(1)[:, signed_offset_index(window, size, self.table.device, halo)]


@register_notrace_module
class SignedGridBias(GridModule):
    """Attention bias over a whole map by signed offset, key minus query (ViT with relative biases, arXiv:2209.15001).

    One learned value per head and offset: a (heads, 2h - 1, 2w - 1) table for a map of ``grid``. ``forward(size)``
    gives (heads, N, N), query times key, N = h * w; at a size other than ``grid`` the table is resized bicubically.

    Args:
        num_heads: number of heads.
        grid: (h, w) of the map the table is made for.
    """

    grid_tables = ("table",)

    def __init__(self, num_heads: int, grid: Size) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.zeros(num_heads, 2 * grid[0] - 1, 2 * grid[1] - 1))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, size: Size) -> Tensor:
        return signed_grid_bias(self.table, size)

    def folded(self) -> nn.Module:
        return FixedRelativeBias(self, signed_grid_bias)


def signed_grid_bias(table: Tensor, size: Size) -> Tensor:
    """(heads, N, N) bias of an h x w map from a table of any map, resized bicubically; see `SignedGridBias`."""
    sides = (2 * size[0] - 1, 2 * size[1] - 1)
    index = signed_offset_index(size, sides, table.device).t()
    return resize_table(table, sides).flatten(1)[:, index]


def grid_bias(table: Tensor, size: Size) -> Tensor:
    """(heads, N, N) bias of an h x w map from a table of any map, resized bicubically; see `RelativeBias`."""
    return resize_table(table, size).flatten(1)[:, offset_index(size, table.device)]


class FixedRelativeBias(nn.Module):
    """A bias whose (heads, N, N) values for its own grid are computed beforehand.

    Args:
        source: the learned bias.
        expand: gives the values for another size from the table.
    """

    table: Tensor
    expanded: Tensor

    def __init__(
        self, source: RelativeBias | SignedGridBias, expand: Callable[[Tensor, Size], Tensor] = grid_bias
    ) -> None:
        super().__init__()
        self.grid, self.expand = source.grid, expand
        self.register_buffer("table", source.table.detach().clone())
        self.register_buffer("expanded", source(source.grid).detach().clone(), persistent=False)

    def forward(self, size: Size) -> Tensor:
        return self.expanded if known(*size) and size == self.grid else self.expand(self.table, size)


@register_notrace_module
class PositionEmbedding(GridModule):
    """Learned embedding added to a (B, C, H, W) map; at a size other than ``grid`` it is resized.

    Args:
        dim: channels.
        grid: (h, w) the table is made for.
        mode: how it is resized, 'bicubic' or 'bilinear'.
    """

    grid_tables = ("table",)

    def __init__(self, dim: int, grid: Size, mode: str = "bicubic") -> None:
        super().__init__()
        self.resize_mode = mode
        self.table = nn.Parameter(torch.zeros(1, dim, *grid))

    def forward(self, x: Tensor) -> Tensor:
        return x + resize_table(self.table, (x.shape[-2], x.shape[-1]), self.resize_mode)


def log_offsets(window: Size, device: torch.device | None = None) -> Tensor:
    """(2h - 1, 2w - 1, 2) float32 offsets of an h x w window, in [-8, 8] and then log-spaced to [-1.06, 1.06].

    Float32 at any precision of the model, as in the authors' code, whose numbers depend on it from the ninth digit on.
    """
    axes = [8 * torch.arange(1 - n, n, dtype=torch.float32, device=device) / max(n - 1, 1) for n in window]
    scaled = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return scaled.sign() * torch.log2(scaled.abs() + 1.0) / 3.0


@register_notrace_module
class ContinuousBias(nn.Module):
    """Attention bias by signed offset from a small network (Swin V2, arXiv:2111.09883): defined for every window.

    ``16 sigmoid(mlp(log_offsets))``; ``forward(window)`` gives (heads, N, N), query times key, N positions of a window.

    Args:
        num_heads: number of heads.
        window: (h, w) of the window that a folded model has the bias of.
        hidden: width of the network.
    """

    def __init__(self, num_heads: int, window: Size, hidden: int = 512) -> None:
        super().__init__()
        self.window = window
        self.mlp = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, num_heads, bias=False))

    def forward(self, window: Size) -> Tensor:
        first = next(self.mlp.parameters())
        offsets = log_offsets(window, first.device).to(first.dtype)
        values = 16 * self.mlp(offsets.flatten(0, 1)).sigmoid()  # (offsets, heads)
        size = (offsets.shape[0], offsets.shape[1])
        return values.t()[:, signed_offset_index(window, size, first.device)]

    def folded(self) -> nn.Module:
        return FixedContinuousBias(self)


class FixedContinuousBias(nn.Module):
    """`ContinuousBias` with the (heads, N, N) bias of one window computed beforehand."""

    expanded: Tensor

    def __init__(self, source: ContinuousBias) -> None:
        super().__init__()
        self.window, self.source = source.window, copy.deepcopy(source)
        self.register_buffer("expanded", source(source.window).detach().clone(), persistent=False)

    def forward(self, window: Size) -> Tensor:
        return self.expanded if window == self.window else self.source(window)
