"""Adaptive frequency filter: a global convolution whose kernel is made from the spectrum of its own input.

    X = rfft2(x);  M = shrink(act(X W1 + b1) W2 + b2);  y = irfft2(X * M) + x

Shapes: x (B, C, H, W) -> (B, C, H, W); w1, w2 (2, G, C/G, C/G) and b1, b2 (2, G, C/G), the first axis real and
imaginary, the third of a weight its input channels: complex linear maps within each of G channel groups. ``act`` and
``shrink`` (soft shrinkage by ``threshold``) apply to real and imaginary parts alone; the transforms are orthonormal.
Time O(N log N C + N C^2 / G), N = H W, for the candidate by fast transforms, which runs wherever complex numbers do;
O(N (H + W) C + N C^2 / G) for the reference, whose transforms are products with real matrices. Memory O(N C). Half
precision is computed in float32, as transforms sum over the whole map.
Served by: the CPU and CUDA, fast transforms; MPS, which has no products of complex matrices, the reference.
Source: Adaptive Frequency Filters, arXiv:2307.14008, equations 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from .dispatch import Candidate, Op

Act = Callable[[Tensor], Tensor]
_HALF = (torch.float16, torch.bfloat16)


def fourier(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (n, n) of ``2 pi j k / n``, over sqrt(n): the real and negated imaginary part of the transform."""
    steps = torch.arange(size, device=like.device)
    count = steps[-1:] + 1  # a tensor: ``size`` may be symbolic under export
    turns = (steps[:, None] * steps[None]) % count
    angles = turns.to(like.dtype) * (2 * math.pi) / count.to(like.dtype)
    gain = count.to(like.dtype).rsqrt()
    return angles.cos() * gain, angles.sin() * gain


def real_spectrum(x: Tensor) -> Tensor:
    """`torch.fft.rfft2` of (B, C, H, W) in real numbers: (B, C, 2, H, W // 2 + 1), real parts, then imaginary ones."""
    height, width = x.shape[-2:]
    half = width // 2 + 1
    cos, sin = fourier(width, x)
    rows = x @ torch.cat((cos[:, :half], -sin[:, :half]), dim=1)  # (B, C, H, 2 * half)
    parts = torch.cat((rows[..., :half], rows[..., half:]), dim=2)  # (B, C, 2H, half)
    cos, sin = fourier(height, x)
    both = torch.cat((torch.cat((cos, sin), dim=1), torch.cat((-sin, cos), dim=1)), dim=0)
    return (both @ parts).unflatten(2, (2, height))


def real_inverse(spectrum: Tensor, width: int) -> Tensor:
    """`torch.fft.irfft2` of what `real_spectrum` gives: (B, C, 2, H, W // 2 + 1) -> (B, C, H, W)."""
    height, half = spectrum.shape[-2:]
    cos, sin = fourier(height, spectrum)
    both = torch.cat((torch.cat((cos, -sin), dim=1), torch.cat((sin, cos), dim=1)), dim=0)
    parts = both @ spectrum.flatten(2, 3)  # (B, C, 2H, half)
    rows = torch.cat((parts[:, :, :height], parts[:, :, height:]), dim=3)  # (B, C, H, 2 * half)
    cos, sin = fourier(width, spectrum)
    bins = torch.arange(half, device=spectrum.device)
    alone = (bins == 0) | (2 * bins == width)  # the others stand for themselves and their mirrored conjugates
    share = torch.where(alone, 1.0, 2.0).to(spectrum.dtype)[:, None]
    return rows @ torch.cat((cos[:half] * share, -sin[:half] * share), dim=0)


def _real_matrix(weight: Tensor) -> Tensor:
    """(G, 2 O, 2 I) of a complex weight (2, G, I, O), acting on channels whose parts alternate."""
    real, imag = weight.transpose(2, 3).unbind(0)  # (G, O, I)
    rows = torch.stack((torch.stack((real, -imag), dim=3), torch.stack((imag, real), dim=3)), dim=2)
    return rows.flatten(3).flatten(1, 2)


