"""One model in every runtime: exported, each in a process of its own, then timed side by side in this one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..zoo.timing import Run, Timing, measure, paired_speedup, torch_threads
from .matrix import Cell, Limits, Plan, Settings, Store, fill
from .matrix.records import GREEN, RED, Record
from .numbers import outputs_of, relative_error
from .prepare import Prepared
from .protocol import Accelerated, Runner
from .report import read as read_manifest
from .shapes import Size, size_name
from .target import get_target
from .verify import Reference

if TYPE_CHECKING:
    from rich.table import Table

EAGER, DEPLOY = "PyTorch", "PyTorch deploy"
CPU = "cpu"
OK, FAILED, NOT_RUN, ABSENT = "ok", "failed", "not run here", "not tried"


@dataclass(frozen=True)
class Row:
    """A format.

    Attributes:
        format: a target, or a form of PyTorch.
        precision: of the file.
        device: what computes it, as PyTorch calls it. On another than the processor, images are copied there and
            outputs back within the time, and TF32 is not used.
        status: "ok", "failed", "not run here" (written, but its runtime does not run here) or "not tried".
        bytes: of the file with its companions, or of PyTorch's tensors.
        error: relative, against the model in PyTorch; of the source where the file is not run.
        ms: median of a call.
        p90: milliseconds that nine calls of ten do not exceed.
        images_s: images a second.
        times: how many times as fast as PyTorch on that device it is, by the median over turns taken side by side.
        reason: why it is not "ok".
    """

    format: str
    precision: str
    status: str = OK
    bytes: int | None = None
    error: float | None = None
    ms: float | None = None
    p90: float | None = None
    images_s: float | None = None
    times: float | None = None
    reason: str | None = None
    device: str = CPU

    @property
    def label(self) -> str:
        """What tells it from the other rows."""
        precision = "" if self.format in (EAGER, DEPLOY) else f" {self.precision}"
        return f"{self.format}{precision}{_on(self.device)}"


@dataclass(frozen=True)
class Shape:
    """What is timed: a batch of images of a size, on so many threads, in so many turns."""

    batch: int
    size: Size
    threads: int
    rounds: int = 20

    def __str__(self) -> str:
        return f"batch {self.batch}, {size_name(self.size)}, {self.threads} threads"


def export_all(
    plan: Plan, settings: Settings, folder: Path, threads: int, say: Callable[[str], None] = lambda text: None
) -> dict[Cell, Record]:
    """Write the files of ``plan`` into ``folder``/MODEL/TARGET_PRECISION, and give their records."""
    store = Store(folder / "benchmark.jsonl")
    limits = Limits(threads=threads)
    named: list[Sequence[Cell]] = [()]

    def watch(running: Sequence[Cell]) -> None:
        if running != named[0]:
            named[0] = running
            say(f"exporting {', '.join(map(str, running))}")

    fill(plan.cells, settings, store, limits, folder, watch=watch)
    return {cell: store.records[cell.key] for cell in plan.cells}


def benchmark(
    prepared: Prepared,
    records: Mapping[Cell, Record],
    absent: Mapping[Cell, str],
    folder: Path,
    shape: Shape,
    on_round: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Time the model in PyTorch and every file, in interleaved turns, on the processor and where there is one a GPU.

    Args:
        prepared: the model that the files were written from.
        records: what `export_all` gave.
        absent: cells that cannot be filled here, with the reasons.
        folder: where the files are.
        shape: what is timed.
        on_round: called after every turn of all.

    Returns:
        A row for each format and device: PyTorch's, then the files in the order of ``records``, then what is absent.
    """
    reference = Reference(prepared)
    images = torch.cat([reference.image(shape.size, i) for i in range(shape.batch)])
    with torch_threads(shape.threads):
        found: list[tuple[Row, Run | None]] = []
        for device in _devices():
            for name, module in ((EAGER, prepared.original), (DEPLOY, reference.deployed)):
                found.append(_form(name, module, device, prepared, images))
        for cell, record in records.items():
            found.extend(_file(cell, record, folder, images.numpy(), shape.threads))
        calls = {row.label: call for row, call in found if call}
        timings = measure(calls, rounds=shape.rounds, on_round=on_round)
    rows = [_timed(row, timings, shape.batch) for row, _ in found]
    return rows + [Row(c.target, c.precision, ABSENT, reason=reason) for c, reason in absent.items()]


