"""A captured model in float16, with islands of float32 where float16 would overflow or lose what it adds.

The module is captured with its weights in float16, so that what accumulates in float32 by itself does so in the graph
too: linear attention, Flowformer and the rest of `mixzoo.kernels` (see `mixzoo.kernels.precision`). In that graph

- norms, softmax, attention that is one operator, means and other sums, powers, exponentials and quotients are computed
  in float32 (`ISLANDS`), and what they give returns to float16;
- where an activation comes within a factor of `HEADROOM` of float16's greatest number on the example, it is computed in
  float32 and stays it, until something that is made of it fits again.

Inputs and outputs are float32.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Interpreter, Node
from torch.fx.node import map_aggregate, map_arg

from .capture import Capture, quiet

HEADROOM = 8.0  # other images than the example make other activations
LIMIT = torch.finfo(torch.float16).max / HEADROOM
ISLANDS = frozenset(
    f"aten.{name}"
    for name in (
        *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "native_layer_norm"),
        *("native_group_norm", "_native_batch_norm_legit_no_training", "norm", "linalg_vector_norm"),
        *("softmax", "_softmax", "log_softmax", "logsumexp", "scaled_dot_product_attention"),
        *("mean", "sum", "cumsum", "var", "std", "var_mean", "avg_pool2d", "adaptive_avg_pool2d"),
        *("pow", "square", "exp", "expm1", "log", "sqrt", "rsqrt", "reciprocal", "div"),
    )
)
_CASTS = ("aten.to", "aten._to_copy")


def in_half(capture: Capture) -> Capture:
    """The capture whose graphs compute in float16; the same one each time.

    Raises:
        ExportError: when its graph is asked for: it cannot be captured with weights in float16.
    """
    if _MADE not in capture.made:
        module = Half(capture.module)
        capture.made[_MADE] = HalfCapture(module, capture.example, capture.axes, capture.greatest, capture.precision)
    half: Capture = capture.made[_MADE]
    return half


_MADE = "half"


class Half(nn.Module):
    """A copy of a module with weights in float16; float32 in and out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(self, x: Tensor) -> Any:
        return map_aggregate(self.module(x.half()), lambda y: y.float() if isinstance(y, Tensor) else y)


class HalfCapture(Capture):
    """A capture of `Half` whose graphs have islands of float32."""

    def _export(self, axes: Mapping[str, Any]) -> ExportedProgram:
        program = super()._export(axes)
        return with_islands(program, self.example)


def with_islands(program: ExportedProgram, example: Tensor) -> ExportedProgram:
    """Make the islands in a program whose weights are float16; it is changed, and returned.

    Args:
        program: of a `Half`.
        example: an input, by which activations are measured.
    """
    with quiet(), torch.no_grad():
        over = {node for node, size in greatest(program, example).items() if size > LIMIT}
        _Widening(program.graph, over).run()
    program.graph.eliminate_dead_code()
    program.graph.lint()
    program.graph_module.recompile()
    return program


def greatest(program: ExportedProgram, example: Tensor) -> dict[Node, float]:
    """The greatest absolute value of every float16 tensor in the graph, computed in float32."""
    found: dict[Node, float] = {}

    class Measure(Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, Tensor) and _is_half(n) and result.numel():
                found[n] = float(result.abs().max())
            return result

        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            args, kwargs = map_aggregate((args, kwargs), _widened)
            return super().call_function(target, args, kwargs)

    inputs = list(_inputs(program, example))
    Measure(program.graph_module).run(*inputs)
    return found


def _inputs(program: ExportedProgram, example: Tensor) -> Iterable[Tensor]:
    """What the graph's placeholders stand for, float32."""
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            yield example
            continue
        name = spec.target or ""
        held = program.state_dict[name] if name in program.state_dict else program.constants[name]
        yield held.float() if isinstance(held, Tensor) and held.dtype == torch.float16 else held


def _widened(value: Any) -> Any:
    return torch.float32 if value == torch.float16 else value


class _Widening:
    """Rewrites a graph: see the module's docstring."""

    def __init__(self, graph: Graph, over: set[Node]) -> None:
        self.graph, self.over = graph, over
        self.wide: set[Node] = set()  # were float16, and now give float32
        self.up: dict[Node, Node] = {}  # float16 -> the same in float32
        self.source: dict[Node, Node] = {}  # what is float16 again -> what it was made of

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.op == "call_function" and self._widens(node):
                self._widen(node)

    def _widens(self, node: Node) -> bool:
        if node.target in _GETITEM:
            return node.args[0] in self.wide
        if _packet(node) in _CASTS:
            return node in self.over
        mixed = any(part in self.wide for part in node.all_input_nodes)
        return mixed or (_is_half(node) and (node in self.over or self._is_island(node)))

    def _is_island(self, node: Node) -> bool:
        name = _packet(node)
        return name in ISLANDS and (name != "aten.div" or isinstance(node.args[1], Node))

    def _widen(self, node: Node) -> None:
        was_half = _is_half(node)
        with self.graph.inserting_before(node):
            node.args, node.kwargs = map_arg((node.args, node.kwargs), self._raised)
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), _widened)
        node.meta["val"] = map_aggregate(node.meta.get("val"), _float)
        if not was_half:
            return
        self.wide.add(node)
        if node not in self.over and isinstance(node.meta["val"], Tensor):
            self._lower(node)

    def _raised(self, part: Node) -> Node:
        """``part`` in float32, if it is float16."""
        if part in self.source:
            return self.source[part]
        if part in self.wide or not isinstance(part.meta.get("val"), Tensor) or not _is_half(part):
            return part
        if part not in self.up:
            self.up[part] = self._cast(part, torch.float32)
        return self.up[part]

    def _lower(self, node: Node) -> None:
        """Let all that uses ``node`` use a float16 copy."""
        users = list(node.users)
        with self.graph.inserting_after(node):
            lowered = self._cast(node, torch.float16)
        for user in users:
            user.replace_input_with(node, lowered)
        self.source[lowered] = node

    def _cast(self, node: Node, dtype: torch.dtype) -> Node:
        cast = self.graph.call_function(torch.ops.aten._to_copy.default, (node,), {"dtype": dtype})
        cast.meta = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
        cast.meta["val"] = node.meta["val"].to(dtype)
        return cast


_GETITEM = (operator.getitem,)


def _packet(node: Node) -> str:
    return str(getattr(node.target, "overloadpacket", node.target))


def _is_half(node: Node) -> bool:
    values = node.meta.get("val")
    some = values if isinstance(values, tuple | list) else [values]
    return any(isinstance(v, Tensor) and v.dtype == torch.float16 for v in some)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value
