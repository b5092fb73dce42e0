"""Graphs in eight bits that ExecuTorch's XNNPACK computes as they are written.

XNNPACK makes a table of what is computed of one tensor between two roundings to eight bits, such as an activation.
Releases until July 2026 look at a table as at an operator with a second result, the first tensor of the part: where
that is then added to what the table gives, or multiplied with it, they make a table of that, too. The result is wrong,
and memory is freed twice (https://github.com/google/XNNPACK/pull/10756).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

_CLONE = torch.ops.aten.clone.default
_ROUND, _BACK = "quantized_decomposed.quantize_per_tensor.default", "quantized_decomposed.dequantize_per_tensor.default"


def without_joined_tables(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """``program``, with what would be a table not rounded where it meets another tensor, and nothing rounded twice.

    A tensor that is rounded twice by the same step would be a table that computes nothing.
    """
    for node in _named(program, _ROUND):
        source = _original(node.args[0])
        if _is(source, _BACK) and source.args[1:] == node.args[1:]:
            node.replace_all_uses_with(_original(source.args[0]))
            program.graph.erase_node(node)
    for node in _named(program, _BACK):
        if _is(rounded := _original(node.args[0]), _ROUND) and _of_one(exact := _original(rounded.args[0])):
            for user in list(node.users):
                if _meets_another(user):
                    user.replace_input_with(node, exact)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _named(program: torch.export.ExportedProgram, name: str) -> list[Node]:
    return [node for node in program.graph.nodes if _is(node, name)]


def _is(node: Node, name: str) -> bool:
    """Whether ``node`` calls the operator ``name``, which is not in PyTorch before ExecuTorch is imported."""
    return str(node.target) == name


def _original(node: Any) -> Node:
    """What ``node`` is a copy of: copies do not stay in ExecuTorch's graphs."""
    while node.target is _CLONE:
        node = node.args[0]
    return node


def _of_one(result: Node) -> bool:
    """Whether ``result`` is computed from the elements of a single tensor of eight bits."""
    seen: set[Node] = set()
    sources: set[Node] = set()
    waiting = [result]
    while waiting and len(sources) < 2:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += _maps(node) if _is_pointwise(node) else []
            sources |= set() if _is_pointwise(node) else {node}
    return len(sources) == 1 and any(_is(node, _BACK) for node in seen)


def _meets_another(node: Node) -> bool:
    """Whether ``node``, or what is computed from it alone before it is rounded, has another tensor beside it."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.target is _CLONE or (_is_pointwise(node) and not _is(node, _ROUND)):
            if len(_maps(node)) > 1:
                return True
            waiting += list(node.users)
    return False


def _is_pointwise(node: Node) -> bool:
    """Whether every element of its result is computed from the elements at the same place."""
    return _is(node, _ROUND) or _is(node, _BACK) or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _maps(node: Node) -> list[Node]:
    """The tensors that ``node`` takes, but for those of one element."""
    sources = (_original(source) for source in node.all_input_nodes)
    return [s for s in sources if not isinstance(value := s.meta.get("val"), torch.Tensor) or value.numel() != 1]
