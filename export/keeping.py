"""What of a captured graph stays in float beside the layers that are to: what gives them their inputs.

A runtime rounds what a layer in eight bits gives as well as what it takes. A layer in float behind it would compute
exactly with what is rounded already.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import Graph, Node

from .precision import Precision

_LAYERS = ("addmm", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "convolution", "linear", "matmul", "mm")


def in_float(graph: Graph, precision: Precision) -> set[Node]:
    """The nodes that stay in float: those of modules that do, and those before them.

    Back from each input up to a layer, or to what has several inputs, which is among them too: beyond that what is
    rounded is only a part of what the layer is given.
    """
    kept = {node for node in graph.nodes if any(precision.keeps(path) for path, _ in modules(node))}
    return kept.union(*(_before(node) for node in kept))


def modules(node: Node) -> list[tuple[str, str]]:
    """(path, full name of the class) of the modules that ``node`` is in, the outermost first."""
    stack = node.meta.get("nn_module_stack", {}).values()
    return [(path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}") for path, kind in stack]


def _before(node: Node) -> Iterator[Node]:
    for part in _computed(node):
        while True:
            yield part
            makers = _computed(part)
            if _is_layer(part) or len(makers) != 1:
                break
            part = makers[0]


def _computed(node: Node) -> list[Node]:
    """What ``node`` is given, but weights and the image."""
    return [part for part in node.all_input_nodes if part.op == "call_function"]


def _is_layer(node: Node) -> bool:
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(packet).rpartition(".")[2] in _LAYERS
