"""Graphs for ExecuTorch whose results do not depend on the order in which XNNPACK keeps a map in memory.

XNNPACK's convolutions, poolings and means give maps with channels last, and what follows is computed in that order
until an operator asks for the other one. Softmax does not ask, though it is always taken over the last axis: after a
convolution that would be the channels, whatever axis was meant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

_ATEN = torch.ops.aten
_CHANNELS_LAST = {
    _ATEN.convolution.default,
    _ATEN.conv2d.default,
    _ATEN.upsample_bilinear2d.vec,
    _ATEN.mean.dim,
    _ATEN.max_pool2d.default,
    _ATEN.amax.default,
    _ATEN.max.dim,
    _ATEN.avg_pool2d.default,
    _ATEN.prelu.default,
}


def in_order(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """``program``, with a softmax that could get a map with channels last taken over a tensor with an axis more.

    An axis is only put before a tensor in the order that PyTorch has, and a tensor of five axes has no other one.
    """
    graph = program.graph
    for node in graph.find_nodes(op="call_function", target=_ATEN._softmax.default):
        source, axis, *rest = node.args
        if not _may_be_channels_last(source):
            continue
        with graph.inserting_before(node):
            wider = _added(graph, _ATEN.unsqueeze.default, source, 0)
            inner = _added(graph, _ATEN._softmax.default, wider, axis if axis < 0 else axis + 1, *rest)
            outer = _added(graph, _ATEN.squeeze.dims, inner, [0])
        node.replace_all_uses_with(outer)
        graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _added(graph: torch.fx.Graph, target: Any, source: Node, *rest: Any) -> Node:
    """A new node with what exported programs say of one."""
    node = graph.call_function(target, (source, *rest))
    node.meta = {**source.meta, "val": target(source.meta["val"], *rest)}
    return node


def _may_be_channels_last(node: Node) -> bool:
    """Whether one of the operators in `_CHANNELS_LAST` is before ``node``, with none between that is of other axes."""
    seen, waiting = set(), [node]
    while waiting:
        one = waiting.pop()
        value = one.meta.get("val")
        if one in seen or not isinstance(value, torch.Tensor) or value.ndim != 4:
            continue
        if one.target in _CHANNELS_LAST:
            return True
        seen.add(one)
        waiting += [] if one.target in _REORDERED else one.all_input_nodes
    return False


_REORDERED = {_ATEN.permute.default, _ATEN.view.default, _ATEN.clone.default, _ATEN.expand.default}
