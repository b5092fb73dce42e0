"""Curves of a run: loss, accuracy and learning rate over its steps."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..zoo.errors import MixzooError
from ..zoo.extras import require
from ..zoo.files import atomic_write
from .logs import EPOCHS, NESTED, STEPS, Epoch, Nested, Step, read_log

SUFFIXES = (".png", ".svg")
_WINDOW = 50  # steps of the running mean


Rows = list[dict[str, float]]


class CurveError(MixzooError, ValueError):
    """Nothing to draw, or nowhere to draw it."""


def plot_run(folder: Path, out: Path) -> Path:
    """Draw the logs of a run as PNG or SVG.

    Raises:
        CurveError: another ending, or a run without steps.
        MissingExtraError: matplotlib is not installed.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise CurveError(f"Cannot draw {out.name!r}: a plot is written as {' or '.join(SUFFIXES)}.")
    steps, epochs = read_log(folder / STEPS, Step), read_log(folder / EPOCHS, Epoch)
    if not steps:
        raise CurveError(f"Nothing to draw: the run in {folder} has made no step.")
    require("matplotlib", extra="train")
    nested = read_log(folder / NESTED, Nested) if (folder / NESTED).is_file() else []
    return atomic_write(out, _draw(steps, epochs, nested, out.suffix.lower().lstrip("."), folder.name))


def _draw(steps: Rows, epochs: Rows, nested: Rows, kind: str, title: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 9), layout="constrained")
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True)
    ends = _ends(steps, epochs)
    x = [row["step"] for row in steps]
    loss.plot(x, [row["loss"] for row in steps], linewidth=0.5, alpha=0.4, label="training, each step")
    loss.plot(x, running_mean([row["loss"] for row in steps], _WINDOW), label=f"training, mean of {_WINDOW} steps")
    loss.plot(ends, [row["test_loss"] for row in epochs], marker="o", markersize=3, label="test")
    accuracy.plot(ends, [100 * row["accuracy"] for row in epochs], marker="o", markersize=3, label="test")
    for width in sorted({row["width"] for row in nested if row["width"] < 1}, reverse=True):
        ys = [100 * row["accuracy"] for row in nested if row["width"] == width]
        accuracy.plot(ends, ys, marker="o", markersize=3, label=f"test, at width {width:g}")
    rate.plot(x, [row["lr"] for row in steps], label="learning rate")
    for axes, label in ((loss, "loss"), (accuracy, "test accuracy, %"), (rate, "learning rate")):
        _dress(axes, label)
    loss.legend()
    accuracy.legend()
    rate.set_xlabel("step")
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150)
    return buffer.getvalue()


def _dress(axes: Any, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(True, linewidth=0.3)


def _ends(steps: Rows, epochs: Rows) -> list[float]:
    """The last step of each epoch that was tested."""
    last = {row["epoch"]: row["step"] for row in steps}
    return [last[row["number"]] for row in epochs]


def running_mean(values: list[float], window: int) -> list[float]:
    """Means of each value with those before it, ``window`` at most."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means
