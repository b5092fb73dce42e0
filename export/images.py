"""Images to compare with, always the same ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import Size


def synthetic_image(channels: int, size: Size, index: int) -> Tensor:
    """Image ``index`` of a size: float32 (1, channels, H, W) in [0, 1], smooth shapes with some noise.

    Noise alone would not do: pooling makes all noise alike, and every image would give nearly the same outputs.
    """
    generator = torch.Generator().manual_seed(7919 * index + 31 * size[0] + size[1])
    coarse = torch.rand(1, channels, 5, 5, generator=generator)
    smooth = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    noise = torch.rand(1, channels, *size, generator=generator)
    return (0.8 * smooth + 0.2 * noise).clamp(0, 1)


def normalized(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """``(image - mean) / std`` per channel."""
    return (image - _column(mean)) / _column(std)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).reshape(1, -1, 1, 1)
