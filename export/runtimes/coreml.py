"""Core ML: an ``.mlpackage`` with an ML program, for iOS 16 and macOS 13 upwards; in eight bits iOS 17 and macOS 14.

A package is a folder. On macOS Core ML runs it; elsewhere the MIL program in the written package is computed operator
by operator in PyTorch, with every shape and type checked, which proves the program and its weights but not Core ML's
kernels, nor their speed.

Every axis is fixed. The converter starts from a trace of the captured graph, in which shapes are numbers and all that
the input does not reach is computed: from the module itself, arithmetic on shapes and indices becomes operators, some
of them in floating point, which then cannot index.
"""

from __future__ import annotations

import io
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..capture import Capture, first_cause
from ..errors import ExportError
from ..keeping import in_float, modules
from ..options import check_options
from ..precision import PRECISIONS
from ..protocol import FileFacts, Runner, Target, TensorInfo
from ..sensitivity import layers
from .coreml_eval import TYPES, MilEvaluator, MilProgram, hushed, import_coremltools, variable_type
from .coreml_lower import MINIMUM, compute_precision, quantised, ranges_of
from .coreml_parts import convertible

_ON_MACOS = sys.platform == "darwin"


class CoreMlRunner(Runner):
    """A package in Core ML, on macOS."""

    def __init__(self, path: Path) -> None:
        coremltools = import_coremltools()
        units = coremltools.ComputeUnit.CPU_ONLY  # others round to float16
        self.model = coremltools.models.MLModel(str(path), compute_units=units)
        self.names = [feature.name for feature in self.model.get_spec().description.output]

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 images (B, C, H, W) -> every output."""
        result = self.model.predict({"image": np.ascontiguousarray(x)})
        return [np.asarray(result[name]) for name in self.names]


class MilRunner(Runner):
    """The program of a package, computed operator by operator in PyTorch."""

    def __init__(self, path: Path) -> None:
        self.evaluate = MilEvaluator(MilProgram(path))

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 images (B, C, H, W) -> every output."""
        with torch.no_grad():
            return [y.numpy().copy() for y in self.evaluate(torch.from_numpy(np.ascontiguousarray(x)))]


class CoreMlTarget(Target):
    """``.mlpackage`` folders. It has no options."""

    name = "coreml"
    title = "Core ML"
    extra = "coreml"
    suffix = ".mlpackage"
    precisions: Sequence[str] = PRECISIONS
    packages: Sequence[str] = ("coremltools",)
    runtime = (
        "Core ML on the CPU"
        if _ON_MACOS
        else "its MIL program evaluated operator by operator in PyTorch; Core ML itself runs on macOS only"
    )
    timed = _ON_MACOS
    undivided = "Core ML decides on the device what its Neural Engine takes; Xcode's performance report tells it"

    def export(self, capture: Capture, path: Path, options: Mapping[str, Any]) -> None:
        """Write ``capture``; see `Target.export`."""
        check_options(self.name, options)
        import_coremltools()
        try:
            with hushed(logging.ERROR), redirect_stderr(io.StringIO()), torch.no_grad():  # it draws progress bars
                model = _in_eight_bits(capture) if capture.precision.name == "int8" else _converted(capture)
                model.save(str(path))
        except ExportError:
            raise
        except Exception as error:  # the converter raises many kinds
            raise ExportError(f"coremltools cannot convert the model: {first_cause(error)}") from error

    def load(self, path: Path, threads: int | None = None) -> CoreMlRunner | MilRunner:
        """The package in Core ML on macOS, elsewhere its program in PyTorch; neither lets one choose threads here."""
        return CoreMlRunner(path) if _ON_MACOS else MilRunner(path)

    def describe(self, path: Path) -> FileFacts:
        """What the program says of itself, read back from the package."""
        program = MilProgram(path)
        variables = {variable.name: variable for variable in program.variables()}
        return FileFacts(
            inputs=tuple(_info(variables[name]) for name in program.inputs),
            outputs=tuple(_info(variables[name]) for name in program.outputs),
            operators=dict(Counter(op.op_type for op in program.operations).most_common()),
            max_rank=max(len(variable.shape) for variable in variables.values()),
            extra={"minimum_deployment_target": program.minimum, "computed_in": dict(_computed_in(program))},
        )


def _converted(capture: Capture) -> Any:
    """The model of coremltools, in float."""
    coremltools, precision = import_coremltools(), capture.precision.name
    module = _Tuple(convertible(capture.arithmetic()))
    passes = coremltools.PassPipeline.DEFAULT
    passes.remove_passes({"common::fuse_elementwise_to_batchnorm"})  # its norms add an epsilon to a variance of one
    return coremltools.convert(
        torch.jit.trace(module, capture.example, check_trace=False),
        inputs=[coremltools.TensorType("image", capture.example.shape, dtype=np.float32)],
        outputs=_outputs(coremltools, len(module(capture.example))),
        convert_to="mlprogram",
        minimum_deployment_target=coremltools.target[MINIMUM[precision]],
        compute_precision=compute_precision(coremltools, precision, capture.example),
        skip_model_load=True,
        pass_pipeline=passes,
    )


def _in_eight_bits(capture: Capture) -> Any:
    """The model of coremltools in eight bits; what does not depend on the layers that stay in float is made once."""
    if _MADE not in capture.made:
        model = _converted(capture)
        program = _program(model)
        capture.made[_MADE] = model, program, ranges_of(program, capture.calibration())
    model, program, ranges = capture.made[_MADE]
    kept = {path for node in in_float(capture.program.graph, capture.precision) for path, _ in modules(node)[-1:]}
    return quantised(model, program, ranges, kept & layers(capture.module).keys())


_MADE = "coreml"


def _program(model: Any) -> MilProgram:
    """What a model that is not saved yet holds."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.mlpackage"
        model.save(str(path))
        return MilProgram(path)


def _computed_in(program: MilProgram) -> Counter[str]:
    """How many operations give each type of number."""
    return Counter(variable_type(variable) for operation in program.operations for variable in operation.outputs)


class _Tuple(nn.Module):
    """A module with its outputs in a tuple, whatever they were in."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.module(x)
        return (y,) if isinstance(y, Tensor) else tuple(y)


def _outputs(coremltools: Any, count: int) -> list[Any]:
    names = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
    return [coremltools.TensorType(name, dtype=np.float32) for name in names]


def _info(variable: Any) -> TensorInfo:
    kind = str(TYPES[variable_type(variable)]).removeprefix("torch.")
    return TensorInfo(variable.name, kind, tuple(int(side) for side in variable.shape))
