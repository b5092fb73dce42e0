"""Depthwise convolution of stride 1 that keeps the map's size: every channel by its own kernel, zero-padded.

    y[b, c, p] = bias[c] + sum over taps t of weight[c, t] x[b, c, p + dilation (t - centre)]

Shapes: x (B, C, H, W), weight (C, 1, kh, kw) with odd sides, bias (C,) -> (B, C, H, W). Time O(B C H W kh kw), memory
O(B C H W). The reference is `torch.nn.functional.conv2d`; it runs on MPS, and wherever a candidate has a reason not to.

- cropped: taps that fall outside of the map from every position are left out of the kernel; on any device.
- channels_last, on the CPU: the same convolution on a channels-last copy. oneDNN's kernels for planes are direct ones
  for sides up to 13 and small dilations only, and twenty times slower above; its general one for channels-last is not.
- triton, on CUDA: above 13 taps a side, where PyTorch and cuDNN read the map once for every tap, rows of taps become
  band matrices for tensor cores. Half precision is summed in float32. Its gradients are Triton's, too. On an H200, 31
  taps at batch 64: twice as fast as cuDNN in half precision, with gradients 1.3 to 4 times in any; cuDNN keeps float32.

A large kernel may be decomposed, as VAN does (arXiv:2202.09741): see `decomposed`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import Candidate, Op, opaque, triton_unsupported, wants_gradient
from .precision import as_autocast

Pair = tuple[int, int]
DIRECT_SIDE = 13  # largest kernel that oneDNN's direct kernels take, and that is left to cuDNN
MAX_REACH = 96  # positions from the first to the last tap of a row that fit the registers of a Triton program
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
    if not any(_spare(x, weight, dilation)):
        return "every tap meets the map from some position"
    if x.device.type == "cuda" and not wants_gradient(x, weight, bias):
        return "cuDNN's convolution forward is faster than the cut on so small a map"
    return None


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


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the map, the kernel and the bias."""
    from .fused.depthwise_conv2d import depthwise_forward, depthwise_taps

    grad = grad.contiguous()
    taps = depthwise_taps(x.contiguous(), grad, weight, dilation).to(weight.dtype)
    mirrored = weight.flip(2, 3).contiguous()
    return depthwise_forward(grad, mirrored, None, dilation), taps, None if bias is None else grad.sum((0, 2, 3))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        from .fused.depthwise_conv2d import depthwise_forward

        ctx.save_for_backward(x, weight, bias)
        ctx.dilation = dilation
        return depthwise_forward(x.contiguous(), weight.contiguous(), bias, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        return *_gradients(grad, x, weight, bias, ctx.dilation), None


def _like(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    return x.new_empty(x.shape)


@opaque("depthwise_conv2d_triton", "Tensor x, Tensor weight, Tensor? bias=None, int dilation=1", _like, _gradients)
def _launched(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    return cast(Tensor, _Fused.apply(x, weight, bias, dilation))


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    x, weight, bias = as_autocast(x, weight, bias)
    return _launched(x, weight, bias, dilation)


def _fused_unsupported(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> str | None:
    x, weight, bias = as_autocast(x, weight, bias)
    reason = triton_unsupported(1, x, weight, *([] if bias is None else [bias]))
    if reason is not None:
        return reason
    if max(weight.shape[2:]) <= DIRECT_SIDE:
        return f"kernels of at most {DIRECT_SIDE} taps a side are left to cuDNN"
    if not wants_gradient(x, weight, bias) and (x.dtype == torch.float32 or any(_spare(x, weight, dilation))):
        return "without a gradient cuDNN is faster in float32, and on maps smaller than the kernel"
    if (weight.shape[3] - 1) * dilation >= MAX_REACH:
        return (
            f"a row of taps that reaches over more than {MAX_REACH} positions does not fit the registers of a program"
        )
    return None


def bench_inputs(side: int, heads: int, dim: int = 64, batch: int = 1) -> tuple[tuple[Tensor, ...], dict[str, int]]:
    """Arguments: a map of ``dim`` channels and kernels of 31 x 31; heads play no part."""
    return (torch.randn(batch, dim, side, side), torch.randn(dim, 1, 31, 31) / 31, torch.randn(dim)), {}


DEPTHWISE_CONV2D_OP = Op(
    "depthwise_conv2d",
    depthwise_conv2d_reference,
    (
        Candidate("cropped", _cropped, _cropped_unsupported),
        Candidate("triton", _fused, _fused_unsupported),
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
