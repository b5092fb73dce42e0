"""Convolution, activation and residual sum in one pass: ``act(conv(x) + bias) + residual``.

Shapes: x (B, C, H, W), weight (O, C / groups, kh, kw), bias (O,), residual as the result (B, O, H', W').

The candidate is oneDNN with weights packed once into its own layout, on channels-last maps: a plain convolution packs
them again in every call. It serves inference in float32 on the CPU; anything else runs the reference. What is packed is
kept in a `ConvPlan`, follows changes of the weight it was made from, and is never saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import exporting

Pair = tuple[int, int]
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}
SMALL = 1_000_000  # multiply-accumulates of a 1x1 under which packing costs more than it saves
_HAS_OPS = all(hasattr(torch.ops.mkldnn, n) for n in ("_convolution_pointwise", "_reorder_convolution_weight"))


@dataclass(frozen=True)
class ConvShape:
    """What a convolution needs beside its tensors: padding, stride and dilation per axis, groups, and activation."""

    padding: Pair
    stride: Pair
    dilation: Pair
    groups: int
    act: str = "none"


def conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, residual: Tensor | None) -> Tensor:
    """The equation, operator by operator."""
    out = F.conv2d(x, weight, bias, shape.stride, shape.padding, shape.dilation, shape.groups)
    out = ACTIVATIONS[shape.act](out)
    return out if residual is None else out + residual


def packed_unsupported(x: Tensor, weight: Tensor, shape: ConvShape) -> str | None:
    """Why the oneDNN candidate does not apply to inputs like ``x``, or None."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return f"oneDNN with packed weights takes float32 on the CPU, not {x.dtype} on {x.device.type}"
    if not torch.backends.mkldnn.is_available() or not _HAS_OPS:
        return "this PyTorch has no oneDNN with packed convolutions"
    pointwise = weight.shape[-2:] == (1, 1) and shape.stride == (1, 1) and shape.groups == 1
    if pointwise and x.numel() * weight.shape[0] <= SMALL:
        return "a matrix product this small is faster than the call"
    return None


class ConvPlan:
    """How one convolution runs for the inputs that it last saw: the packed weight, or none where packing does not help.

    Weights are packed for one input shape; another shape packs anew.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._packed: Tensor | None = None

    def packed(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor | None:
        """``weight`` in oneDNN's layout for inputs like ``x``, or None where `packed_unsupported` has a reason."""
        version = 0 if weight.is_inference() else weight._version
        key = (x.shape, x.dtype, x.device, weight.data_ptr(), version)
        if key != self._key:
            layout = (shape.padding, shape.stride, shape.dilation, shape.groups)
            fits = packed_unsupported(x, weight, shape) is None
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *layout, x.shape) if fits else None
            self._key = key
        return self._packed

    def __deepcopy__(self, memo: dict[int, object]) -> ConvPlan:
        return ConvPlan()

    def __reduce__(self) -> tuple[type[ConvPlan], tuple[()]]:
        return ConvPlan, ()


def conv_act(
    x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, plan: ConvPlan, residual: Tensor | None = None
) -> Tensor:
    """``act(conv(x) + bias) + residual`` by the fastest implementation that applies."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or exporting():
        return conv_reference(x, weight, bias, shape, residual)  # packed weights have no gradient and no graph
    packed = plan.packed(x, weight, shape)
    if packed is None:
        return conv_reference(x, weight, bias, shape, residual)
    if not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    act = shape.act
    if residual is not None and act == "none" and residual.shape[2:] != (1, 1):  # oneDNN refuses to add a 1x1 map
        return _BINARY(
            x, residual, packed, bias, shape.padding, shape.stride, shape.dilation, shape.groups,
            "add", None, None, [], None,
        )  # fmt: skip
    algorithm = "none" if act == "gelu" else ""
    out = _UNARY(x, packed, bias, shape.padding, shape.stride, shape.dilation, shape.groups, act, [], algorithm)
    return out if residual is None else out + residual


if _HAS_OPS:
    _UNARY = torch.ops.mkldnn._convolution_pointwise.default
    _BINARY = torch.ops.mkldnn._convolution_pointwise.binary
