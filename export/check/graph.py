"""What a captured graph holds: calls of operators, each with the module that it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Call:
    """A call of an operator.

    Attributes:
        node: in the graph.
        operator: namespace and name without the overload, such as "aten.roll".
        module: dotted path of the innermost module that calls it, in the original model; "" for the model itself.
        kind: class of that module.
        constant: whether it does not depend on the model's input, so that a converter computes it once.
    """

    node: Node
    operator: str
    module: str
    kind: str
    constant: bool

    @property
    def name(self) -> str:
        """The operator without its namespace."""
        return self.operator.partition(".")[2]

    @cached_property
    def outputs(self) -> list[Tensor]:
        """Tensors without data."""
        return _tensors(self.node)

    @cached_property
    def inputs(self) -> list[Tensor]:
        """Tensors without data, those that are computed."""
        return [tensor for node in self.node.all_input_nodes for tensor in _tensors(node)]

    @property
    def shape(self) -> Shape:
        """Of the tensor with the most axes that it takes or gives; an open side is an expression."""
        largest = max((*self.outputs, *self.inputs), key=lambda tensor: tensor.ndim)
        return tuple(side if isinstance(side, int) else str(side) for side in largest.shape)

    @property
    def rank(self) -> int:
        """Of the output with the most axes."""
        return max(tensor.ndim for tensor in self.outputs)

    @property
    def data_dependent(self) -> bool:
        """Whether the shape of its output follows from values, and those of its inputs do not."""
        return any(map(free_unbacked_symbols, self.outputs)) and not any(map(free_unbacked_symbols, self.inputs))

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by its place or name."""
        return self.node.args[index] if len(self.node.args) > index else self.node.kwargs.get(name, default)


def calls(program: torch.export.ExportedProgram, original: nn.Module) -> Iterator[Call]:
    """Every call in the graph that gives a tensor, in order.

    Args:
        program: a captured graph of the original or of its deploy form.
        original: has the names of modules that are told.
    """
    reached = _reached(program)
    for node in program.graph.nodes:
        if node.op != "call_function" or not _tensors(node) or not (operator := _operator(node.target)):
            continue
        path, kind = _module(node)
        yield Call(node, operator, original_path(path, original), kind, node not in reached)


def original_path(path: str, original: nn.Module) -> str:
    """The module of the original that ``path`` of its deploy form stands for; the nearest one above where none does.

    A chain that was made flat has names such as ``0_mlp_fc1`` for ``0.mlp.fc1``.
    """
    found: list[str] = []
    module, rest = original, path.replace("_", ".").split(".")
    while rest:
        lengths = [n for n in range(len(rest), 0, -1) if "_".join(rest[:n]) in module._modules]
        if not lengths:
            break
        name = "_".join(rest[: lengths[0]])
        child = module._modules[name]
        if child is None:
            break
        found, module, rest = [*found, name], child, rest[lengths[0] :]
    return ".".join(found)


def raised_in(error: BaseException, model: nn.Module) -> str:
    """Path of the innermost module that was running when ``error``, or what caused it, was raised; "" if none was."""
    names = {id(module): name for name, module in model.named_modules()}
    path, cause = "", error
    while cause is not None:
        trace = cause.__traceback__
        while trace is not None:
            path = names.get(id(trace.tb_frame.f_locals.get("self")), path) or path
            trace = trace.tb_next
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)  # type: ignore[assignment]
    return path


def _tensors(node: Node) -> list[Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return [v for v in values if isinstance(v, Tensor)]


def _operator(target: Any) -> str | None:
    """'aten.roll' of ``aten.roll.default``; None for Python's own functions, which take tuples apart."""
    if not isinstance(target, torch._ops.OpOverload):
        return None
    return f"{target.namespace}.{target.overloadpacket.__name__}"


def _module(node: Node) -> tuple[str, str]:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__qualname__
    return str(path).partition("@")[0], kind.rpartition(".")[2]


def _reached(program: torch.export.ExportedProgram) -> set[Node]:
    """Nodes that depend on the input, its shape included."""
    inputs = set(program.graph_signature.user_inputs)
    reached: set[Node] = set()
    for node in program.graph.nodes:
        if node.name in inputs or any(parent in reached for parent in node.all_input_nodes):
            reached.add(node)
    return reached
