"""A model captured as a graph by torch.export, with chosen axes open: what most converters start from."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ExportError
from .precision import Precision
from .rewriting import CAPTURED, Rewriting
from .shapes import Axes

AXIS_INDEX = {"batch": 0, "height": 2, "width": 3}
FLOAT = Precision()
_LOUD = (
    *("torch.onnx", "torch.export", "torch._export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir"),
    *("torch.utils.cpp_extension", "executorch", "litert_torch", "openvino", "nncf", "coremltools"),
)


class Capture:
    """A model with an example of its input.

    Attributes:
        module: in evaluation mode; images (B, C, H, W) -> a tensor, or a tuple or list of tensors.
        example: an input; the axes that are not open get its sizes.
        axes: the open axes.
        greatest: side of each open axis that a target must take where it plans memory ahead; the example's by default.
        precision: what the file computes in; `module` and the graphs are float32 whatever it is.
        made: what a target has made of the graph and may need again, for a file of another precision.
    """

    def __init__(
        self,
        module: nn.Module,
        example: Tensor,
        axes: Axes,
        greatest: Mapping[str, int] | None = None,
        precision: Precision = FLOAT,
    ) -> None:
        self.module, self.example, self.axes, self.precision = module, example, axes, precision
        self.made: dict[str, Any] = {}
        self.greatest = {axis: max((greatest or {}).get(axis, 0), example.shape[AXIS_INDEX[axis]]) for axis in axes}

    def at(self, precision: Precision) -> Capture:
        """The same capture, with the graphs that it has already, for a file of another precision."""
        other = copy.copy(self)
        other.precision = precision
        return other

    def calibration(self) -> list[Tensor]:
        """The images to calibrate with, as many of a size at a time as the graph takes: one, or a batch not open."""
        batch = 1 if "batch" in self.axes else self.example.shape[0]
        sizes: dict[torch.Size, list[Tensor]] = {}
        for image in self.precision.images:
            sizes.setdefault(image.shape, []).append(image)
        return [
            torch.cat([images[(i + j) % len(images)] for j in range(batch)])
            for images in sizes.values()
            for i in range(0, len(images), batch)
        ]

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The graph, made when it is first asked for.

        Raises:
            ExportError: torch.export cannot capture the module with these axes open.
        """
        return self._export({axis: torch.export.Dim.DYNAMIC for axis in self.axes})

    @cached_property
    def bounded(self) -> torch.export.ExportedProgram:
        """`program` with open axes that go no further than `greatest`, for targets that plan memory ahead."""
        return self._export(self._bounds())

    def bounds(self) -> tuple[dict[int, Any]] | None:
        """The open axes of `bounded`, as torch.export takes them."""
        return _shapes(self._bounds())

    def _bounds(self) -> dict[str, Any]:
        return {axis: torch.export.Dim.DYNAMIC(max=self.greatest[axis]) for axis in self.axes}

    def _export(self, axes: Mapping[str, Any]) -> torch.export.ExportedProgram:
        try:
            with quiet(), torch.no_grad(), Rewriting(CAPTURED):
                return torch.export.export(self.module, (self.example,), dynamic_shapes=_shapes(axes))
        except Exception as error:  # torch.export raises many kinds
            raise ExportError(f"torch.export cannot capture the model: {first_cause(error)}") from error

    def run(self, x: Tensor) -> Any:
        """What the graph's arithmetic makes of input ``x``, whatever torch.export thinks of its shape.

        Raises:
            Exception: any, where sizes in the graph do not fit ``x``.
        """
        with quiet(), torch.no_grad():
            return self.arithmetic().forward(x)  # no checks of the input

    def arithmetic(self) -> torch.fx.GraphModule:
        """The graph as a module of its own, without torch.export's checks of the input.

        Where something is written into a part of a tensor, or into one that is the same for every input, the tensor is
        made anew from its parts: converters read such writing in different ways, and constants could not be folded.

        Raises:
            ExportError: torch.export cannot capture the module with these axes open.
        """
        graph = _unchecked(self.program)
        return _unchecked(self.program.run_decompositions({})) if _writes(graph.graph) else graph

    def refuses(self, x: Tensor) -> str | None:
        """What torch.export took for constant that would have to change for input ``x``; None if nothing.

        It guards more than the arithmetic needs: a graph that it refuses may be right, see `run`.
        """
        module = self.program.module
        try:
            with quiet(), torch.no_grad():
                (module(check_guards=True) if _guarded(module) else module())(x)
        except Exception as error:  # a failed guard is an AssertionError, a frozen shape a RuntimeError
            return first_cause(error)
        return None


def _shapes(axes: Mapping[str, Any]) -> tuple[dict[int, Any]] | None:
    dims = {AXIS_INDEX[axis]: dim for axis, dim in axes.items()}
    return (dims,) if dims else None


def _unchecked(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    graph = program.module(check_guards=False) if _guarded(program.module) else program.module()
    assert isinstance(graph, torch.fx.GraphModule)
    return graph


def _writes(graph: torch.fx.Graph) -> bool:
    """Whether an operator writes into a view, or into what does not depend on the input."""
    reached: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(part in reached for part in node.all_input_nodes):
            reached.add(node)
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            written = node.args[0]
            if written not in reached or _is_view(written) or node.target.overloadpacket is torch.ops.aten.copy_:
                return True
    return False


def _is_view(node: Any) -> bool:
    if node.target is operator.getitem:  # a part of what was split
        return True
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view


def _guarded(module: Callable[..., nn.Module]) -> bool:
    """Whether this torch has guards in its programs."""
    return "check_guards" in inspect.signature(module).parameters


def first_cause(error: BaseException) -> str:
    """The first line of the deepest cause: converters wrap what happened in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line[:300] or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch.export, converters and their libraries print and log on success.

    The root logger is left as it was found: OpenVINO's converter, where it fails, sets its level and its filters, and
    what anyone else warned of from then on was lost.
    """
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    root = logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    try:
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, loudness in levels.items():
            logging.getLogger(name).setLevel(loudness)
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers
