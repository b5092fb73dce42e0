"""Average pooling: of a map to a fixed grid, whatever the size of the map, and around each of its positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from ..kernels import exporting
from .geometry import Size


def adaptive_avg_pool(x: Tensor, size: Size) -> Tensor:
    """(B, C, H, W) -> (B, C, h, w): cell i of n averages positions floor(i L / n) to ceil((i + 1) L / n) - 1 of L.

    Under export this is two matrix products, which every runtime has for any size of the map.
    """
    if not exporting():
        return F.adaptive_avg_pool2d(x, size)
    rows, cols = (pooling_matrix(length, n, x) for length, n in zip(x.shape[-2:], size, strict=True))
    return rows @ x @ cols.transpose(0, 1)


@register_notrace_function
def padded_avg_pool(x: Tensor, side: int) -> Tensor:
    """Mean over the positions of the map in a window of ``side`` x ``side`` around each: (B, C, H, W), the same shape.

    PyTorch's gradient of it is wrong on CUDA for channels-last maps, at least up to 2.11 (pytorch#188344): where one is
    wanted there, the map is brought into contiguous order.
    """
    if x.is_cuda and torch.is_grad_enabled():
        x = x.contiguous()
    return F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False)


def pooling_matrix(length: int, n: int, like: Tensor) -> Tensor:
    """(n, length) weights that average the positions of each of ``n`` cells, as ``like``."""
    cell = torch.arange(n, device=like.device).unsqueeze(1)
    position = torch.arange(length, device=like.device).unsqueeze(0)
    first = torch.div(cell * length, n, rounding_mode="floor")
    last = torch.div((cell + 1) * length + n - 1, n, rounding_mode="floor")  # exclusive
    inside = (position >= first) & (position < last)
    return inside.to(like.dtype) / (last - first).to(like.dtype)
