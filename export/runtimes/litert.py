"""LiteRT, once TensorFlow Lite: ``.tflite`` converted by litert_torch, run by LiteRT's interpreter with XNNPACK.

Every axis is fixed: litert_torch 0.10 cannot lower a view whose shape follows from an open axis, and every classifier
has one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...zoo.extras import require
from ..capture import Capture, first_cause, quiet
from ..errors import ExportError
from ..options import check_options
from ..precision import PRECISIONS
from ..protocol import FileFacts, Runner, Target, TensorInfo
from ..resizing import interpolate
from ..rewriting import CAPTURED, Rewriting
from .litert_facts import DELEGATE, delegated
from .ranks import Ranks


class LiteRtRunner(Runner):
    """A ``.tflite`` file in LiteRT's interpreter.

    Args:
        path: the file.
        threads: that it may use; the interpreter's choice by default.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.interpreter = _interpreter(path, threads)
        self.input = self.interpreter.get_input_details()[0]["index"]
        self.output_indices = [output["index"] for output in _outputs(self.interpreter).values()]

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 images (B, C, H, W) -> every output."""
        self.interpreter.set_tensor(self.input, np.ascontiguousarray(x))
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(index) for index in self.output_indices]


class LiteRtTarget(Target):
    """``.tflite`` files. It has no options."""

    name = "litert"
    title = "LiteRT"
    extra = "litert"
    suffix = ".tflite"
    precisions: Sequence[str] = PRECISIONS
    packages: Sequence[str] = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer")
    runtime = "LiteRT with XNNPACK on the CPU"

    def export(self, capture: Capture, path: Path, options: Mapping[str, Any]) -> None:
        """Write ``capture``; see `Target.export`."""
        check_options(self.name, options)
        if self.name not in capture.made:
            capture.made[self.name] = _converted(capture, path)
        content: bytes = capture.made[self.name]
        if capture.precision.name != "fp32":
            from .litert_quantise import lowered

            try:
                content = lowered(content, capture)
            except ExportError:
                raise
            except Exception as error:  # the quantiser raises many kinds
                raise ExportError(f"ai-edge-quantizer cannot quantise the model: {first_cause(error)}") from error
        path.write_bytes(content)

    def load(self, path: Path, threads: int | None = None) -> LiteRtRunner:
        """The file in LiteRT's interpreter."""
        return LiteRtRunner(path, threads)

    def describe(self, path: Path) -> FileFacts:
        """What the file says of itself, and what XNNPACK takes of it on this machine."""
        interpreter = _interpreter(path)
        names = [node["op_name"] for node in interpreter._get_ops_details()]
        operators = Counter(name for name in names if name != DELEGATE)
        return FileFacts(
            inputs=(_info(interpreter.get_input_details()[0], "image"),),
            outputs=tuple(_info(details, name) for name, details in _outputs(interpreter).items()),
            operators=dict(operators.most_common()),
            max_rank=max(len(tensor["shape"]) for tensor in interpreter.get_tensor_details()),
            delegated=delegated(interpreter),
        )


def _split(x: Tensor, split_size: int | list[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Without what takes no parts from a tensor: of that litert_torch makes a list of operands, and fails."""
    whole = x.shape[dim] <= split_size if isinstance(split_size, int) else len(split_size) == 1
    return (x,) if whole else torch.split(x, split_size, dim)


def _chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    return (x,) if chunks == 1 else torch.chunk(x, chunks, dim)


def _eye(n: int, m: int | None = None, **kind: Any) -> Tensor:
    """By comparison: litert_torch leaves STABLEHLO_IOTA of torch.eye, which LiteRT does not have."""
    rows, columns = (torch.arange(side, device=kind.get("device")) for side in (n, n if m is None else m))
    return (rows[:, None] == columns).to(kind.get("dtype") or torch.get_default_dtype())


_PARTS: dict[Any, Any] = {
    **CAPTURED,
    F.interpolate: interpolate,  # litert_torch resizes by another rule where a factor is not whole
    torch.split: _split,
    Tensor.split: _split,
    torch.chunk: _chunk,
    Tensor.chunk: _chunk,
    torch.eye: _eye,
    Tensor.unfold: Ranks(6).unfold,
}


def _converted(capture: Capture, path: Path) -> bytes:
    """The model in float32; ``path`` is written on the way."""
    litert_torch = require("litert_torch", extra="litert")
    first: Exception | None = None
    for parts in (_PARTS, {**_PARTS, **Ranks(4).parts()}):  # its passes fail over some sums of five axes
        try:
            with quiet(), torch.no_grad(), Rewriting(parts):
                litert_torch.convert(capture.module, (capture.example,)).export(str(path))
            return path.read_bytes()
        except Exception as error:  # the converter raises many kinds
            first = first or error
    assert first is not None
    raise ExportError(f"litert_torch cannot convert the model: {first_cause(first)}") from first


def _interpreter(path: Path, threads: int | None = None) -> Any:
    require("ai_edge_litert", extra="litert")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def _outputs(interpreter: Any) -> dict[str, dict[str, Any]]:
    """Details of the outputs by name, "output_0" and so on, in the model's order."""
    found = interpreter.get_signature_runner().get_output_details()
    return dict(sorted(found.items(), key=lambda item: int(item[0].rpartition("_")[2])))


def _info(details: dict[str, Any], name: str) -> TensorInfo:
    return TensorInfo(name, np.dtype(details["dtype"]).name, tuple(int(side) for side in details["shape_signature"]))
