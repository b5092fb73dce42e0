"""The benchmark: every model in every form, interleaved with its baseline, in rows that say what was measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..zoo.errors import MixzooError, UnknownNameError
from ..zoo.registry import get_variant
from ..zoo.timing import Timing, measure, paired_speedup, speedup, torch_threads
from . import subjects
from .forms import Form, Subject, example, get_form
from .macs import count_macs
from .memory import peak_memory

Step = Callable[[str], object]


class SettingsError(MixzooError, ValueError):
    """A benchmark that cannot be taken as asked."""


@dataclass(frozen=True)
class Settings:
    """What to measure, and how.

    Attributes:
        forms: names of forms, see `bench.forms`.
        threads: of torch and of ONNX Runtime.
        batch: images a call.
        size: (height, width); each model's own where None.
        against: a baseline ("timm"), or None to compare with the first form.
        rounds: interleaved turns of every candidate.
        memory: measure peak memory too, in a process for every candidate.
    """

    forms: tuple[str, ...] = ("eager", "deploy")
    threads: int = 2
    batch: int = 1
    size: tuple[int, int] | None = None
    against: str | None = None
    rounds: int = 30
    memory: bool = True

    def __post_init__(self) -> None:
        for form in self.forms:
            get_form(form)
        if self.against not in (None, *subjects.AGAINST):
            raise UnknownNameError("baseline", self.against, subjects.AGAINST, "Baselines: timm.")
        if min(self.threads, self.batch, self.rounds) < 1 or not self.forms:
            raise SettingsError("A benchmark needs at least one form, and threads, batch and rounds of 1 or more.")


@dataclass(frozen=True)
class Row:
    """One candidate of one model. Figures are None where ``reason`` says why there are none.

    Attributes:
        model: paper's name.
        source: "mixzoo" or "timm".
        form: name of the form.
        batch, height, width, threads: as measured.
        median_ms, p90_ms: milliseconds a call.
        throughput: images a second at the median.
        peak_memory_mb: MiB to hold and run it, see `bench.memory`.
        calls: number of timed calls.
        baseline: "<source> <form>" that the ratios refer to.
        speedup: how many times faster than the baseline, by medians.
        paired_speedup: the same by the median of the ratios within each round.
        error: greatest difference of the outputs, relative.
        compared: what ``error`` was taken from.
        macs_g: multiply-accumulates of one image, 1e9, counted.
        params_m: learned parameters, 1e6.
        top1: published ImageNet-1k top-1 accuracy, %.
        reason: why it was not timed.
        failed: whether that is a failure (it crashed, or its outputs are wrong), not something this machine lacks.
    """

    model: str
    source: str
    form: str
    batch: int
    height: int
    width: int
    threads: int
    median_ms: float | None = None
    p90_ms: float | None = None
    throughput: float | None = None
    peak_memory_mb: float | None = None
    calls: int = 0
    baseline: str | None = None
    speedup: float | None = None
    paired_speedup: float | None = None
    error: float | None = None
    compared: str | None = None
    macs_g: float | None = None
    params_m: float | None = None
    top1: float | None = None
    reason: str | None = None
    failed: bool = False

    @property
    def label(self) -> str:
        return f"{self.source} {self.form}"


@dataclass
class _Candidate:
    """A row in the making."""

    row: Row
    form: Form
    subject: Subject
    run: Callable[[], torch.Tensor] | None = None

    def drop(self, reason: str, failed: bool) -> None:
        self.row, self.run = replace(self.row, reason=reason, failed=failed), None


def bench(
    models: Sequence[str],
    settings: Settings,
    checkpoint: Path | None = None,
    on_step: Step = lambda text: None,
) -> Iterator[list[Row]]:
    """Measure ``models`` one after the other and yield the rows of each as soon as they are there.

    Args:
        models: paper's names, or timm-style names of ours.
        settings: what to measure.
        checkpoint: weights of the model (one model only); filled weights where None, timm's where compared with timm.
        on_step: told what is being done, for a progress display.

    Raises:
        UnknownModelError: no such model.
        SettingsError: settings that do not go together.
    """
    variants = [get_variant(name) for name in models]
    if checkpoint and (len(variants) > 1 or settings.against):
        raise SettingsError("A checkpoint goes with one model and no baseline: drop the other models or the baseline.")
    with torch_threads(settings.threads):
        for variant in variants:
            with tempfile.TemporaryDirectory(prefix="mixzoo-bench-") as folder:
                yield _bench_one(variant.name, settings, checkpoint, Path(folder), on_step)


def count_steps(models: Sequence[str], settings: Settings) -> int:
    """How often `bench` calls ``on_step`` at most."""
    candidates = len(settings.forms) + (2 if settings.against else 0)
    return len(models) * (candidates * (2 if settings.memory else 1) + settings.rounds)


def _bench_one(name: str, settings: Settings, checkpoint: Path | None, folder: Path, on_step: Step) -> list[Row]:
    variant = get_variant(name)
    height, width = settings.size or (variant.resolution, variant.resolution)
    x = example(settings.batch, 3, height, width)
    candidates = _candidates(name, settings, checkpoint, folder, x)
    wanted: dict[str, torch.Tensor] = {}
    for candidate in candidates:
        on_step(f"{name}: building {candidate.row.label}")
        _build(candidate, x, settings.threads, wanted)
    timings = measure(
        {c.row.label: c.run for c in candidates if c.run},
        rounds=settings.rounds,
        on_round=lambda: on_step(f"{name}: timing"),
    )
    if settings.memory:
        for candidate in (c for c in candidates if c.run):
            on_step(f"{name}: memory of {candidate.row.label}")
            _measure_memory(candidate, x, settings.threads)
    return [_finish(c.row, timings, candidates) for c in candidates]


def _candidates(
    name: str, settings: Settings, checkpoint: Path | None, folder: Path, x: torch.Tensor
) -> list[_Candidate]:
    """The baseline's forms first, then the model's."""
    batch, _, height, width = x.shape
    blank = Row(name, "mixzoo", "", batch, height, width, settings.threads)
    missing = subjects.no_baseline(name) if settings.against else None
    compare = bool(settings.against) and not missing
    ours = subjects.ours(name, checkpoint, compare, folder)
    facts = _facts(name, ours, height, width)
    found = [_Candidate(replace(blank, form=f, **facts), get_form(f), ours) for f in settings.forms]
    if settings.against:
        forms = ["eager"] + [f for f in settings.forms if f == "onnxruntime"]
        theirs = subjects.timms(name, folder)
        known = {} if missing else _facts(name, theirs, height, width)
        blank = replace(blank, source=settings.against, reason=missing, **known)
        found = [_Candidate(replace(blank, form=f), get_form(f), theirs) for f in forms] + found
    return found


def _facts(name: str, subject: Subject, height: int, width: int) -> dict[str, Any]:
    model, variant = subject.make(), get_variant(name)
    return {
        "macs_g": round(count_macs(model, 1, 3, height, width) / 1e9, 4),
        "params_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 3),
        "top1": variant.top1,
    }


def _build(candidate: _Candidate, x: torch.Tensor, threads: int, wanted: dict[str, torch.Tensor]) -> None:
    """Make the candidate ready to run, or note why it cannot.

    ``wanted`` holds the outputs that candidates of a source must have; the first one of a source adds its own.
    """
    reason = candidate.row.reason or candidate.form.unavailable()
    if reason:
        candidate.drop(reason, failed=False)
        return
    try:
        candidate.run = candidate.form.build(candidate.subject, x, threads)
        outputs = candidate.run().clone()
    except Exception as error:  # whatever a runtime raises is that form's reason, and the others still run
        candidate.drop(first_line(error), failed=True)
        return
    off, compared = _compare(candidate.row, x, outputs, wanted)
    candidate.row = replace(candidate.row, error=off, compared=compared)
    if off is None or off <= subjects.AGREES:
        wanted.setdefault(candidate.row.source, outputs)
    else:  # also where it is nan
        candidate.drop(f"its {compared} differ by {off:.1e} relative, so it was not timed", failed=True)


def _compare(
    row: Row, x: torch.Tensor, outputs: torch.Tensor, wanted: dict[str, torch.Tensor]
) -> tuple[float | None, str | None]:
    """(relative error, what was compared) against the first form of the same source, else against the baseline."""
    if row.source in wanted:
        return subjects.relative_error(outputs, wanted[row.source]), f"logits from those of the first {row.source} form"
    if not wanted:
        return None, None
    error = subjects.relative_error(outputs, next(iter(wanted.values())))
    if error <= subjects.AGREES:
        return error, "logits from timm's"
    return subjects.feature_difference_from_timm(row.model, x), "last maps from timm's (its head is another one)"


def _measure_memory(candidate: _Candidate, x: torch.Tensor, threads: int) -> None:
    peak = peak_memory(partial(_rebuild, candidate.form.name, candidate.subject, _shape(x), threads))
    if peak is not None:
        candidate.row = replace(candidate.row, peak_memory_mb=round(peak / 2**20, 1))


def _shape(x: torch.Tensor) -> tuple[int, int, int, int]:
    batch, channels, height, width = x.shape
    return batch, channels, height, width


def _rebuild(form: str, subject: Subject, shape: tuple[int, int, int, int], threads: int) -> Callable[[], torch.Tensor]:
    torch.set_num_threads(threads)
    return get_form(form).build(subject, example(*shape), threads)


def _finish(row: Row, timings: dict[str, Timing], candidates: list[_Candidate]) -> Row:
    timing = timings.get(row.label)
    if timing is None:
        return row
    baseline = _baseline(row, [c.row.label for c in candidates if c.row.label in timings])
    return replace(
        row,
        median_ms=round(timing.median, 4),
        p90_ms=round(timing.p90, 4),
        throughput=round(1000 * row.batch / timing.median, 2),
        calls=len(timing.calls),
        baseline=baseline,
        speedup=round(speedup(timings[baseline], timing), 4),
        paired_speedup=round(paired_speedup(timings[baseline], timing), 4),
    )


def _baseline(row: Row, labels: list[str]) -> str:
    """The label that ``row`` is compared with: the same runtime of the other source, else the first candidate."""
    other = [label for label in labels if not label.startswith(row.source) and label.endswith(" onnxruntime")]
    return other[0] if row.form == "onnxruntime" and row.source == "mixzoo" and other else labels[0]


def first_line(error: BaseException) -> str:
    """One line that tells what ``error`` was."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
