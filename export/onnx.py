"""ONNX: written by torch's exporter from a `torch.export` graph, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..zoo.errors import UnknownNameError
from ..zoo.extras import available, require
from .errors import ExportError
from .onnx_graph import tidy
from .protocol import FileFacts
from .shapes import AXES, Axes

_DIMS = {"batch": 0, "height": 2, "width": 3}
_LOUD = ("torch.onnx", "torch.export", "torch._export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")


class OnnxRunner:
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

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.outputs(x)[0]

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 images (B, C, H, W) -> every output."""
        return [np.asarray(y) for y in self.session.run(None, {self.input_name: x})]


class OnnxTarget:
    """``.onnx`` files. Options: ``opset``, the version of the operator set (the exporter's default if None)."""

    name = "onnx"
    extra = "onnx"
    suffix = ".onnx"
    axes: Sequence[Axes] = (AXES, ("batch",), ())
    packages: Sequence[str] = ("onnx", "onnxscript", "onnxruntime")

    def unavailable(self) -> str | None:
        """Which packages are missing, with the command that installs them."""
        missing = [name for name in self.packages if not available(name)]
        if not missing:
            return None
        return f"Exporting to ONNX needs {' and '.join(missing)}: pip install 'mixzoo[{self.extra}]'"

    def export(self, model: nn.Module, example: torch.Tensor, axes: Axes, path: Path, options: dict[str, Any]) -> None:
        """Write ``model``; see `Target.export`. Weights stay in the file unless they exceed 2 GB."""
        opset = _opset(options)
        open_axes = {_DIMS[axis]: axis for axis in axes}
        try:
            with _quiet(), torch.no_grad():
                program = torch.onnx.export(
                    model,
                    (example,),
                    dynamo=True,
                    dynamic_shapes=(open_axes,) if open_axes else None,
                    opset_version=opset,
                    input_names=["image"],
                    verbose=False,
                )
                assert program is not None
                program.model = tidy(program.model)
                program.save(str(path))
        except Exception as error:  # torch.export, the exporter and onnxscript each raise many kinds
            raise ExportError(_reason(error)) from error

    def load(self, path: Path) -> OnnxRunner:
        """The file in ONNX Runtime."""
        return OnnxRunner(path)

    def describe(self, path: Path) -> FileFacts:
        """What the file says of itself, after ONNX's checker and shape inference."""
        from .onnx_facts import describe

        return describe(path)


def _opset(options: dict[str, Any]) -> int | None:
    for option in options:
        if option != "opset":
            raise UnknownNameError("option of the onnx target", option, ["opset"], "It takes opset.")
    opset = options.get("opset")
    if opset is None or 18 <= opset <= _newest_opset():
        return opset
    raise ExportError(f"opset {opset} is not available: give one from 18 to {_newest_opset()}, or leave it out.")


def _newest_opset() -> int:
    return int(require("onnx", extra="onnx").defs.onnx_opset_version())


def _reason(error: BaseException) -> str:
    """The first sentence of the deepest cause: the exporter wraps what happened in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}"[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter and its libraries print and log on success."""
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
