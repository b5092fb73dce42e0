"""A model captured as a graph by torch.export, with chosen axes open: what most converters start from."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from .errors import ExportError
from .shapes import Axes

AXIS_INDEX = {"batch": 0, "height": 2, "width": 3}
_LOUD = ("torch.onnx", "torch.export", "torch._export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")


class Capture:
    """A model with an example of its input.

    Attributes:
        module: in evaluation mode; images (B, C, H, W) -> a tensor, or a tuple or list of tensors.
        example: an input; the axes that are not open get its sizes.
        axes: the open axes.
    """

    def __init__(self, module: nn.Module, example: Tensor, axes: Axes) -> None:
        self.module, self.example, self.axes = module, example, axes

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The graph, made when it is first asked for.

        Raises:
            ExportError: torch.export cannot capture the module with these axes open.
        """
        open_axes = {AXIS_INDEX[axis]: torch.export.Dim.DYNAMIC for axis in self.axes}
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(
                    self.module, (self.example,), dynamic_shapes=(open_axes,) if open_axes else None
                )
        except Exception as error:  # torch.export raises many kinds
            raise ExportError(f"torch.export cannot capture the model: {first_cause(error)}") from error

    def refuses(self, x: Tensor) -> str | None:
        """What the graph took for constant that would have to change for input ``x``; None if it runs.

        A graph that runs is not proved by that; one that does not need not be converted.
        """
        module = self.program.module
        known = "check_guards" in inspect.signature(module).parameters
        try:
            with quiet(), torch.no_grad():
                (module(check_guards=True) if known else module())(x)
        except Exception as error:  # a failed guard is an AssertionError, a frozen shape a RuntimeError
            return first_cause(error)
        return None


def first_cause(error: BaseException) -> str:
    """The first line of the deepest cause: converters wrap what happened in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line[:300] or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch.export, converters and their libraries print and log on success."""
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    try:
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
