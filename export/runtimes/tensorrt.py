"""TensorRT: an ``.engine`` built from an ONNX file that stays beside it, by ``tensorrt`` or else ``tensorrt_rtx``.

Both have one API. Without a GPU ``tensorrt_rtx`` builds ahead of time, for the GPUs of `AHEAD`; nothing can then load
the engine, let alone run it, and it is the ONNX file that is run and compared. So it is on a GPU of another kind than
it knows, such as the Hopper ones of data centres, which ``tensorrt`` alone serves.

Networks are strongly typed: what an operator computes in is what the ONNX file says, float32 (without TF32), float16
with islands of float32, or eight bits between QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...zoo.extras import available, missing, require
from ..capture import AXIS_INDEX, Capture
from ..errors import ExportError
from ..options import check_options
from ..precision import PRECISIONS
from ..protocol import FileFacts, Runner, Target
from ..shapes import Axes
from .onnx import OnnxRunner, OnnxTarget

AHEAD = ("SM80", "SM86", "SM89", "SM120")  # Ampere, Ada and Blackwell; Turing, SM75, has no float32 products
_LEAST = {"batch": 1, "height": 32, "width": 32}  # of open axes
_LAYERS = "Layers:\n"


class TensorRtRunner(Runner):
    """An engine on the GPU, with PyTorch's CUDA tensors as its buffers."""

    device = "cuda"

    def __init__(self, path: Path) -> None:
        trt = _package()
        logger = _logger(trt)
        self.runtime = trt.Runtime(logger)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise RuntimeError(f"TensorRT cannot load {path.name}: {logger.reason()}")
        self.context = self.engine.create_execution_context()
        self.logger = logger
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        given = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.input_name = given[0]
        self.output_names = [name for name in names if name not in given]
        self.stream = torch.cuda.Stream()

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 images (B, C, H, W) -> every output.

        Raises:
            RuntimeError: the engine does not take ``x``.
        """
        with torch.cuda.stream(self.stream):
            image = torch.from_numpy(np.ascontiguousarray(x)).cuda()
            if not self.context.set_input_shape(self.input_name, tuple(x.shape)):
                raise RuntimeError(self.logger.reason())
            self.context.set_tensor_address(self.input_name, image.data_ptr())
            outputs = [torch.empty(tuple(self.context.get_tensor_shape(n)), device="cuda") for n in self.output_names]
            for name, output in zip(self.output_names, outputs, strict=True):
                self.context.set_tensor_address(name, output.data_ptr())
            if not self.context.execute_async_v3(self.stream.cuda_stream):
                raise RuntimeError(self.logger.reason())
            self.stream.synchronize()
            return [output.cpu().numpy() for output in outputs]


class TensorRtTarget(Target):
    """``.engine`` files, each with its ``.onnx`` and with ``.layers.json``, what was built. It has no options."""

    name = "tensorrt"
    title = "TensorRT"
    extra = "tensorrt"
    suffix = ".engine"
    axes: Sequence[Axes] = OnnxTarget.axes
    precisions: Sequence[str] = PRECISIONS
    packages: Sequence[str] = ("tensorrt", "tensorrt-rtx", *OnnxTarget.packages)
    runtime = "TensorRT on the GPU"
    undivided = "an engine holds the whole graph: what TensorRT does not take is refused"
    source = "the ONNX file that the engine was built from, in ONNX Runtime on the CPU"

    def unavailable(self) -> str | None:
        """Which package is missing, with the command that installs it."""
        needs_onnx = missing("onnx", f"Exporting to {self.title}")
        if self.cannot_run() is None and available("tensorrt"):
            return needs_onnx
        return super().unavailable() or needs_onnx

    def cannot_run(self) -> str | None:
        """Whether PyTorch has a GPU that the installed package runs engines on."""
        if not torch.cuda.is_available():
            return "this machine has no NVIDIA GPU that PyTorch can use"
        return _unknown_gpu()

    def export(self, capture: Capture, path: Path, options: Mapping[str, Any]) -> None:
        """Write ``capture`` as ONNX, and build the engine from it; see `Target.export`."""
        check_options(self.name, options)
        onnx = path.with_suffix(".onnx")
        OnnxTarget(symmetric=True).export(capture, onnx, {})
        engine, layers = _build(onnx, capture)
        path.write_bytes(engine)
        _layers_path(path).write_text(json.dumps(layers, indent=1) + "\n")

    def load(self, path: Path, threads: int | None = None) -> TensorRtRunner:
        """The engine on the GPU, which has no threads to choose."""
        return TensorRtRunner(path)

    def load_source(self, path: Path, threads: int | None = None) -> OnnxRunner:
        """The ONNX file of the engine in ONNX Runtime."""
        return OnnxRunner(path.with_suffix(".onnx"), threads)

    def describe(self, path: Path) -> FileFacts:
        """Inputs and outputs of the ONNX file, and the engine's layers as its builder listed them."""
        onnx = OnnxTarget().describe(path.with_suffix(".onnx"))
        built = json.loads(_layers_path(path).read_text())
        text = "\n".join(built["layers"])
        return FileFacts(
            inputs=onnx.inputs,
            outputs=onnx.outputs,
            operators=dict(Counter(re.findall(r"LayerType: ([^,]+)", text)).most_common()),
            max_rank=max((dims.count(",") + 1 for dims in re.findall(r"Dimensions: \[([^\]]*)\]", text)), default=0),
            extra={
                "built_for": built["built_for"],
                "layer_precision": dict(Counter(re.findall(r"Datatype: (\w+)", text)).most_common()),
                **onnx.extra,
            },
        )


