"""From a `torch.export` graph to OpenVINO's model: what its converter does not know or gets wrong.

Sums of sides it knows, but not quotients, nor the lesser or the greater of two; and resizing with antialiasing it knows
in TorchScript only. And where one side of a resized map is
1, it reads the first value, as ONNX's "pytorch_half_pixel" has it; PyTorch itself takes the middle.
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
                program, input=[_shape(openvino, capture)], extension=[*_sides(), *_antialiased()]
            )
            _name_tensors(model)
            _resize_from_the_middle(model)
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


def _antialiased() -> list[Any]:
    """How maps that are resized with antialiasing are converted, (B, C, H, W) to sides that may depend on the input.

    A column alone is resized as any other; torch repeats its first value on the CPU.
    """
    from openvino import opset13
    from openvino.frontend.pytorch import ConversionExtension

    def rule(mode: str) -> Callable[..., Any]:
        def convert(node: Any) -> Any:
            x, size, corners = _inputs(node)[:3]
            if corners.get_node().get_vector()[0]:
                raise ExportError("nothing resizes with antialias=True and align_corners=True: leave one of them out")
            sides, axes = opset13.convert(size, "i64"), opset13.constant(np.array([2, 3]))
            return opset13.interpolate(x, sides, mode, "sizes", axes=axes, **_BETWEEN).outputs()

        return convert

    kinds = ("bilinear", "bicubic")
    names = {kind: f"aten._upsample_{kind}2d_aa.default" for kind in kinds}
    return [ConversionExtension(names[kind], rule(f"{kind}_pillow")) for kind in kinds]


# a cubic filter that is antialiased has Pillow's parameter in torch too
_BETWEEN = {
    "coordinate_transformation_mode": "half_pixel",
    "cube_coeff": -0.5,
    "pads_begin": [0],
    "pads_end": [0],
}


def _inputs(node: Any) -> list[Any]:
    return [node.get_input(i) for i in range(node.get_input_size())]


def _resize_from_the_middle(model: Any) -> None:
    for node in model.get_ops():
        if node.get_type_name() == "Interpolate" and node.get_attributes()[_MODE] == "pytorch_half_pixel":
            node.set_attribute(_MODE, "half_pixel")


_MODE = "coordinate_transformation_mode"


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