def _devices() -> list[str]:
    """Where PyTorch is timed: what files run on is compared with PyTorch there."""
    return [CPU, "cuda"] if torch.cuda.is_available() else [CPU]


def _on(device: str) -> str:
    return "" if device == CPU else f" on {device}"


def _form(name: str, module: nn.Module, device: str, prepared: Prepared, images: torch.Tensor) -> tuple[Row, Run]:
    there = module if device == CPU else copy.deepcopy(module).to(device)

    def call() -> list[np.ndarray]:
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            return outputs_of(there, images.to(device))

    error = relative_error(call(), outputs_of(prepared.original, images))
    size = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    return Row(name, "fp32", bytes=size, error=error, device=device), call


def _file(
    cell: Cell, record: Record, folder: Path, images: np.ndarray, threads: int
) -> Iterator[tuple[Row, Run | None]]:
    """A row and its call for each device that the file runs on."""
    row = Row(cell.target, cell.precision)
    if record["status"] != GREEN:
        yield replace(row, status=FAILED if record["status"] == RED else ABSENT, reason=record["reason"]), None
        return
    row = replace(row, bytes=record["bytes"], error=record["error"])
    if record["runs"] != "yes":
        reason = record["not_run_because"] or f"run by {record['run_by']}"
        yield replace(row, status=NOT_RUN, reason=reason), None
        return
    place, target = folder / cell.model.replace(":", "_") / f"{cell.target}_{cell.precision}", get_target(cell.target)
    item = (read_manifest(place) or {}).get("artifacts", [{}])[0]
    path = place / item.get("file", "")
    yield _loaded(row, lambda: target.load(path, threads), images)
    if isinstance(target, Accelerated) and target.accelerator():
        error = (item.get("elsewhere") or {}).get("error")
        yield _loaded(replace(row, error=error), lambda: target.load_accelerated(path), images)


def _loaded(row: Row, load: Callable[[], Runner], images: np.ndarray) -> tuple[Row, Run | None]:
    try:
        runner = load()
        runner.outputs(images)
    except Exception as error:  # each runtime has its own
        return replace(row, status=FAILED, reason=f"it does not load beside the others: {error}"), None
    return replace(row, device=runner.device), lambda: runner.outputs(images)


def _timed(row: Row, timings: Mapping[str, Timing], batch: int) -> Row:
    timing = timings.get(row.label)
    if timing is None:
        return row
    return replace(
        row,
        ms=timing.median,
        p90=timing.p90,
        images_s=1000 * batch / timing.median,
        times=paired_speedup(timings[f"{EAGER}{_on(row.device)}"], timing),
    )


# what is shown


def record(rows: Sequence[Row], prepared: Prepared, shape: Shape, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for programs."""
    asked = {"model": prepared.name, "weights": prepared.weights, **asdict(shape)}
    return {**asked, "machine": dict(machine), "formats": [asdict(row) for row in rows]}


def table(rows: Sequence[Row], prepared: Prepared, shape: Shape, machine: Mapping[str, Any]) -> Table:
    """Everything, for a terminal."""
    from ..zoo.tables import new_table, number

    where = f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_1min']}"
    where += f", {machine['gpu']}" if machine.get("gpu") else ""
    notes = [f"{row.label}: {row.reason}" for row in rows if row.reason]
    found = new_table(
        ("format", "precision", "status"),
        ("MB", "error", "ms", "p90", "images/s", "as fast"),
        title=f"{prepared.name} ({prepared.weights}), {shape}",
        caption="\n".join([f"Medians of interleaved turns on {where}; as fast: times PyTorch's speed there.", *notes]),
    )
    for row in rows:
        numbers = (
            number(row.bytes / 1e6 if row.bytes else None, ".1f"),
            number(row.error, ".1e"),
            *(number(value, ".2f") for value in (row.ms, row.p90)),
            number(row.images_s, ".1f"),
            number(row.times, ".2f"),
        )
        found.add_row(f"{row.format}{_on(row.device)}", row.precision, row.status, *numbers)
    return found
