"""What the demo shows in the end: a picture of predictions on real images, and a short report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..export import Report
from ..export.prepare import size_of
from ..zoo.extras import require
from ..zoo.files import atomic_path, atomic_write
from ..zoo.timing import Timing, speedup
from ..zoo.trained import RECORD
from .engine import TrainResult
from .logs import EPOCHS, STEPS
from .models import WEIGHTS
from .pixels import Pixels

PICTURE, REPORT, IMAGES = "predictions.png", "report.md", "images"
ROWS, COLUMNS = 5, 10


@dataclass(frozen=True)
class FormResult:
    """One way to run the trained model, on all test images.

    Attributes:
        name: for readers.
        logits: (N, classes).
        labels: (N,), the truth.
        error: greatest difference of the logits from plain PyTorch's, relative.
        differing: number of images that it puts into another class than plain PyTorch.
        timing: one image at a time; None before the benchmark.
    """

    name: str
    logits: Tensor
    labels: Tensor
    error: float = 0.0
    differing: int = 0
    timing: Timing | None = None

    @property
    def correct(self) -> int:
        return int((self.logits.argmax(1) == self.labels).sum())

    @property
    def accuracy(self) -> float:
        """Share of the test images that it gets right."""
        return self.correct / len(self.labels)

    def score(self) -> str:
        return f"{self.accuracy:.2%} ({self.correct} of {len(self.labels)})"

    def speed(self, baseline: FormResult) -> str:
        """Its latency, and how it compares with ``baseline``; both must be timed."""
        median, p90, times = self.speed_cells(baseline)
        return f"median {median} ms, p90 {p90} ms, {times} times as fast as {baseline.name}"

    def speed_cells(self, baseline: FormResult) -> tuple[str, str, str]:
        """(median ms, p90 ms, times as fast) as text."""
        if self.timing is None or baseline.timing is None:
            raise ValueError("the form was not timed")
        return f"{self.timing.median:.2f}", f"{self.timing.p90:.2f}", f"{speedup(baseline.timing, self.timing):.2f}"


@dataclass(frozen=True)
class Outcome:
    """All that a demo found.

    Attributes:
        result: of the training.
        report: of the export.
        forms: plain PyTorch first, then the deploy form and ONNX Runtime; all timed.
        seconds: per step, in order.
        machine: see `mixzoo.zoo.machine`.
        threads: of the benchmark.
    """

    result: TrainResult
    report: Report
    forms: tuple[FormResult, ...]
    seconds: Mapping[str, float]
    machine: Mapping[str, Any]
    threads: int


def write_picture(path: Path, data: Pixels, form: FormResult) -> Path:
    """Draw test images with what ``form`` says of them, its mistakes first, as a PNG."""
    require("matplotlib", extra="train")
    from matplotlib.figure import Figure

    confidence, predicted = form.logits.softmax(1).max(1)
    wrong = predicted != form.labels
    order = torch.argsort(wrong.int(), descending=True, stable=True)[: ROWS * COLUMNS].tolist()
    figure = Figure(figsize=(1.15 * COLUMNS, 1.45 * ROWS + 0.6), layout="constrained")
    shown = min(int(wrong.sum()), len(order))
    figure.suptitle(f"{form.name}: {form.score()} test images right. Mistakes first, in red: {shown}.", fontsize=12)
    for axis in (axes := figure.subplots(ROWS, COLUMNS).ravel()):
        axis.set_axis_off()
    for axis, index in zip(axes, order, strict=False):
        axis.imshow(data.test.images[index, 0].numpy(), cmap="gray", vmin=0, vmax=1)
        said, truth = data.classes[predicted[index]], data.classes[form.labels[index]]
        colour = "#b00020" if wrong[index] else "#1b5e20"
        axis.set_title(f"{said} ({confidence[index]:.0%})\ntrue {truth}", color=colour, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, metadata={"Software": None})
    return path


def write_report(path: Path, outcome: Outcome) -> Path:
    """Write the report as Markdown."""
    return atomic_write(path, "\n".join(_report(path.parent, outcome)) + "\n")


def _report(folder: Path, outcome: Outcome) -> list[str]:
    eager = outcome.forms[0]
    lines = [
        "# A small SHViT on real handwritten digits",
        "",
        _training(outcome.result),
        "",
        f"**Test accuracy {eager.score()}.** {_agreement(outcome)}",
        "",
    ]
    lines += _table(
        (
            "form",
            "test accuracy",
            "predictions unlike PyTorch's",
            "logits differ by",
            "median ms",
            "p90 ms",
            "times as fast",
        ),
        ((f.name, f.score(), str(f.differing), f"{f.error:.1e}", *f.speed_cells(eager)) for f in outcome.forms),
    )
    lines += ["", _conditions(outcome), "", f"![predictions]({PICTURE})", "", *_files(folder, outcome), ""]
    lines += _table(("step", "seconds"), ((title, f"{s:.1f}") for title, s in outcome.seconds.items()))
    return lines


def _training(result: TrainResult) -> str:
    recipe, parameters = result.recipe, sum(p.numel() for p in result.model.parameters())
    return (
        f"`{recipe.model.name}` with {_options(recipe.model.kwargs)}: {parameters / 1e6:.2f} M parameters, trained "
        f"from {recipe.model.checkpoint or 'nothing'} on {len(result.data.train)} images of {recipe.data.size} x "
        f"{recipe.data.size} pixels for {recipe.schedule.epochs} epochs in {result.seconds:.0f} s, seed {recipe.seed}. "
        f"Tested on {len(result.data.test)} other images of the same set (scikit-learn's digits: 8 x 8 pixels), drawn "
        "at random within each class: the same 13 people wrote both parts."
    )


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in options.items()) or "its own settings"


def _agreement(outcome: Outcome) -> str:
    runtime, report = outcome.forms[-1], outcome.report
    axes = ", ".join(report.dynamic_axes)
    return (
        f"ONNX Runtime on `{report.path.name}` gets {runtime.score()}, with {runtime.differing} predictions unlike "
        f"PyTorch's. The file takes pixels in [0, 1] (the normalisation is in it); "
        + (f"axes that are dynamic, which runs at other values proved: {axes}." if axes else "its axes are fixed.")
    )


def _conditions(outcome: Outcome) -> str:
    machine, threads = outcome.machine, outcome.threads
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"Timed one image at a time in interleaved turns on {threads} thread{'s' if threads > 1 else ''} of "
        f"{machine['cpu']} ({machine['cores']} cores, load {machine['load_1min']}), {machine['system']}, Python "
        f"{machine['python']}, {versions}. ONNX Runtime's time includes the normalisation. Differences of logits are "
        "relative to the greatest one."
    )


def _files(folder: Path, outcome: Outcome) -> list[str]:
    notes = {
        WEIGHTS: "the trained weights: `mixzoo.train.load_run` builds the model from this and the next file",
        RECORD: "recipe, versions, accuracy and every epoch of the run",
        EPOCHS: "a row per epoch",
        STEPS: "a row per step",
        **{path.name: "the model for ONNX Runtime, in its deploy form" for path in outcome.report.files},
        "manifest.json": "what the ONNX file takes and gives, and how it was verified",
        "summary.md": "the same for reading",
        PICTURE: "predictions on real images",
        IMAGES: "the test images and some to calibrate int8 with, for `mixzoo export --precision`",
    }
    present = ((f"`{n}`", f"{size_of(folder / n) / 1e3:.1f}", text) for n, text in notes.items())
    return _table(("file", "kB", "what it is"), present)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    header = tuple(header)
    return [f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows)]
