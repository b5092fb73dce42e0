"""OpenVINO: ``.xml`` with its weights in ``.bin`` beside it, converted from a `torch.export` graph, run on the CPU.

The CPU plugin computes in bfloat16 where the processor has it, unless told otherwise; here it is told to compute in
float32 whatever is not in 8 bits.

An fp16 file is OpenVINO's own: weights in float16, and marks on what other devices, which compute in float16, must not.
On the CPU it computes in float32 from weights that are rounded, and that is all that is proved of it here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...zoo.errors import MixzooError
from ...zoo.extras import require
from ..capture import AXIS_INDEX, Capture, first_cause, quiet
from ..errors import ExportError
from ..options import check_options
from ..precision import PRECISIONS
from ..protocol import FileFacts, Runner, Target, TensorInfo
from ..shapes import AXES, Axes
from .signal_stack import kept_signal_stack

_TYPES = {"f32": "float32", "f16": "float16", "i8": "int8", "u8": "uint8", "i32": "int32", "i64": "int64"}


class OpenVinoRunner(Runner):
    """An OpenVINO file on the CPU.

    Args:
        path: the ``.xml`` file.
        threads: that it may use; OpenVINO's choice by default.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        openvino = require("openvino", extra="openvino")
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        with kept_signal_stack():
            self.model = openvino.Core().compile_model(str(path), "CPU", config)

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 images (B, C, H, W) -> every output."""
        result = self.model(np.ascontiguousarray(x))
        return [np.array(result[index]) for index in range(len(self.model.outputs))]


class OpenVinoTarget(Target):
    """``.xml`` and ``.bin`` files. It has no options."""

    name = "openvino"
    title = "OpenVINO"
    extra = "openvino"
    suffix = ".xml"
    axes: Sequence[Axes] = (AXES, ("batch",), ())
    packages: Sequence[str] = ("openvino", "nncf")
    precisions: Sequence[str] = PRECISIONS
    runtime = "OpenVINO on the CPU, in float32 where it is not in 8 bits"
    undivided = "OpenVINO compiles the whole graph for the CPU"

    def export(self, capture: Capture, path: Path, options: Mapping[str, Any]) -> None:
        """Write ``capture``; see `Target.export`."""
        check_options(self.name, options)
        openvino = require("openvino", extra=self.extra)
        model = _converted(openvino, capture)
        if capture.precision.name == "int8":
            model = _quantised(model, capture)
        try:
            with quiet():
                openvino.save_model(model, str(path), compress_to_fp16=capture.precision.name == "fp16")
        except Exception as error:  # of many kinds
            raise ExportError(f"OpenVINO cannot save the model: {first_cause(error)}") from error

    def load(self, path: Path, threads: int | None = None) -> OpenVinoRunner:
        """The file, compiled for the CPU."""
        return OpenVinoRunner(path, threads)

    def describe(self, path: Path) -> FileFacts:
        """What the files say of themselves."""
        model = require("openvino", extra=self.extra).Core().read_model(str(path))
        nodes = [node for node in model.get_ordered_ops() if node.get_type_name() not in _NOT_COUNTED]
        ranks = [output.get_partial_shape().rank for node in nodes for output in node.outputs()]
        return FileFacts(
            inputs=tuple(_info(port, "image") for port in model.inputs),
            outputs=tuple(_info(port, "output") for port in model.outputs),
            operators=dict(Counter(node.get_type_name() for node in nodes).most_common()),
            max_rank=max((rank.get_length() for rank in ranks if rank.is_static), default=0),
            unranked=sum(not rank.is_static for rank in ranks),
            extra=_marks(path),
        )


def _converted(openvino: Any, capture: Capture) -> Any:
    """The graph as a model; made once for all files of a capture."""
    if _MADE not in capture.made:
        from .openvino_graph import converted

        capture.made[_MADE] = converted(openvino, capture)
    return capture.made[_MADE]


_MADE = "openvino"


def _quantised(model: Any, capture: Capture) -> Any:
    from .openvino_int8 import quantise

    try:
        return quantise(model, capture.program, capture.precision, capture.calibration())
    except MixzooError:
        raise
    except Exception as error:  # NNCF raises many kinds
        raise ExportError(f"NNCF cannot quantise the model: {first_cause(error)}") from error


def _marks(path: Path) -> dict[str, Any]:
    """What a file whose weights are float16 says of arithmetic; nothing of others."""
    text = path.read_text()
    if 'name="decompression"' not in text:
        return {}
    return {"weights_in": "float16", "never_in_float16": text.count('name="DisablePrecisionConversion"')}


_NOT_COUNTED = ("Parameter", "Constant", "Result")


def _info(port: Any, name: str) -> TensorInfo:
    shape = port.get_partial_shape()
    names = sorted(port.get_names())
    sides = [d.get_length() if d.is_static else _AXIS_NAMES.get(i, f"axis_{i}") for i, d in enumerate(shape)]
    kind = port.get_element_type().get_type_name()
    return TensorInfo(names[0] if names else name, _TYPES.get(kind, kind), tuple(sides))


_AXIS_NAMES = {index: axis for axis, index in AXIS_INDEX.items()}
