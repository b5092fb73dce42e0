"""Graphs for coremltools, with plain operators for those that version 9.0 cannot convert or gets wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..constants import fold_constants
from .nearest import nearest
from .ranks import Ranks


def convertible(graph: GraphModule) -> GraphModule:
    """The graph with constants folded and such operators in parts; it is changed, and to be traced."""
    for node in fold_constants(graph).graph.nodes:
        node.target = IN_PARTS.get(node.target, node.target)
    graph.recompile()
    return graph


def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    product = a * b
    return x + (product if value == 1 else value * product)


def _baddbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Known, but not with factors that are whole numbers."""
    product = a @ b
    return (x if beta == 1 else beta * x) + (product if alpha == 1 else alpha * product)


def _chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Known, but not into one."""
    return x.chunk(chunks, dim) if chunks > 1 else (x,)


def _reciprocal(x: Tensor) -> Tensor:
    """A quotient: Core ML adds 1e-4 to what it inverts."""
    return torch.tensor(1.0, dtype=x.dtype) / x


IN_PARTS: dict[Any, Any] = {  # traced, they are plain operators
    **Ranks(5).operators(),
    torch.ops.aten.addcmul.default: _addcmul,
    torch.ops.aten.baddbmm.default: _baddbmm,
    torch.ops.aten.chunk.default: _chunk,
    torch.ops.aten.reciprocal.default: _reciprocal,
    torch.ops.aten.upsample_nearest2d.vec: nearest,
}
