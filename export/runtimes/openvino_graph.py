"""From a `torch.export` graph to OpenVINO's model: what its converter does not know or gets wrong.

Sums of sides it knows, but not quotients, nor the lesser or the greater of two; and resizing with antialiasing it knows
in TorchScript only. Where one side of a resized map is 1, it would read the first value, as ONNX's "pytorch_half_pixel"
has it; PyTorch itself takes the middle. That must be said while it converts, since it computes with constants then.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..capture import AXIS_INDEX, Capture, first_cause, quiet
from ..errors import ExportError

_OURS = f"{ExportError.__name__}: "  # begins what a rule of ours says
_UNKNOWN = "No conversion rule found"  # begins the line that names the operators


def converted(openvino: Any, capture: Capture) -> Any:
    """``capture`` as a model with named inputs and outputs.

    Raises:
        ExportError: it cannot be captured or converted.
    """
    program = capture.program
    try:
        with quiet(), torch.no_grad():
            model = openvino.convert_model(
                program, input=[_shape(openvino, capture)], extension=[*_sides(), *_resizing()]
            )
            _name_tensors(model)
    except Exception as error:  # the converter raises many kinds
        raise ExportError(f"OpenVINO cannot convert the model: {_cause(error)}") from error
    return model


def _sides() -> list[Any]:
    """How the operators on sides that the converter lacks are converted."""
    from openvino import opset13
    from openvino.frontend.pytorch import ConversionExtension

    def rule(combine: Callable[..., Any], kind: str) -> Callable[..., Any]:
        """Of an operator whose inputs are all of a kind."""
        return lambda node: combine(*(opset13.convert(port, kind) for port in _inputs(node))).outputs()

    rules = {
        torch.sym_max: rule(opset13.maximum, "i64"),
        torch.sym_min: rule(opset13.minimum, "i64"),
        torch.sym_float: rule(lambda side: side, "f32"),
        operator.truediv: rule(opset13.divide, "f32"),
    }
    return [ConversionExtension(str(function), convert) for function, convert in rules.items()]


def _resizing() -> list[Any]:
    """How resized maps are converted, (B, C, H, W) to sides that may depend on the input.

    A column alone is resized as any other; with antialiasing torch repeats its first value on the CPU.
    """
    from openvino.frontend.pytorch import ConversionExtension

    rules = {
        torch.ops.aten.upsample_bilinear2d.vec: _resized("linear_onnx", -0.75),
        torch.ops.aten.upsample_bicubic2d.vec: _resized("cubic", -0.75),
        torch.ops.aten._upsample_bilinear2d_aa.default: _resized("bilinear_pillow", -0.5),
        torch.ops.aten._upsample_bicubic2d_aa.default: _resized("bicubic_pillow", -0.5),
    }
    return [ConversionExtension(str(operator), convert) for operator, convert in rules.items()]


def _resized(mode: str, coefficient: float) -> Callable[..., Any]:
    """A rule with OpenVINO's ``mode`` and the ``coefficient`` that torch's cubic filter has there."""
    from openvino import opset13

    def convert(node: Any) -> Any:
        x, size = _inputs(node)[:2]
        corners = node.get_values_from_const_input(_CORNERS)
        if corners and mode.endswith("pillow"):
            raise ExportError("nothing resizes with antialias=True and align_corners=True: leave one of them out")
        if size.get_node().get_type_name() == _NOTHING:
            by, sides = "scales", opset13.convert(node.get_input(_SCALES), "f32")
        else:
            by, sides = "sizes", opset13.convert(size, "i64")
        axes, none = opset13.constant(np.array([2, 3])), [0]
        coordinates = "align_corners" if corners else "half_pixel"
        options = {"coordinate_transformation_mode": coordinates, "cube_coeff": coefficient, "axes": axes}
        return opset13.interpolate(x, sides, mode, by, none, none, **options).outputs()

    return convert


_CORNERS, _SCALES = 2, 3  # where the operators have these
_NOTHING = "PtFrameworkNode"  # stands for None


def _inputs(node: Any) -> list[Any]:
    return [node.get_input(i) for i in range(node.get_input_size())]


def _shape(openvino: Any, capture: Capture) -> Any:
    """The example's shape, with -1 on open axes."""
    sides = list(capture.example.shape)
    for axis in capture.axes:
        sides[AXIS_INDEX[axis]] = -1
    return openvino.PartialShape(sides)


def _name_tensors(model: Any) -> None:
    for port in model.inputs:
        port.get_tensor().set_names({"image"})
    for index, port in enumerate(model.outputs):
        port.get_tensor().set_names({"output" if len(model.outputs) == 1 else f"output_{index}"})


def _cause(error: Exception) -> str:
    """What the converter says, of its pages the line that tells what it lacks."""
    for line in str(error).splitlines():
        if _UNKNOWN in line:
            return line.strip("- ")
        if line.startswith(_OURS):
            return line.removeprefix(_OURS)
    return first_cause(error)
