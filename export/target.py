"""The targets by name. A new one is a class that keeps `Target` and a line in `TARGETS`."""

from __future__ import annotations

from collections.abc import Sequence

from ..zoo.errors import MissingExtraError, UnknownNameError
from .onnx import OnnxTarget
from .protocol import FileFacts, Runner, Target, TensorInfo

__all__ = ["TARGETS", "FileFacts", "Runner", "Target", "TensorInfo", "get_target", "get_targets"]

TARGETS: dict[str, Target] = {target.name: target for target in (OnnxTarget(),)}


def get_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        UnknownNameError: no such target; the message has near names.
    """
    if name not in TARGETS:
        raise UnknownNameError("export target", name, TARGETS, f"Targets: {', '.join(TARGETS)}.")
    return TARGETS[name]


def get_targets(names: str | Sequence[str]) -> list[Target]:
    """The targets called ``names`` ("onnx,..." or a list), each once, all of them able to work here.

    Raises:
        UnknownNameError: no such target.
        MissingExtraError: what one of them needs is not installed.
    """
    listed = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    targets = [get_target(name) for name in dict.fromkeys(listed)]
    for target in targets:
        if reason := target.unavailable():
            raise MissingExtraError(reason)
    return targets
