"""Graphs for coremltools, with plain operators for those that version 9.0 cannot convert or gets wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..constants import fold_constants
from ..resizing import nearest
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


def _slice_scatter(
    x: Tensor, part: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """``x`` with ``part`` in the place of a slice: what is before it and behind it, joined with the part."""
    places = range(x.shape[dim])[start:end:step]
    if step != 1:
        return torch.slice_scatter(x, part, dim, start, end, step)
    pieces = (x.narrow(dim, 0, places.start), part, x.narrow(dim, places.stop, x.shape[dim] - places.stop))
    return torch.cat([piece for piece in pieces if piece.shape[dim]], dim)


def _select_scatter(x: Tensor, part: Tensor, dim: int, index: int) -> Tensor:
    at = index % x.shape[dim]
    return _slice_scatter(x, part.unsqueeze(dim), dim, at, at + 1)


def _filled(x: Tensor, value: Any) -> Tensor:
    """``value`` everywhere, in the shape and type of ``x``."""
    return (value if isinstance(value, Tensor) else torch.tensor(value)).to(x.dtype).expand(x.shape)


IN_PARTS: dict[Any, Any] = {  # traced, they are plain operators
    **Ranks(5).operators(),
    torch.ops.aten.addcmul.default: _addcmul,
    torch.ops.aten.baddbmm.default: _baddbmm,
    torch.ops.aten.chunk.default: _chunk,
    torch.ops.aten.copy.default: lambda x, source: _filled(x, source),
    torch.ops.aten.fill.Scalar: _filled,
    torch.ops.aten.fill.Tensor: _filled,
    torch.ops.aten.slice_scatter.default: _slice_scatter,
    torch.ops.aten.select_scatter.default: _select_scatter,
    torch.ops.aten.reciprocal.default: _reciprocal,
    torch.ops.aten.upsample_nearest2d.vec: nearest,
}
