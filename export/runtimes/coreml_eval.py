"""A MIL program, read back from an ``.mlpackage``, computed operator by operator in PyTorch on the CPU.

MIL is the language of Core ML's ML programs. Core ML runs on Apple's systems only; this evaluator follows what
coremltools' operator definitions say that each operator does, and checks every tensor's shape and type against the
program. An operator, or a mode of one, that it cannot follow faithfully is an error that names it.

A tensor of float16 holds what float16 can: an operator computes in float32, as the sums of matrix units are, and its
result is rounded once, to infinity where it is too large.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...zoo.extras import require
from ..capture import quiet
from ..errors import ExportError
from .coreml_arguments import Arguments
from .coreml_ops import OPERATORS


@contextmanager
def hushed(level: int = logging.WARNING) -> Iterator[None]:
    """Silence what coremltools prints, warns of, and logs up to ``level``."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        with quiet():
            yield
    finally:
        logging.disable(before)


def import_coremltools() -> Any:
    """coremltools, without what it says of versions and of Apple's libraries when it is imported."""
    with hushed():
        return require("coremltools", extra="coreml")


class MilProgram:
    """The main function of the program in a package.

    Args:
        path: an ``.mlpackage``.

    Attributes:
        inputs, outputs: their names.
        minimum: the oldest system that runs it, such as "iOS16".
        operations: in the order in which they run; constants are not among them.

    Raises:
        ExportError: the package cannot be read.
    """

    def __init__(self, path: Path) -> None:
        coremltools = import_coremltools()
        from coremltools.converters.mil.frontend.milproto.load import load

        try:
            with hushed():
                model = coremltools.models.MLModel(str(path), skip_model_load=True)
                spec = model.get_spec()
                program = load(spec, spec.specificationVersion, model.weights_dir)
        except Exception as error:  # files can be damaged in many ways
            raise ExportError(f"{path.name} cannot be read: {error}") from error
        self.function = program.functions["main"]
        self.minimum = f"iOS{spec.specificationVersion + 9}"  # 7 is iOS 16's
        self.inputs = list(self.function.inputs)
        self.outputs = [feature.name for feature in spec.description.output]
        self.operations = [op for op in self.function.operations if op.op_type != "const"]

    def variables(self) -> Iterable[Any]:
        """Everything that an operation computes, and the inputs."""
        yield from self.function.inputs.values()
        for operation in self.operations:
            yield from operation.outputs


class Computed(Protocol):
    """What `MilEvaluator` computes: a `MilProgram`, or a function that coremltools is at work on."""

    function: Any
    inputs: list[str]
    outputs: list[str]
    operations: list[Any]


class MilEvaluator:
    """Computes a `MilProgram`.

    Args:
        program: what to compute.

    Raises:
        ExportError: it has an operator that is not in `OPERATORS`.
    """

    def __init__(self, program: Computed) -> None:
        self.program = program
        if unknown := sorted({op.op_type for op in program.operations} - set(OPERATORS)):
            raise ExportError(f"{', '.join(unknown)} of the MIL program cannot be evaluated here: run it with Core ML")
        constants = [op for op in program.function.operations if op.op_type == "const"]
        self.constants = {op.outputs[0].name: as_tensor(op.outputs[0].val) for op in constants}
        last = {v.name: index for index, op in enumerate(program.operations) for v in _tensors(op)}
        self.done: list[list[str]] = [[] for _ in program.operations]  # what no later operation needs
        for name in last.keys() - set(program.outputs) - set(self.constants):
            self.done[last[name]].append(name)

    def __call__(self, x: Tensor, see: Callable[[str, Tensor], None] = lambda name, value: None) -> list[Tensor]:
        """Images (B, C, H, W) -> every output; ``see`` is told the input and what every operation gives.

        Raises:
            ExportError: an operator's mode cannot be followed, or a tensor is not what the program says.
        """
        values = {**self.constants, self.program.inputs[0]: x}
        _check(self.program.function.inputs[self.program.inputs[0]], x, "the input")
        see(self.program.inputs[0], x)
        for operation, done in zip(self.program.operations, self.done, strict=True):
            result = _compute(operation, values)
            for variable, value in zip(operation.outputs, result, strict=True):
                _check(variable, value, f"{operation.op_type} {operation.name}")
                values[variable.name] = value
                see(variable.name, value)
            for name in done:
                del values[name]
        return [values[name] for name in self.program.outputs]


def _compute(operation: Any, values: dict[str, Any]) -> list[Tensor]:
    try:
        result = OPERATORS[operation.op_type](Arguments(operation, values))
    except NotImplementedError as error:
        raise ExportError(f"{operation.op_type} {operation.name} cannot be evaluated faithfully: {error}") from error
    results = [result] if isinstance(result, Tensor) else list(result)
    given = (values[variable.name] for variable in _tensors(operation) if variable is not None)
    half = operation.op_type != "cast" and any(getattr(v, "dtype", None) == torch.float16 for v in given)
    return [y.half() if half and y.dtype == torch.float32 else y for y in results]


def _tensors(operation: Any) -> Iterable[Any]:
    for value in operation.inputs.values():
        yield from value if isinstance(value, tuple | list) else [value]


def as_tensor(value: Any) -> Any:
    """A constant: text as it is, anything else as a tensor of its type."""
    return value if isinstance(value, str) else torch.from_numpy(np.array(value))


def _check(variable: Any, value: Tensor, what: str) -> None:
    """See that a tensor has the shape and the type that the program gives it."""
    shape = tuple(variable.shape)
    if all(isinstance(side, int | np.integer) for side in shape) and tuple(value.shape) != shape:
        raise ExportError(f"{what} gives {tuple(value.shape)}, not {shape} as the program says")
    if value.dtype != (wanted := TYPES[variable_type(variable)]):
        raise ExportError(f"{what} gives {value.dtype}, not {wanted} as the program says")


TYPES = {
    **{"fp32": torch.float32, "fp16": torch.float16, "bool": torch.bool},
    **{"int32": torch.int32, "int16": torch.int16, "uint16": torch.uint16, "int8": torch.int8, "uint8": torch.uint8},
}


def variable_type(variable: Any) -> str:
    """A variable's element type in MIL's words, such as "fp32"."""
    from coremltools.converters.mil.mil.types import builtin_to_string

    return str(builtin_to_string(variable.dtype))
