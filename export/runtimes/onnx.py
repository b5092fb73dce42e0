"""ONNX: written by torch's exporter from a `torch.export` graph, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...zoo.extras import require
from ..capture import Capture, first_cause, quiet
from ..errors import ExportError
from ..half import in_half
from ..options import check_options
from ..precision import PRECISIONS
from ..protocol import FileFacts, Runner, Target
from ..shapes import AXES, Axes


class OnnxRunner(Runner):
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        path: the file.
        threads: of one operator; ONNX Runtime's choice by default.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        ort = require("onnxruntime", extra="onnx")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised as well
        if threads is not None:
            options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input_name = self.session.get_inputs()[0].name

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 images (B, C, H, W) -> every output.

        Raises:
            RuntimeError: ONNX Runtime cannot run the file on ``x``.
        """
        try:
            return [np.asarray(y) for y in self.session.run(None, {self.input_name: x})]
        except Exception as error:  # its kinds are not public
            raise RuntimeError(re.sub(r"^.*Status Message: (/\S+ )?", "", str(error), flags=re.DOTALL)) from error


class OnnxTarget(Target):
    """``.onnx`` files. Options: ``opset``, the version of the operator set (the exporter's default if None).

    Args:
        symmetric: whether activations in eight bits have their zero in the middle, as TensorRT wants them.
    """

    name = "onnx"
    title = "ONNX"
    extra = "onnx"
    suffix = ".onnx"
    axes: Sequence[Axes] = (AXES, ("batch",), ())
    packages: Sequence[str] = ("onnx", "onnxscript", "onnxruntime")
    precisions: Sequence[str] = PRECISIONS
    runtime = "ONNX Runtime on the CPU"
    undivided = "every node runs in ONNX Runtime's CPU provider"

    def __init__(self, symmetric: bool = False) -> None:
        self.symmetric = symmetric

    def export(self, capture: Capture, path: Path, options: Mapping[str, Any]) -> None:
        """Write ``capture``; see `Target.export`. Weights stay in the file unless they exceed 2 GB."""
        opset = _opset(options)
        require("onnxscript", extra="onnx")
        halves = capture.precision.name == "fp16"
        program = _program(in_half(capture) if halves else capture, opset)
        if capture.precision.name == "int8":
            _quantise(program, path, capture, self.symmetric)
        else:
            program.save(str(path))

    def load(self, path: Path, threads: int | None = None) -> OnnxRunner:
        """The file in ONNX Runtime."""
        return OnnxRunner(path, threads)

    def describe(self, path: Path) -> FileFacts:
        """What the file says of itself, after ONNX's checker and shape inference."""
        require("onnx", extra="onnx")
        from .onnx_facts import describe

        return describe(path)


def _program(capture: Capture, opset: int | None) -> Any:
    """The graph in ONNX, tidied; made once for all files of a capture.

    Raises:
        ExportError: the exporter cannot write it.
    """
    if _MADE in capture.made:
        return capture.made[_MADE]
    from .onnx_graph import tidy

    program = capture.program
    try:
        with quiet(), torch.no_grad():
            onnx_program = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False)
            assert onnx_program is not None
            onnx_program.model = tidy(onnx_program.model, capture.axes)
    except Exception as error:  # the exporter and onnxscript each raise many kinds
        raise ExportError(f"torch.onnx cannot write the model: {first_cause(error)}") from error
    capture.made[_MADE] = onnx_program
    return onnx_program


_MADE = "onnx"


def _quantise(program: Any, path: Path, capture: Capture, symmetric: bool) -> None:
    from .onnx_int8 import quantise

    try:
        quantise(program.model_proto, path, capture.precision, capture.calibration(), symmetric)
    except ExportError:
        raise
    except Exception as error:  # the quantiser raises many kinds
        raise ExportError(f"ONNX Runtime cannot quantise the model: {first_cause(error)}") from error


def _opset(options: Mapping[str, Any]) -> int | None:
    check_options("onnx", options, ["opset"])
    opset = options.get("opset")
    if opset is None or 18 <= opset <= _newest_opset():
        return opset
    raise ExportError(f"opset {opset} is not available: give one from 18 to {_newest_opset()}, or leave it out.")


def _newest_opset() -> int:
    return int(require("onnx", extra="onnx").defs.onnx_opset_version())
