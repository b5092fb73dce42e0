"""Multiply-accumulates in a ``.pte`` file, by the convention of `mixzoo bench`: those of one call with its shape.

Where an axis is open, its greatest side counts, for which memory is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

Sides = Mapping[int, Sequence[int]]  # of tensors, by their number


def of_part(part: Mapping[str, Any]) -> int:
    """Of a part for XNNPACK, as its schema has it; what is 0 is left out there."""
    values = [value["xvalue_union"] for value in part.get("xvalues", ())]
    tensors = [value.get("tensor_value", value) for value in values]  # quantised ones hold another
    sides = {tensor.get("id_out", 0): tensor.get("dims", ()) for tensor in tensors}
    nodes = [(node["xnode_union_type"], node["xnode_union"]) for node in part["xnodes"]]
    return sum(_NODES[kind](node, sides) for kind, node in nodes if kind in _NODES)


def _side(node: Mapping[str, Any], role: str, sides: Sides) -> Sequence[int]:
    return sides[node.get(f"{role}_id", 0)]


def _convolution(node: Mapping[str, Any], sides: Sides) -> int:
    return prod(_side(node, "output", sides)) * _window(node) * int(node["group_input_channels"])


def _transposed(node: Mapping[str, Any], sides: Sides) -> int:
    return prod(_side(node, "input1", sides)) * _window(node) * int(node["group_output_channels"])


def _window(node: Mapping[str, Any]) -> int:
    return int(node["kernel_height"] * node["kernel_width"])


def _product(node: Mapping[str, Any], sides: Sides) -> int:
    """(..., M, K) with K last, whatever the second factor is."""
    return prod(_side(node, "output", sides)) * _side(node, "input1", sides)[-1]


def _attention(node: Mapping[str, Any], sides: Sides) -> int:
    """q (..., N, D), k (..., M, D), v (..., M, Dv)."""
    query, key, value = (_side(node, role, sides) for role in ("query", "key", "value"))
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


_NODES: dict[str, Callable[[Mapping[str, Any], Sides], int]] = {
    "XNNConv2d": _convolution,
    "XNNDepthwiseConv2d": _convolution,
    "XNNConvTranspose2d": _transposed,
    "XNNFullyConnected": _product,
    "XNNBatchMatrixMultiply": _product,
    "XNNScaledDotProductAttention": _attention,
}


def of_kernel(name: str, arguments: Sequence[Any]) -> int:
    """Of a call of the kernel ``name``, outside of XNNPACK; ``arguments`` are its values, its output last."""
    if name == "aten::convolution":
        return _of_convolution(arguments)
    if name not in _FACTORS:
        return 0
    first, out = arguments[_FACTORS[name]], arguments[-1]
    return prod(out.sizes) * int(first.sizes[-1])


def _of_convolution(arguments: Sequence[Any]) -> int:
    """Input, weight (O, I of a group, H, W), or (I, O of a group, H, W) where it is transposed, ..., output."""
    source, weight, transposed = arguments[0], arguments[1], arguments[6].bool_val
    return prod((source if transposed else arguments[-1]).sizes) * prod(weight.sizes[1:])


_FACTORS = {"aten::mm": 0, "aten::bmm": 0, "aten::linear": 0, "aten::addmm": 1, "aten::mv": 0, "aten::dot": 0}
"""Where the first factor, with the summed axis last, stands among the arguments."""
