"""Clean-up of an exported ONNX graph: the same arithmetic in operators that ONNX Runtime runs well.

On x86 ONNX Runtime keeps maps in a blocked layout between convolutions (NCHWc), and leaves it, at the price of two
copies, for every operator that it does not know there. Of StarReLU, ``scale * relu(x) ** 2 + bias``, exported as Pow,
Mul and Add, it knows none; it knows a product of two maps and BatchNormalization. In ConvFormer-S18 the rules below
take away 36 of 76 such exits, and nearly a tenth of the time.

Import this module only where onnxscript is installed.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.rewriter import pattern, rewrite

from ..capture import AXIS_INDEX
from ..shapes import Axes


def tidy(model: ir.Model, axes: Axes) -> ir.Model:
    """``model`` with the rules applied, plain names, and no traces of the machine it was made on."""
    _register_constants(model)
    _name_nodes(model)
    for rules in (_SQUARES, _INTO_CONVS, _AFFINES):  # the last takes what the others made and left
        model = rewrite(model, pattern_rewrite_rules=rules)
    _name_axes(model, axes)
    model.graph.inputs[0].name = "image"
    for index, value in enumerate(model.graph.outputs):
        value.name = "output" if len(model.graph.outputs) == 1 else f"output_{index}"
    ClearMetadataAndDocStringPass()(model)
    return model


def _register_constants(model: ir.Model) -> None:
    """Let the graph own every constant: onnxscript gives the bounds of several Clips one name, and loses the others."""
    owned = model.graph.initializers
    for value in dict.fromkeys(v for node in model.graph for v in node.inputs if v is not None):
        name = given = value.name or "constant"
        if value.const_value is None or value.producer() is not None or owned.get(name) is value:
            continue
        number = 0
        while name in owned:
            number += 1
            name = f"{given}_{number}"
        value.name = name
        owned[name] = value


def _name_nodes(model: ir.Model) -> None:
    """Call each node by the module that it comes from, its operator and a number."""
    for number, node in enumerate(model.graph):
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        path = scopes[-2] if len(scopes) > 1 and scopes[0] == "" else ""
        node.name = f"{path}/{node.op_type}_{number}"


def module_of(name: str) -> str:
    """Path of the module that a node of that name comes from; empty where that is the model itself, or not known."""
    return name.rpartition("/")[0]


_SCOPES = "pkg.torch.onnx.name_scopes"


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

    def check(self, context: Any, exponent: Any, **_: Any) -> bool:  # type: ignore[override]
        values = _constant(exponent)
        return values is not None and values.size == 1 and float(values.reshape(())) == 2.0

    def rewrite(self, op: Any, x: Any, exponent: Any) -> Any:
        return op.Mul(x, x)


class ShiftedSquare(pattern.RewriteRuleClassBase):
    """``x * x + bias``, the same at all positions of a (B, C, H, W) map, with a BatchNormalization for the sum."""

    def pattern(self, op: Any, x: Any, bias: Any) -> Any:
        return op.Add(op.Mul(x, x, _outputs=["square"]), bias)

    def check(self, context: Any, bias: Any, square: Any, **_: Any) -> bool:  # type: ignore[override]
        return _per_channel(bias, square) is not None

    def rewrite(self, op: Any, x: Any, bias: Any, square: Any) -> Any:
        return _batch_norm(op, op.Mul(x, x), square, np.ones(square.shape[1], np.float32), _per_channel(bias, square))


class AffineOfSquare(pattern.RewriteRuleClassBase):
    """``scale * (x * x) + bias`` likewise."""

    def pattern(self, op: Any, x: Any, scale: Any, bias: Any) -> Any:
        return op.Add(op.Mul(scale, op.Mul(x, x, _outputs=["square"])), bias)

    def check(self, context: Any, scale: Any, bias: Any, square: Any, **_: Any) -> bool:  # type: ignore[override]
        return all(_per_channel(value, square) is not None for value in (scale, bias))

    def rewrite(self, op: Any, x: Any, scale: Any, bias: Any, square: Any) -> Any:
        return _batch_norm(op, op.Mul(x, x), square, _per_channel(scale, square), _per_channel(bias, square))


class AffineIntoConv(pattern.RewriteRuleClassBase):
    """``conv(scale * x + shift)`` as ``conv'(x)``, where the convolution is dense and no padding enters it.

    What is left of a GroupNorm, which is exported as InstanceNormalization, Mul and Add.
    """

    def pattern(self, op: Any, x: Any, scale: Any, shift: Any) -> Any:
        affine = op.Add(op.Mul(x, scale), shift, _outputs=["affine"])
        return op.Conv(affine, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["conv"])

    def check(self, context: Any, scale: Any, shift: Any, affine: Any, conv: Any, **_: Any) -> bool:  # type: ignore[override]
        if any(_per_channel(value, affine) is None for value in (scale, shift)):
            return False
        node = conv.producer()
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        unpadded = not any(attributes.get("pads") or ()) and attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        return unpadded and attributes.get("group", 1) == 1 and all(_constant(v) is not None for v in node.inputs[1:])

    def rewrite(self, op: Any, x: Any, scale: Any, shift: Any, affine: Any, conv: Any) -> Any:
        node = conv.producer()
        weight, bias = (_constant(node.inputs[i]) if i < len(node.inputs) else 0.0 for i in (1, 2))
        factors, offsets = (np.reshape(_per_channel(v, affine), (1, -1, 1, 1)) for v in (scale, shift))  # type: ignore[arg-type]
        added = (weight * offsets).sum((1, 2, 3), dtype=np.float64)
        tensors = [
            op.initializer(ir.tensor(np.ascontiguousarray(values, np.float32)), name=f"{conv.name}_{kind}")
            for kind, values in (("weight", weight * factors), ("bias", bias + added))
        ]
        folded = op.Conv(x, *tensors, **node.attributes)
        folded.producer().name = node.name
        return folded


_SQUARES = pattern.RewriteRuleSet([SquareByProduct.rule()])
_INTO_CONVS = pattern.RewriteRuleSet([AffineIntoConv.rule()], commute=True)
_AFFINES = pattern.RewriteRuleSet([ShiftedSquare.rule(), AffineOfSquare.rule()], commute=True)


def _batch_norm(op: Any, x: Any, like: ir.Value, scale: Any, bias: Any) -> Any:
    """``scale * x + bias`` per channel, where ``like`` is the value that ``x`` replaces."""
    values = {"scale": scale, "bias": bias, "mean": np.zeros_like(scale), "variance": np.ones_like(scale)}
    tensors = [op.initializer(ir.tensor(v), name=f"{like.name}_{kind}") for kind, v in values.items()]
    return op.BatchNormalization(x, *tensors, epsilon=0.0)


def _constant(value: Any) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _per_channel(value: Any, like: ir.Value) -> np.ndarray | None:
    """A constant as float32 (C,); None where it is not one number per channel of a (B, C, H, W) ``like``."""
    values = _constant(value)
    if values is None or like.shape is None or len(like.shape) != 4 or like.dtype != ir.DataType.FLOAT:
        return None
    width = like.shape[1]
    if not isinstance(width, int):
        return None
    if values.size == 1 and values.ndim <= 4:
        return np.full(width, values.reshape(()), np.float32)
    per_channel = values.size == width and values.ndim in (3, 4) and values.shape[-3] == width
    return np.ascontiguousarray(values.reshape(width), np.float32) if per_channel else None