def frequency_filter_reference(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, act: Act = F.relu, threshold: float = 0.01
) -> Tensor:
    """The equation in real numbers: transforms as matrix products, complex maps as real ones of twice the width."""
    x, w1, b1, w2, b2 = _floats(x, w1, b1, w2, b2)
    spectrum = real_spectrum(x)
    channels = spectrum.flatten(3).unflatten(1, (w1.shape[1], -1)).flatten(2, 3)  # (B, G, 2 C/G, bins)
    hidden = act(_real_matrix(w1) @ channels + b1.movedim(0, 2).flatten(1)[..., None])
    mask = _real_matrix(w2) @ hidden + b2.movedim(0, 2).flatten(1)[..., None]
    mask = mask - mask.clamp(-threshold, threshold)  # soft shrinkage
    mask_real, mask_imag = mask.reshape(spectrum.shape).unbind(2)
    real, imag = spectrum.unbind(2)
    product = torch.stack((real * mask_real - imag * mask_imag, real * mask_imag + imag * mask_real), dim=2)
    return real_inverse(product, x.shape[-1]) + x


def _fast(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, act: Act = F.relu, threshold: float = 0.01
) -> Tensor:
    x, w1, b1, w2, b2 = _floats(x, w1, b1, w2, b2)
    spectrum = torch.fft.rfft2(x, norm="ortho")
    channels = spectrum.unflatten(1, (w1.shape[1], -1)).flatten(3)  # (B, G, C/G, bins)
    hidden = _on_parts(act, _complex_linear(channels, w1, b1))
    mask = _on_parts(partial(F.softshrink, lambd=threshold), _complex_linear(hidden, w2, b2))
    return torch.fft.irfft2(spectrum * mask.reshape(spectrum.shape), s=x.shape[-2:], norm="ortho") + x


def _complex_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.complex(*weight.unbind(0)).transpose(1, 2) @ x + torch.complex(*bias.unbind(0))[..., None]


def _on_parts(fn: Act, x: Tensor) -> Tensor:
    return torch.view_as_complex(fn(torch.view_as_real(x)))


def _fast_unsupported(x: Tensor, *rest: object, **options: object) -> str | None:
    if x.device.type not in ("cpu", "cuda"):
        return f"complex matrix products need the CPU or CUDA, not {x.device.type}"
    return None


def _floats(*tensors: Tensor) -> list[Tensor]:
    """float32 where the first tensor, the input, is of half precision; weights follow its type."""
    dtype = torch.float32 if tensors[0].dtype in _HALF else tensors[0].dtype
    return [t.to(dtype) for t in tensors]


def bench_inputs(side: int, heads: int, dim: int = 64, batch: int = 1) -> tuple[tuple[Tensor, ...], dict[str, object]]:
    """Arguments of the op for a map of side x side with ``heads * dim`` channels in 8 groups, at batch 1."""
    width = heads * dim // 8
    shapes = ((2, 8, width, width), (2, 8, width)) * 2
    weights = (torch.randn(shape) / width**0.5 for shape in shapes)
    return (torch.randn(batch, heads * dim, side, side), *weights), {}


FREQUENCY_FILTER_OP = Op(
    "frequency_filter", frequency_filter_reference, (Candidate("fft", _fast, _fast_unsupported),), bench_inputs
)


@register_notrace_function
def frequency_filter(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, act: Act = F.relu, threshold: float = 0.01
) -> Tensor:
    """The filter by the fastest implementation that applies; see the module's docstring for shapes.

    Args:
        act: activation of the hidden layer, elementwise.
        threshold: mask values of at most this size become zero, larger ones shrink by it.
    """
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):  # half precision would lose small values
        with torch.autocast(x.device.type, enabled=False):
            return FREQUENCY_FILTER_OP(x, w1, b1, w2, b2, act, threshold).to(x.dtype)
    return FREQUENCY_FILTER_OP(x, w1, b1, w2, b2, act, threshold).to(x.dtype)
