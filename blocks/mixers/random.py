"""Random and fully connected mixing over all positions of a fixed grid.

RandFormer (arXiv:2210.13452) mixes with a frozen, softmaxed random matrix; the spatial-FC hybrids of arXiv:2111.11418
learn the matrix. Both cost O(N^2 C) time for N = H * W positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels.dispatch import known
from ..geometry import Size


def resize_mixing(matrix: Tensor, grid: Size, size: Size) -> Tensor:
    """An (N, N) mixing matrix of ``grid`` for another ``size``: (N', N').

    Both position axes are resized bilinearly, and the result is scaled by N / N', so that a position still takes the
    same total weight from the map. The same matrix is returned where the sizes agree and no graph leaves them open.
    """
    if known(*size) and size == grid:
        return matrix
    (h, w), (height, width) = grid, size
    columns = F.interpolate(matrix.reshape(1, h * w, h, w), size=size, mode="bilinear", align_corners=False)
    rows = columns.reshape(1, h, w, -1).permute(0, 3, 1, 2)  # (1, N', h, w)
    both = F.interpolate(rows, size=size, mode="bilinear", align_corners=False)
    return both.reshape(height * width, height * width).t() * (h * w) / (height * width)


class MatrixMixer(nn.Module):
    """``y[:, :, p] = sum_q matrix[p, q] x[:, :, q]`` with the matrix resized where the map is not ``grid``."""

    weight: Tensor
    grid: Size

    def __init__(self, grid: Size) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight_for((x.shape[-2], x.shape[-1]))
        return (x.flatten(2) @ matrix.t()).reshape(x.shape)

    def weight_for(self, size: Size) -> Tensor:
        """The matrix for a map of ``size``: (N, N), N = height * width."""
        return resize_mixing(self.weight, self.grid, size)

    def accepts_weight(self, weight: Tensor) -> bool:
        """Whether a matrix of a checkpoint fits: that of any square grid is resized to this one."""
        side = round(weight.shape[0] ** 0.5)
        return weight.shape in (self.weight.shape, (side * side, side * side))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        loaded = state_dict.get(prefix + "weight")
        if loaded is not None and loaded.shape != self.weight.shape and self.accepts_weight(loaded):
            side = round(loaded.shape[0] ** 0.5)
            state_dict[prefix + "weight"] = resize_mixing(loaded, (side, side), self.grid)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@register_notrace_module
class RandomMixer(MatrixMixer):
    """Mixing by a frozen random matrix whose rows are softmaxed; a buffer, so it is saved but never trained.

    Args:
        dim: channels (unused).
        grid: (h, w) of the map at the model's ``img_size``; other maps resize the matrix (`resize_mixing`).
    """

    def __init__(self, dim: int, grid: Size) -> None:
        super().__init__(grid)
        n = grid[0] * grid[1]
        self.register_buffer("weight", torch.softmax(torch.rand(n, n), dim=-1))


@register_notrace_module
class SpatialLinearMixer(MatrixMixer):
    """A learned, bias-free linear layer over all positions, shared by the channels.

    Args:
        dim: channels (unused).
        grid: (h, w) of the map at the model's ``img_size``; other maps resize the matrix (`resize_mixing`).
    """

    def __init__(self, dim: int, grid: Size) -> None:
        super().__init__(grid)
        n = grid[0] * grid[1]
        self.weight = nn.Parameter(torch.empty(n, n))
        nn.init.trunc_normal_(self.weight, std=0.02)
