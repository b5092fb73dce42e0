"""What an export target is: a runtime that a model can be written for, and that can run what was written.

`Runner` and `Target` are what a runtime's classes derive from; what most of them have alike is said here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..zoo.extras import missing
from .capture import Capture
from .shapes import Axes


class Runner(Protocol):
    """A written file, loaded in its runtime.

    Attributes:
        device: what it computes on, as PyTorch calls it: its speed is compared with PyTorch's there.
    """

    device: str = "cpu"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32 images (B, C, H, W) -> the first output."""
        return self.outputs(x)[0]

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 images (B, C, H, W) -> every output, in the model's order."""
        ...


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a file; a dynamic axis is given by its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Delegated:
    """How much of a file the runtime's accelerated partition takes; the rest runs in plain kernels.

    Attributes:
        to: the partition, such as "XNNPACK".
        nodes: in it.
        parts: how many pieces those are in; every border between pieces costs.
        rest: operators outside of it with their counts, most frequent first.
        macs, rest_macs: multiply-accumulates in it and outside, of one call with the file's shape, or its greatest one.
    """

    to: str
    nodes: int
    parts: int
    rest: dict[str, int]
    macs: int
    rest_macs: int

    @property
    def share(self) -> float:
        """Of all nodes, between 0 and 1."""
        total = self.nodes + sum(self.rest.values())
        return self.nodes / total if total else 0.0

    @property
    def macs_share(self) -> float | None:
        """Of all multiply-accumulates, between 0 and 1; None where there are none."""
        total = self.macs + self.rest_macs
        return self.macs / total if total else None


@dataclass(frozen=True)
class FileFacts:
    """What a written file says of itself, read back from disk.

    Attributes:
        inputs, outputs: its tensors.
        operators: how many nodes of each operator it has, most frequent first.
        max_rank: number of axes of the greatest tensor, intermediate ones included.
        unranked: tensors whose number of axes is not known before it runs.
        delegated: what its accelerated partition takes; None where the runtime has none or does not tell.
        extra: what only this format has, such as ONNX's opset.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: dict[str, int]
    max_rank: int
    unranked: int = 0
    delegated: Delegated | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Target(Protocol):
    """One runtime.

    Attributes:
        name: as in ``--to``.
        title: the runtime's own name.
        extra: the extra of mixzoo that installs what it needs.
        suffix: of the file or folder that it writes, with the dot.
        axes: the sets of axes that it can leave open, widest first, the empty one last.
        batched: whether a file takes a batch; where not, one file serves every batch, image by image.
        precisions: that it writes, of `mixzoo.export.precision.PRECISIONS`.
        refused: why it does not write the others, with the remedy, where there is more to say than that.
        packages: distributions whose versions belong in a manifest.
        runtime: what runs a file here, in words.
        timed: whether that is the runtime itself, so that its speed says something.
        undivided: why its files tell of no accelerated partition; empty where they do.
    """

    name: str
    title: str
    extra: str
    suffix: str
    axes: Sequence[Axes] = ((),)
    batched: bool = True
    precisions: Sequence[str] = ("fp32",)
    refused: Mapping[str, str] = {}
    packages: Sequence[str]
    runtime: str
    timed: bool = True
    undivided: str = ""

    def unavailable(self) -> str | None:
        """Why this machine cannot write or run it, in one sentence with the remedy; None where it can."""
        return missing(self.extra, f"Exporting to {self.title}")

    def export(self, capture: Capture, path: Path, options: Mapping[str, Any]) -> None:
        """Write a model.

        Args:
            capture: the model, an example of its input, the axes to leave open, one set of `axes`, and the precision
                of the file, one of `precisions`.
            path: the file or folder to write; companions such as weight files go beside it, under its name with another
                suffix.
            options: of this target; an unknown one is an error.

        Raises:
            ExportError: it cannot be written, or not with these axes open.
        """
        ...

    def load(self, path: Path, threads: int | None = None) -> Runner:
        """The file at ``path`` in its runtime, on ``threads`` threads where it lets one choose; its own by default."""
        ...

    def describe(self, path: Path) -> FileFacts:
        """What the file at ``path`` holds."""
        ...


@runtime_checkable
class BuiltAhead(Protocol):
    """What a target has that can write files for other machines, which this one cannot run.

    Where it cannot, what the file was made from is run and compared in its place. That proves nothing of the file,
    which is never called verified.

    Attributes:
        source: what is run in its place, and by what, in words.
    """

    source: str

    def cannot_run(self) -> str | None:
        """Why this machine cannot run the files, in a few words; None where it can."""
        ...

    def load_source(self, path: Path, threads: int | None = None) -> Runner:
        """What the file at ``path`` was made from, in its own runtime."""
        ...


@dataclass(frozen=True)
class Placed:
    """What of a file an accelerator computes.

    Attributes:
        nodes: that ran on it.
        rest: operators that ran on the processor with their counts, most frequent first.
    """

    nodes: int
    rest: dict[str, int]


@runtime_checkable
class Accelerated(Protocol):
    """What a target has whose runtime computes one file on the processor and, where there is one, on an accelerator.

    Where there is one, the file is run and compared on both.
    """

    def accelerator(self) -> str | None:
        """What runs files beside the processor here, in words; None where nothing does."""
        ...

    def load_accelerated(self, path: Path) -> Runner:
        """The file at ``path`` on the accelerator."""
        ...

    def placed(self, path: Path, images: np.ndarray) -> Placed:
        """What the accelerator computes when the file at ``path`` is run on ``images``."""
        ...


def not_run_because(target: Target) -> str | None:
    """Why files of ``target`` are written, but not run here; None where they are run."""
    return target.cannot_run() if isinstance(target, BuiltAhead) else None
