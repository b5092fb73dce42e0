"""Convolution, activation and residual sum in one pass: ``act(conv(x) + bias) + residual``.

Shapes: x (B, C, H, W), weight (O, C / groups, kh, kw), bias (O,), residual as the result (B, O, H', W').

The candidate is oneDNN with weights packed once into its own layout, on channels-last maps: a plain convolution packs them
again in every call. It serves inference in float32 on the CPU; anything else runs the reference. The packed copy belongs
to a `PackedWeight`, follows changes of the weight it was made from, and is never saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import exporting

Pair = tuple[int, int]
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}


@dataclass(frozen=True)
class ConvShape:
    """What a convolution needs beside its tensors: padding, stride and dilation per axis, groups, and activation."""

    padding: Pair
    stride: Pair
    dilation: Pair
    groups: int
    act: str = "none"


def conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, residual: Tensor | None) -> Tensor:
    """The equation, operator by operator; dense 1x1 convolutions are matrix products over the last axis."""
    if weight.shape[-2:] == (1, 1) and shape.groups == 1 and shape.stride == (1, 1) and not exporting():
        out = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    else:
        out = F.conv2d(x, weight, bias, shape.stride, shape.padding, shape.dilation, shape.groups)
    out = ACTIVATIONS[shape.act](out)
    return out if residual is None else out + residual


SMALL = 1_000_000  # multiply-accumulates under which a call of the packed convolution costs more than it saves


def packed_unsupported(x: Tensor, weight: Tensor, stride: Pair = (1, 1)) -> str | None:
    """Why the oneDNN candidate does not apply, or None."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return f"oneDNN with packed weights takes float32 on the CPU, not {x.dtype} on {x.device.type}"
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return "this PyTorch has no oneDNN"
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return "packed weights have no gradient"
    if exporting() or torch.compiler.is_compiling():
        return "a graph is being captured"
    if weight.shape[-2:] == (1, 1) and stride == (1, 1) and x.numel() * weight.shape[0] <= SMALL:
        return "a matrix product this small is faster than the call"
    return None if _HAS_OPS else "this PyTorch lacks mkldnn._convolution_pointwise"


_HAS_OPS = hasattr(torch.ops.mkldnn, "_convolution_pointwise") and hasattr(
    torch.ops.mkldnn, "_reorder_convolution_weight"
)


class PackedWeight:
    """oneDNN's layout of one convolution's weight, made when it is first used for an input shape."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._packed: Tensor | None = None

    def get(self, weight: Tensor, shape: ConvShape, input_shape: torch.Size) -> Tensor:
        """The packed form of ``weight`` for inputs of ``input_shape``."""
        key = (input_shape, weight.data_ptr(), None if weight.is_inference() else weight._version)
        if key != self._key or self._packed is None:
            args = (shape.padding, shape.stride, shape.dilation, shape.groups, input_shape)
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *args)
            self._key = key
        return self._packed

    def __deepcopy__(self, memo: dict[int, object]) -> PackedWeight:
        return PackedWeight()

    def __reduce__(self) -> tuple[type[PackedWeight], tuple[()]]:
        return PackedWeight, ()


def conv_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: ConvShape,
    packed: PackedWeight,
    residual: Tensor | None = None,
) -> Tensor:
    """``act(conv(x) + bias) + residual`` by the fastest implementation that applies."""
    if packed_unsupported(x, weight, shape.stride) is not None:
        return conv_reference(x, weight, bias, shape, residual)
    x = x.contiguous(memory_format=torch.channels_last)
    layout = (shape.padding, shape.stride, shape.dilation, shape.groups)
    fast = packed.get(weight, shape, x.shape)
    if residual is None or shape.act != "none":
        algorithm = "none" if shape.act == "gelu" else ""
        out = torch.ops.mkldnn._convolution_pointwise(x, fast, bias, *layout, shape.act, [], algorithm)
        return out if residual is None else out + residual
    return torch.ops.mkldnn._convolution_pointwise.binary(x, residual, fast, bias, *layout, "add", None, None, [], None)