def _package() -> Any:
    """``tensorrt`` where it is installed and there is a GPU, which it needs; ``tensorrt_rtx`` otherwise."""
    plain = torch.cuda.is_available() and available("tensorrt")
    return require("tensorrt" if plain else "tensorrt_rtx", extra="tensorrt")


def _unknown_gpu() -> str | None:
    """Why this machine's GPU runs no engine of ``tensorrt_rtx``, where that is what is installed; None where one can.

    It has a list of the GPUs that it knows, and takes all that are newer; those in between are not among them.
    """
    if available("tensorrt") or not available("tensorrt_rtx"):
        return None
    major, minor = torch.cuda.get_device_capability()
    known = [int(name[2:]) for name in dir(_package().ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    here = 10 * major + minor
    if here in known or here > max(known):
        return None
    name = torch.cuda.get_device_name()
    return f"tensorrt_rtx has no kernels for {name}, of compute capability {major}.{minor}: pip install tensorrt"


def _layers_path(path: Path) -> Path:
    return path.with_suffix(".layers.json")


# building


def _build(onnx: Path, capture: Capture) -> tuple[bytes, dict[str, Any]]:
    """The engine, and what was built: for which GPUs, and its layers."""
    trt = _package()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, logger, onnx)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    built_for = _name_gpus(trt, config)
    if capture.axes:
        config.add_optimization_profile(_profile(builder, network, capture))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(f"TensorRT cannot build the engine: {logger.reason()}")
    return bytes(engine), {"built_for": built_for, "layers": logger.layers()}


def _parse(trt: Any, network: Any, logger: Any, onnx: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(onnx)):
        return
    error = parser.get_error(0)
    where = f"{error.node_operator()} ({error.node_name()})" if error.node_operator() else "the file"
    raise ExportError(f"TensorRT's parser does not take {where}: {_first_line(error.desc())}")


def _name_gpus(trt: Any, config: Any) -> list[str]:
    """Say which GPUs the engine is for: this machine's, or where it has none that runs engines those of `AHEAD`."""
    if TensorRtTarget().cannot_run() is None:
        return [torch.cuda.get_device_name()]
    config.num_compute_capabilities = len(AHEAD)
    for index, name in enumerate(AHEAD):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    return list(AHEAD)


def _profile(builder: Any, network: Any, capture: Capture) -> Any:
    """The range of the open axes: from `_LEAST` to the greatest side that is verified."""
    shape = tuple(capture.example.shape)
    least, greatest = list(shape), list(shape)
    for axis in capture.axes:
        index = AXIS_INDEX[axis]
        least[index] = min(_LEAST[axis], shape[index])
        greatest[index] = capture.greatest[axis]
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, tuple(least), shape, tuple(greatest))
    return profile


def _logger(trt: Any) -> Any:
    """Keeps what TensorRT says instead of printing it."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.said.append((severity, message))

        def reason(self) -> str:
            """The first error."""
            errors = [
                text for severity, text in self.said if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            ]
            return _first_line(errors[0]) if errors else "it does not say why"

        def layers(self) -> list[str]:
            """The engine's layers, a line each."""
            listed = [text for _, text in self.said if text.startswith(_LAYERS)]
            lines = listed[0].removeprefix(_LAYERS).splitlines() if listed else []
            return [line for line in lines if line.startswith("Name: ")]

    return Logger()


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it does not say why")[:300]
