"""Computing once what in a captured graph does not depend on its input: indices, masks, resized tables."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

_SAME = (torch.ops.aten.alias.default, torch.ops.aten.detach.default, torch.ops.aten.detach_.default)


def fold_constants(module: GraphModule) -> GraphModule:
    """The same graph with buffers for what its input does not reach, and without nodes that only rename a tensor.

    Args:
        module: of a captured program; it is changed.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target in _SAME:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node, value in _known(module).items():
        if node.op == "call_function" and isinstance(value, Tensor):
            _replace(module, graph, node, value)
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _known(module: GraphModule) -> dict[Node, Any]:
    """Nodes that do not depend on the input, with their values."""
    known: dict[Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            known[node] = attrgetter(str(node.target))(module)
        elif node.op == "call_function" and all(part in known for part in node.all_input_nodes):
            known[node] = node.target(*_values(node.args, known), **_values(node.kwargs, known))
    return known


def _values(arguments: Any, known: Mapping[Node, Any]) -> Any:
    return map_arg(arguments, lambda part: known[part])


def _replace(module: GraphModule, graph: Graph, node: Node, value: Tensor) -> None:
    """Put a buffer in the place of ``node``, if anything is left that uses it."""
    name = f"folded_{node.name}"
    own = value.detach().clone(memory_format=torch.contiguous_format)  # ExecuTorch writes what lies before a view too
    module.register_buffer(name, own, persistent=False)
    with graph.inserting_before(node):
        node.replace_all_uses_with(graph.get_attr(name))
    graph.erase_node(node)
