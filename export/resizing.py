"""Resized maps for runtimes that resize by other rules than PyTorch does, or not at all.

Nearest neighbours: which is near, some do not say. Antialiasing: few know it, and some leave it out without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    *others: Any,
    **options: Any,
) -> Tensor:
    """`torch.nn.functional.interpolate`, with maps resized by `nearest` where that is the mode, and as `smoothed`."""
    recomputed = any(others[1:2]) or options.get("recompute_scale_factor")  # behind align_corners
    if mode != "nearest" or x.ndim != 4 or recomputed:
        return smoothed(x, size, scale_factor, mode, *others, **options)
    return nearest(x, _two(size), _two(scale_factor))


def smoothed(
    x: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """`torch.nn.functional.interpolate`, with antialiasing as a product with a matrix for each axis of a map.

    Only where all sides are known. A column alone is resized as any other, of which torch repeats the first value.
    """
    sides, factors = _two(size), _two(scale_factor)
    numbers = [side for side in (*x.shape[2:], *(sides or ())) if isinstance(side, int | Tensor)]
    known = len(numbers) == 2 + len(sides or ()) and mode in _FILTERS and not align_corners
    if not (antialias and known):
        return F.interpolate(x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    before = [int(side) for side in x.shape[2:]]  # in a trace they are tensors
    after = [int(side) for side in sides or (a * factor for a, factor in zip(before, factors or (), strict=True))]
    kept = factors if factors and not recompute_scale_factor else (None, None)
    rows, columns = (_weights(*item, mode, x.dtype) for item in zip(before, after, kept, strict=True))
    return rows @ x @ columns.T


def _two(given: Any) -> Any:
    """One for each of two axes."""
    return [given] * 2 if isinstance(given, int | float) else given


def _weights(length: int, wanted: int, factor: float | None, mode: str, dtype: torch.dtype) -> Tensor:
    """Of ``length`` elements in each of ``wanted``, (wanted, length)."""
    reach, weigh = _FILTERS[mode]
    scale = 1 / factor if factor else length / wanted
    wide = max(scale, 1.0)
    centres = scale * (np.arange(wanted)[:, None] + 0.5)
    first, last = np.floor(centres - reach * wide + 0.5), np.floor(centres + reach * wide + 0.5)
    places = np.arange(length)
    weights = weigh(np.abs(places + 0.5 - centres) / wide) * ((places >= first) & (places < last))
    weights /= weights.sum(1, keepdims=True)
    if dtype == torch.float32:
        return torch.from_numpy(weights.astype(np.float32))  # one constant in a graph
    return torch.from_numpy(weights).to(dtype)


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' filter with Pillow's parameter, -0.5, which torch takes too where it is antialiased."""
    far = -0.5 * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, far, 0))


_FILTERS = {"bilinear": (1, _linear), "bicubic": (2, _cubic)}  # how far each reaches


def _taken(length: int, wanted: int, factor: float | None) -> np.ndarray:
    """The number of the element of ``length`` that PyTorch takes for each of those ``wanted``, int64."""
    scale = np.float32(1 / factor) if factor else np.float32(length) / np.float32(wanted)
    return np.minimum(np.floor(np.arange(wanted, dtype=np.float32) * scale), length - 1).astype(np.int64)
