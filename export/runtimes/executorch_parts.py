"""Graphs for ExecuTorch in operators that XNNPACK takes, or that move nothing.

What is not in one of XNNPACK's parts runs in a plain kernel and ends the part: copies that `torch.matmul` and `unbind`
come apart into, tests for rows of attention that see nothing, and indices by which `torch.roll` gathers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

_ATEN = torch.ops.aten


def in_parts(program: torch.export.ExportedProgram, slices: bool = True) -> torch.export.ExportedProgram:
    """``program`` in core ATen, but with whole matrices, as XNNPACK takes them.

    Args:
        program: a captured graph.
        slices: whether what selects, splits and rolls is written as slices. In eight bits it must not be: XNNPACK does
            not load a slice whose input and output have different scales.
    """
    return _without_idle(program.run_decompositions(_decompositions(slices)))


def _decompositions(slices: bool) -> dict[Any, Any]:
    core = dict(torch.export.default_decompositions())
    for operator, ours in (_OURS | _IN_SLICES if slices else _OURS).items():
        core[operator] = _first(ours, core.get(operator))
    del core[_ATEN.linear.default]
    return core


def _first(ours: Callable[..., Any], theirs: Callable[..., Any] | None) -> Callable[..., Any]:
    """Takes an operator apart as ``ours`` does, and by ``theirs`` what ours leaves."""

    def apart(*args: Any, **options: Any) -> Any:
        result = ours(*args, **options)
        return theirs(*args, **options) if theirs is not None and result is NotImplemented else result

    return apart


def _without_idle(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """``program`` without expansions that repeat nothing."""
    for node in program.graph.find_nodes(op="call_function", target=_ATEN.expand.default):
        source = node.args[0]
        if isinstance(source, Node) and _sides(source) == _sides(node):
            node.replace_all_uses_with(source)
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _sides(node: Node) -> list[str]:
    """Its shape, open sides as they are called."""
    return [str(side) for side in node.meta["val"].shape]


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """XNNPACK computes ``aten.gelu`` by the error function also where the one by tanh is asked for, 1e-4 off."""
    if approximate == "none":
        return NotImplemented
    return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)).tanh())


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, hw: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The map (N, C, ...), and mean and reciprocal deviation (N, groups).

    ExecuTorch's own kernel of ``aten.native_group_norm`` does not take maps in channels-last order.
    """
    rows = x.reshape(x.shape[0], groups, -1)
    mean = rows.mean(-1, keepdim=True)
    centred = rows - mean
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    out = (centred * rstd).reshape(x.shape)
    per_channel = (1, c, *(1,) * (x.ndim - 2))
    out = out if weight is None else out * weight.reshape(per_channel)
    out = out if bias is None else out + bias.reshape(per_channel)
    return out, mean.squeeze(-1), rstd.squeeze(-1)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Without a mask every row sees something, which need not be tested."""
    alike = q.ndim == k.ndim == v.ndim >= 3 and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
    if attn_mask is not None or dropout_p or is_causal or enable_gqa or not alike:
        return NotImplemented
    scores = _product(q * (q.shape[-1] ** -0.5 if scale is None else scale), k.transpose(-2, -1))
    return _product(scores.softmax(-1), v)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return _product(a, b) if a.ndim == b.ndim >= 3 and a.shape[:-2] == b.shape[:-2] else NotImplemented


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of tensors that have all axes but the last two in common."""
    return torch.bmm(a, b) if a.ndim == 3 else torch.bmm(a.flatten(0, -3), b.flatten(0, -3)).unflatten(0, a.shape[:-2])


def _select(x: Tensor, dim: int, index: int) -> Tensor:
    """By a slice and a view, where sides are known."""
    dim %= x.ndim
    side = x.shape[dim]
    if not isinstance(side, int) or not isinstance(index, int):
        return NotImplemented
    return x.narrow(dim, index % side, 1).view(x.shape[:dim] + x.shape[dim + 1 :])


def _unbind(x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    return tuple(_select(x, dim, i) for i in range(x.shape[dim])) if isinstance(x.shape[dim], int) else NotImplemented


def _split(x: Tensor, sizes: Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """By slices, which XNNPACK takes one by one."""
    return tuple(x.narrow(dim, start, size) for start, size in zip(accumulate(sizes, initial=0), sizes, strict=False))


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    """By joining what goes over the end with the rest."""
    if not dims or not all(isinstance(n, int) for n in (*shifts, *(x.shape[dim] for dim in dims))):
        return NotImplemented
    for shift, dim in zip(shifts, dims, strict=True):
        side = x.shape[dim]
        if over := shift % side:
            x = torch.cat([x.narrow(dim, side - over, over), x.narrow(dim, 0, side - over)], dim)
    return x


_OURS: dict[Any, Callable[..., Any]] = {
    _ATEN.native_group_norm.default: _group_norm,
    _ATEN.gelu.default: _gelu,
    _ATEN.scaled_dot_product_attention.default: _attention,
    _ATEN.matmul.default: _matmul,
}
_IN_SLICES: dict[Any, Callable[..., Any]] = {
    _ATEN.unbind.int: _unbind,
    _ATEN.select.int: _select,
    _ATEN.split_with_sizes.default: _split,
    _ATEN.roll.default: _roll,
}
