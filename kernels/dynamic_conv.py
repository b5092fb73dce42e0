"""Depthwise convolution whose kernels differ for every sample: ``out[b, c] = conv2d(x[b, c], kernels[b, c])``.

Shapes: x (B, C, H, W), kernels (B, C, k, k), k odd; result (B, C, H, W), zero-padded at the border.
Time O(B C H W k^2), memory O(B C H W). The reference is k^2 shifted products, which have no batch in any attribute and
export for any size; the candidate is one grouped convolution over B * C channels.
Served by: the candidate on the CPU, CUDA and MPS, whose convolutions have kernels for one channel to a group.
Source: the local residual of InLine attention, arXiv:2412.06590, section 4.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from .dispatch import Candidate, Op


def dynamic_depthwise_conv_reference(x: Tensor, kernels: Tensor) -> Tensor:
    """The equation, offset by offset."""
    side, (height, width) = int(kernels.shape[-1]), x.shape[-2:]  # a trace holds sizes as tensors
    padded = F.pad(x, (side // 2,) * 4)
    out = padded[:, :, :height, :width] * kernels[:, :, :1, :1]
    for offset in range(1, side * side):
        top, left = divmod(offset, side)
        shifted = padded[:, :, top : top + height, left : left + width]
        out = out + shifted * kernels[:, :, top : top + 1, left : left + 1]
    return out


def _grouped(x: Tensor, kernels: Tensor) -> Tensor:
    side = kernels.shape[-1]
    channels = x.shape[0] * x.shape[1]
    flat = x.reshape(1, channels, *x.shape[2:])
    out = F.conv2d(flat, kernels.reshape(channels, 1, side, side), padding=side // 2, groups=channels)
    return out.reshape(x.shape)


def _grouped_unsupported(x: Tensor, kernels: Tensor) -> str | None:
    if not isinstance(x.shape[0], int):
        return "the number of groups is the batch times the channels, which must be known"
    return None


def bench_inputs(side: int, heads: int, dim: int = 64, batch: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments: a map of ``dim`` channels and kernels of 3 x 3; heads play no part."""
    return (torch.randn(batch, dim, side, side), torch.randn(batch, dim, 3, 3)), {}


DYNAMIC_DEPTHWISE_CONV_OP = Op(
    "dynamic_depthwise_conv",
    dynamic_depthwise_conv_reference,
    (Candidate("grouped", _grouped, _grouped_unsupported),),
    bench_inputs,
)


@register_notrace_function
def dynamic_depthwise_conv(x: Tensor, kernels: Tensor) -> Tensor:
    """Depthwise convolution with kernels per sample; see the module's docstring for shapes."""
    return DYNAMIC_DEPTHWISE_CONV_OP(x, kernels)
