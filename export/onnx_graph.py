"""Clean-up of an exported ONNX graph: the same arithmetic in operators that ONNX Runtime runs well.

On x86 ONNX Runtime keeps maps in a blocked layout between convolutions (NCHWc), and leaves it, at the price of two
copies, for every operator that it does not know there. Of StarReLU, ``scale * relu(x) ** 2 + bias``, exported as Pow,
Mul and Add, it knows none; it knows a product of two maps and BatchNormalization. In ConvFormer-S18 the two rules below
take away 36 of 76 such exits, and a tenth of the time.

Import this module only where onnxscript is installed.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.rewriter import pattern, rewrite

from .capture import AXIS_INDEX
from .shapes import Axes


def tidy(model: ir.Model, axes: Axes) -> ir.Model:
    """``model`` with the rules applied, plain names, and no traces of the machine it was made on."""
    for rules in (_SQUARES, _AFFINES):  # the second looks for what the first makes
        model = rewrite(model, pattern_rewrite_rules=rules)
    _name_axes(model, axes)
    model.graph.inputs[0].name = "image"
    for index, value in enumerate(model.graph.outputs):
        value.name = "output" if len(model.graph.outputs) == 1 else f"output_{index}"
    ClearMetadataAndDocStringPass()(model)
    return model


def _name_axes(model: ir.Model, axes: Axes) -> None:
    """Call the open axes by their names, also in the shapes that follow from them."""
    image = model.graph.inputs[0].shape
    assert image is not None
    names = {_symbol(image[AXIS_INDEX[axis]]): axis for axis in axes}
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names if name) or r"\Z\A")
    for value in (*model.graph.inputs, *(v for node in model.graph.all_nodes() for v in node.outputs)):
        if value.shape is not None:
            dims = (d if isinstance(d, int) else _symbol(d) for d in value.shape)
            value.shape = ir.Shape(pattern.sub(lambda m: names[m[0]], d) if isinstance(d, str) else d for d in dims)


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    """The name or expression of a dimension that is not a number."""
    return None if isinstance(dim, int) else dim.value


class SquareByProduct(pattern.RewriteRuleClassBase):
    """``x ** 2`` as ``x * x``."""

    def pattern(self, op: Any, x: Any, exponent: Any) -> Any:
        return op.Pow(x, exponent)

    def check(self, context: Any, x: Any, exponent: Any) -> bool:  # type: ignore[override]
        values = _constant(exponent)
        return values is not None and values.size == 1 and float(values.reshape(())) == 2.0

    def rewrite(self, op: Any, x: Any, exponent: Any) -> Any:
        return op.Mul(x, x)


class AffineOfSquare(pattern.RewriteRuleClassBase):
    """``scale * (x * x) + bias``, the same at all positions of a (B, C, H, W) map, with one BatchNormalization."""

    def pattern(self, op: Any, x: Any, scale: Any, bias: Any) -> Any:
        return op.Add(op.Mul(scale, op.Mul(x, x, _outputs=["square"])), bias)

    def check(self, context: Any, x: Any, scale: Any, bias: Any, square: Any) -> bool:  # type: ignore[override]
        width = _channels(square)
        return width is not None and all(_per_channel(v, width) is not None for v in (scale, bias))

    def rewrite(self, op: Any, x: Any, scale: Any, bias: Any, square: Any) -> Any:
        width = _channels(square)
        assert width is not None
        mean, variance = np.zeros(width, np.float32), np.ones(width, np.float32)
        values = (_per_channel(scale, width), _per_channel(bias, width), mean, variance)
        names = (f"{square.name}_{kind}" for kind in ("scale", "bias", "mean", "variance"))
        tensors = [op.initializer(ir.tensor(v), name=n) for v, n in zip(values, names, strict=True) if v is not None]
        return op.BatchNormalization(op.Mul(x, x), *tensors, epsilon=0.0)


_SQUARES = pattern.RewriteRuleSet([SquareByProduct.rule()])
_AFFINES = pattern.RewriteRuleSet([AffineOfSquare.rule()], commute=True)


def _constant(value: Any) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _channels(value: ir.Value) -> int | None:
    """C of a float32 (B, C, H, W) value, where it is known."""
    if value.shape is None or len(value.shape) != 4 or value.dtype != ir.DataType.FLOAT:
        return None
    width = value.shape[1]
    return width if isinstance(width, int) else None


def _per_channel(value: Any, width: int) -> np.ndarray | None:
    """A constant that broadcasts to (C, 1, 1), as float32 (C,); None where it is none."""
    values = _constant(value)
    if values is None:
        return None
    if values.size == 1:
        return np.full(width, values.reshape(()), np.float32)
    per_channel = values.size == width and values.ndim in (3, 4) and values.shape[-3] == width
    return np.ascontiguousarray(values.reshape(width), np.float32) if per_channel else None
