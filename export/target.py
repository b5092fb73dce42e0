"""The targets by name. A new one is a class that keeps `Target` and a line in `TARGETS`."""

from __future__ import annotations

from collections.abc import Sequence

from ..zoo.errors import UnknownNameError
from .protocol import FileFacts, Runner, Target, TensorInfo
from .runtimes.coreml import CoreMlTarget
from .runtimes.executorch import ExecuTorchTarget
from .runtimes.litert import LiteRtTarget
from .runtimes.ncnn import NcnnTarget
from .runtimes.onnx import OnnxTarget
from .runtimes.openvino import OpenVinoTarget
from .runtimes.tensorrt import TensorRtTarget

__all__ = ["TARGETS", "FileFacts", "Runner", "Target", "TensorInfo", "get_target", "get_targets"]

_ALL: tuple[Target, ...] = (
    OnnxTarget(),
    OpenVinoTarget(),
    LiteRtTarget(),
    ExecuTorchTarget(),
    NcnnTarget(),
    CoreMlTarget(),
    TensorRtTarget(),
)
TARGETS: dict[str, Target] = {target.name: target for target in _ALL}


def get_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        UnknownNameError: no such target; the message has near names.
    """
    if name not in TARGETS:
        raise UnknownNameError("export target", name, TARGETS, f"Targets: {', '.join(TARGETS)}; all means all.")
    return TARGETS[name]


def get_targets(names: str | Sequence[str]) -> list[Target]:
    """The targets called ``names`` ("onnx,..." or a list), each once; "all" is all of them.

    Raises:
        UnknownNameError: no such target.
    """
    listed = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    if "all" in listed:
        return list(TARGETS.values())
    return [get_target(name) for name in dict.fromkeys(listed)]
