"""ExecuTorch: ``.pte`` lowered to XNNPACK from a `torch.export` graph, run by ExecuTorch's Python runtime.

Memory is planned before it runs, so that an open axis has a greatest side, which is the greatest it is verified at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...zoo.extras import require
from ..capture import AXIS_INDEX, Capture, first_cause, quiet
from ..errors import ExportError
from ..half import in_half
from ..options import check_options
from ..precision import PRECISIONS
from ..protocol import FileFacts, Runner, Target
from ..shapes import AXES, Axes
from .executorch_constants import exported, folded
from .executorch_eight import without_joined_tables
from .executorch_orders import in_order
from .executorch_parts import in_parts
from .executorch_passes import light_passes


class ExecuTorchRunner(Runner):
    """A ``.pte`` file in ExecuTorch's runtime; its thread pool has as many threads as the machine has cores."""

    def __init__(self, path: Path) -> None:
        runtime = require("executorch.runtime", extra="executorch")
        self.program = runtime.Runtime.get().load_program(path)  # the method is gone when its program is
        self.method = self.program.load_method("forward")

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 images (B, C, H, W) -> every output."""
        outputs = self.method.execute([torch.from_numpy(np.ascontiguousarray(x))])
        return [output.numpy().copy() for output in outputs]  # the runtime writes the next ones over them


class ExecuTorchTarget(Target):
    """``.pte`` files for the XNNPACK backend. It has no options."""

    name = "executorch"
    title = "ExecuTorch"
    extra = "executorch"
    suffix = ".pte"
    axes: Sequence[Axes] = (AXES, ())
    precisions: Sequence[str] = PRECISIONS
    packages: Sequence[str] = ("executorch", "torchao")
    runtime = "ExecuTorch with XNNPACK on the CPU"

    def export(self, capture: Capture, path: Path, options: Mapping[str, Any]) -> None:
        """Write ``capture``; see `Target.export`."""
        check_options(self.name, options)
        require("executorch", extra=self.extra)
        try:
            with quiet(), torch.no_grad(), flatc(), light_passes():
                path.write_bytes(_lowered(capture))
        except ExportError:
            raise
        except Exception as error:  # the compiler raises many kinds
            raise ExportError(f"ExecuTorch cannot lower the model: {first_cause(error)}") from error

    def load(self, path: Path, threads: int | None = None) -> ExecuTorchRunner:
        """The file in ExecuTorch's runtime, whose number of threads cannot be chosen from Python."""
        return ExecuTorchRunner(path)

    def describe(self, path: Path) -> FileFacts:
        """What the file says of itself: its kernels, and the nodes in its XNNPACK parts."""
        require("executorch", extra=self.extra)
        from .executorch_facts import describe

        with flatc():
            return describe(path, GREATEST)


def _lowered(capture: Capture) -> bytes:
    """The contents of the file."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    program = in_parts(_graph(capture), slices=capture.precision.name != "int8")
    lowered = to_edge_transform_and_lower(
        in_order(_one_copy(without_joined_tables(program))),
        partitioner=[XnnpackPartitioner()],
        # its check of types asks of what is split how long the first part is: that makes an open batch a constant
        compile_config=EdgeCompileConfig(_check_ir_validity=not capture.axes),
        constant_methods=_bounds(capture),
    )
    _check_open(lowered.exported_program(), capture)
    return bytes(lowered.to_executorch().buffer)


def _graph(capture: Capture) -> torch.export.ExportedProgram:
    """The captured graph in its precision."""
    if capture.precision.name == "int8":
        from .executorch_quantise import quantised

        return quantised(capture)
    half = capture.precision.name == "fp16"
    return exported(folded(in_half(capture) if half else capture), capture)


def _one_copy(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """``program``, with every use of a tensor that has a copy moved to the copy.

    ExecuTorch drops copies inside of an XNNPACK part; where a tensor and its copy both leave the part, one value would
    have to be two of its outputs, which it refuses: https://github.com/pytorch/executorch/issues/19152.
    """
    for copy in program.graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default):
        source = copy.args[0]
        if copy.meta["val"].is_contiguous() or copy.meta["val"].stride() == source.meta["val"].stride():
            source.append(copy)
            source.replace_all_uses_with(copy, lambda user, copy=copy: user is not copy and user.op != "output")
    program.graph_module.recompile()
    return program


def _check_open(program: torch.export.ExportedProgram, capture: Capture) -> None:
    """See that lowering left open what the captured graph has open."""
    image = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    baked = [axis for axis in capture.axes if isinstance(image.meta["val"].shape[AXIS_INDEX[axis]], int)]
    if baked:
        raise ExportError(f"ExecuTorch took {' and '.join(baked)} for constant")


def _bounds(capture: Capture) -> dict[str, int] | None:
    """What the file says of its open axes when it is asked: methods ``greatest_batch`` and so on, without arguments."""
    return {f"{GREATEST}{axis}": side for axis, side in capture.greatest.items()} or None


GREATEST = "greatest_"


@contextmanager
def flatc() -> Iterator[None]:
    """Let ExecuTorch find the compiler of its file format, which it has but looks for on the PATH."""
    if _FLATC in os.environ or not (own := files("executorch") / "data" / "bin" / "flatc").is_file():
        yield
        return
    os.environ[_FLATC] = str(own)
    try:
        yield
    finally:
        del os.environ[_FLATC]


_FLATC = "FLATC_EXECUTABLE"
