"""ONNX: written by torch's exporter from a `torch.export` graph, run by ONNX Runtime on the CPU.

Where ONNX Runtime has CUDA and PyTorch a GPU, files are run and compared on that, too, without TF32.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
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
from ..protocol import FileFacts, Placed, Runner, Target
from ..shapes import AXES, Axes


class OnnxRunner(Runner):
    """An ONNX file in ONNX Runtime.

    Args:
        path: the file.
        threads: of one operator; ONNX Runtime's choice by default.
        device: "cpu" or "cuda".
        profile: where to write what ran where and for how long, as the start of a file's name; None for nowhere.
    """

    def __init__(
        self, path: Path, threads: int | None = None, device: str = "cpu", profile: Path | None = None
    ) -> None:
        ort = require("onnxruntime", extra="onnx")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised as well
        if threads is not None:
            options.intra_op_num_threads = threads
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        self.device = device
        self.session = ort.InferenceSession(str(path), options, providers=_PROVIDERS[device])
        if _provider(device) not in self.session.get_providers():  # it goes on without one that does not load
            raise RuntimeError(f"ONNX Runtime cannot load its {_provider(device)}")
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


_PROVIDERS: dict[str, list[Any]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
}


def _provider(device: str) -> str:
    """What ONNX Runtime calls what computes on ``device``."""
    first = _PROVIDERS[device][0]
    return first if isinstance(first, str) else first[0]


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
    packages: Sequence[str] = ("onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu")
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

    def accelerator(self) -> str | None:
        """The GPU, where PyTorch has one and ONNX Runtime is built for it."""
        ort = require("onnxruntime", extra="onnx")
        if not torch.cuda.is_available() or _provider("cuda") not in ort.get_available_providers():
            return None
        return f"ONNX Runtime on CUDA ({torch.cuda.get_device_name()})"

    def load_accelerated(self, path: Path) -> OnnxRunner:
        """The file in ONNX Runtime on the GPU, with the libraries of CUDA that PyTorch has brought."""
        require("onnxruntime", extra="onnx").preload_dlls()
        return OnnxRunner(path, device="cuda")

    def placed(self, path: Path, images: np.ndarray) -> Placed:
        """What ran on the GPU; the rest is what ONNX Runtime has no kernel for there, and arithmetic on shapes."""
        with tempfile.TemporaryDirectory(prefix="mixzoo-") as folder:
            runner = OnnxRunner(path, device="cuda", profile=Path(folder) / "run")
            runner.outputs(images)
            events = json.loads(Path(runner.session.end_profiling()).read_text())
        return _placed(events, _provider("cuda"))

    def describe(self, path: Path) -> FileFacts:
        """What the file says of itself, after ONNX's checker and shape inference."""
        require("onnx", extra="onnx")
        from .onnx_facts import describe

        return describe(path)


def _placed(events: Sequence[Mapping[str, Any]], provider: str) -> Placed:
    """What ``provider`` ran by ONNX Runtime's profile."""
    ran = [event["args"] for event in events if event.get("cat") == "Node" and "provider" in event.get("args", {})]
    rest = Counter(str(node["op_name"]) for node in ran if node["provider"] != provider)
    return Placed(len(ran) - rest.total(), dict(rest.most_common()))


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
