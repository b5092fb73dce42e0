"""Depthwise convolution of stride 1 that keeps the map's size: every channel by its own kernel, zero-padded.

    y[b, c, p] = bias[c] + sum over taps t of weight[c, t] x[b, c, p + dilation (t - centre)]

Shapes: x (B, C, H, W), weight (C, 1, kh, kw) with odd sides, bias (C,) -> (B, C, H, W). Time O(B C H W kh kw), memory
O(B C H W). The reference is `torch.nn.functional.conv2d`, whose oneDNN kernels on the CPU are direct ones for sides up
to 13 and small dilations only, and many times slower above. Candidates:

- cropped: taps that fall outside of the map from every position are left out of the kernel;
- channels_last: the same convolution on a channels-last copy, for which oneDNN has a better general kernel.

A large kernel may be decomposed, as VAN does (arXiv:2202.09741): see `decomposed`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from .dispatch import Candidate, Op

Pair = tuple[int, int]
DIRECT_SIDE = 13  # largest kernel that oneDNN's direct kernels take
DILATED_MAP = 28 * 28  # positions from which copies pay for a dilated kernel of at most that side
DIRECT_REACH = 8  # largest distance of a tap of a dilated kernel at which they are faster than channels-last copies


def decomposed(kernel_size: int, dilation: int) -> tuple[int, int]:
    """Sides of a plain and of a dilated depthwise kernel that reach as far as one of ``kernel_size`` together.

    The plain one covers what the dilation leaves out, 2 d - 1; the other has ceil(k / d) taps a side, or one more where
    that is even. For k = 21 and d = 3: 5 and 7.
    """
    taps = -(-kernel_size // dilation)
    return 2 * dilation - 1, taps + 1 - taps % 2


def depthwise_conv2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """PyTorch's convolution with as many groups as channels."""
    padding = [dilation * (n // 2) for n in weight.shape[2:]]
    return F.conv2d(x, weight, bias, 1, padding, dilation, weight.shape[0])


def _spare(x: Tensor, weight: Tensor, dilation: int) -> Pair:
    """Taps on each side of the kernel, per axis, that are outside of the map wherever the kernel stands."""
    sides = zip(x.shape[2:], weight.shape[2:], strict=True)
    height, width = (max(0, taps // 2 - (size - 1) // dilation) for size, taps in sides)
    return height, width


def _cropped(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    rows, cols = _spare(x, weight, dilation)
    kept = weight[:, :, rows : weight.shape[2] - rows, cols : weight.shape[3] - cols]
    return DEPTHWISE_CONV2D_OP(x, kept, bias, dilation)


def _cropped_unsupported(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> str | None:
    return None if any(_spare(x, weight, dilation)) else "every tap meets the map from some position"


def _channels_last(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    out = depthwise_conv2d_reference(x.contiguous(memory_format=torch.channels_last), weight, bias, dilation)
    return out.contiguous()


def _channels_last_unsupported(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> str | None:
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return f"the copies pay with oneDNN in float32 on the CPU, not in {x.dtype} on {x.device.type}"
    if not x.is_contiguous():
        return "the map is channels-last already"
    side = max(weight.shape[2:])
    if side <= DIRECT_SIDE and (dilation == 1 or dilation * (side // 2) <= DIRECT_REACH):
        return f"oneDNN has direct kernels of up to {DIRECT_SIDE} taps a side, dilated up to {DIRECT_REACH} px away"
    if side <= DIRECT_SIDE and x.shape[2] * x.shape[3] < DILATED_MAP:
        return f"the copies cost more than a dilated kernel on maps under {DILATED_MAP} positions"
    return None


def bench_inputs(side: int, heads: int, dim: int = 64) -> tuple[tuple[Tensor, ...], dict[str, int]]:
    """Arguments at batch 1: a map of ``dim`` channels and kernels of 31 x 31; heads play no part."""
    return (torch.randn(1, dim, side, side), torch.randn(dim, 1, 31, 31) / 31, torch.randn(dim)), {}


DEPTHWISE_CONV2D_OP = Op(
    "depthwise_conv2d",
    depthwise_conv2d_reference,
    (
        Candidate("cropped", _cropped, _cropped_unsupported),
        Candidate("channels_last", _channels_last, _channels_last_unsupported),
    ),
    bench_inputs,
)


@register_notrace_function
def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """The convolution by the fastest implementation that applies; see the module's docstring for shapes.

    Raises:
        ValueError: a kernel with an even side, which has no centre.
    """
    if any(n % 2 == 0 for n in weight.shape[2:]):
        raise ValueError(f"the sides of a depthwise kernel must be odd, not {tuple(weight.shape[2:])}")
    return DEPTHWISE_CONV2D_OP(x, weight, bias, dilation)
