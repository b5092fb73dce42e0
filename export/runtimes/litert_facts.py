"""How much of a ``.tflite`` file XNNPACK takes, by LiteRT's interpreter: nodes, and multiply-accumulates in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from ..protocol import Delegated

DELEGATE = "DELEGATE"
Shape = Sequence[int]


def delegated(interpreter: Any) -> Delegated:
    """What XNNPACK takes on this machine of the file in ``interpreter``."""
    nodes = interpreter._get_ops_details()
    shapes = {tensor["index"]: [int(n) for n in tensor["shape"]] for tensor in interpreter.get_tensor_details()}
    delegates = [node for node in nodes if node["op_name"] == DELEGATE]
    own = [node for node in nodes if node["op_name"] != DELEGATE]
    inside = _inside(own, delegates)
    rest = [node for node in own if node["index"] not in inside]
    return Delegated(
        "XNNPACK",
        len(inside),
        len(delegates),
        dict(Counter(node["op_name"] for node in rest).most_common()),
        macs=sum(macs(node, shapes) for node in own if node["index"] in inside),
        rest_macs=sum(macs(node, shapes) for node in rest),
    )


def _inside(own: Sequence[dict[str, Any]], delegates: Sequence[dict[str, Any]]) -> set[int]:
    """The nodes that lead from a delegate's inputs to its outputs are in it, and never run on their own."""
    makers = {int(tensor): node for node in own for tensor in node["outputs"]}
    inside: set[int] = set()
    for delegate in delegates:
        given, wanted = {int(t) for t in delegate["inputs"]}, [int(t) for t in delegate["outputs"]]
        while wanted:
            tensor = wanted.pop()
            maker = None if tensor in given else makers.get(tensor)
            if maker is not None and maker["index"] not in inside:
                inside.add(maker["index"])
                wanted += [int(t) for t in maker["inputs"]]
    return inside


def macs(node: Mapping[str, Any], shapes: Mapping[int, Shape]) -> int:
    """Multiply-accumulates of ``node``, by the convention of `mixzoo bench`; none for what is no sum of products."""
    count = _MACS.get(node["op_name"])
    if count is None:
        return 0
    return count([shapes.get(int(i), ()) for i in node["inputs"]], shapes[int(node["outputs"][0])])


def _convolution(inputs: Sequence[Shape], out: Shape) -> int:
    """Weights (O, H, W, I of a group)."""
    return prod(out) * prod(inputs[1][1:])


def _depthwise(inputs: Sequence[Shape], out: Shape) -> int:
    """Weights (1, H, W, O)."""
    return prod(out) * prod(inputs[1][1:3])


def _transposed(inputs: Sequence[Shape], out: Shape) -> int:
    """Inputs: the output's shape, weights (O, H, W, I), the map (B, H, W, I)."""
    return prod(inputs[2]) * prod(inputs[1][:3])


def _linear(inputs: Sequence[Shape], out: Shape) -> int:
    """Weights (O, I)."""
    return prod(out) * inputs[1][-1]


def _product(inputs: Sequence[Shape], out: Shape) -> int:
    """(..., M, K) and (..., K, N), either of them transposed."""
    return prod(out) * (prod(inputs[0][-2:]) // out[-2])


_MACS: dict[str, Callable[[Sequence[Shape], Shape], int]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _linear,
    "BATCH_MATMUL": _product,
}
