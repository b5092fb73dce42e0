"""Nearest neighbours for runtimes that do not say which is near, or take others than PyTorch does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def nearest(x: Tensor, size: Sequence[int] | None, factors: Sequence[float] | None = None) -> Tensor:
    """A map (B, C, H, W) resized as PyTorch does: elements by their numbers where a factor is not whole."""
    before = [int(side) for side in x.shape[2:]]  # in a trace they are tensors
    after = list(size or (int(side * factor) for side, factor in zip(before, factors or (), strict=True)))
    if not any(large % small for large, small in zip(after, before, strict=True)):
        return F.interpolate(x, after)
    for i in (0, 1):
        x = x.index_select(i + 2, torch.from_numpy(_taken(before[i], after[i], factors[i] if factors else None)))
    return x


def interpolate(
    x: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """`torch.nn.functional.interpolate`, with maps resized by `nearest` where that is the mode."""
    if mode != "nearest" or x.ndim != 4 or recompute_scale_factor:
        return F.interpolate(x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    sides = [size] * 2 if isinstance(size, int) else size
    factors = [scale_factor] * 2 if isinstance(scale_factor, int | float) else scale_factor
    return nearest(x, sides, factors)


def _taken(length: int, wanted: int, factor: float | None) -> np.ndarray:
    """The number of the element of ``length`` that PyTorch takes for each of those ``wanted``, int64."""
    scale = np.float32(1 / factor) if factor else np.float32(length) / np.float32(wanted)
    return np.minimum(np.floor(np.arange(wanted, dtype=np.float32) * scale), length - 1).astype(np.int64)
