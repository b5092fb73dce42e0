"""Accuracy against latency, one point for each model and form."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ..zoo.errors import MixzooError
from ..zoo.extras import require
from ..zoo.files import atomic_write
from .run import Row

SUFFIXES = (".png", ".svg")
MARKERS = "osD^vP*X"


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draw published top-1 accuracy (%) against median latency (ms) and write it as PNG or SVG.

    Args:
        rows: timed rows; those without a latency or a published accuracy are left out.
        path: ends in .png or .svg.

    Raises:
        MixzooError: another ending, or nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise MixzooError(f"Cannot draw {path.name!r}: a plot is written as {' or '.join(SUFFIXES)}.")
    drawn = [row for row in rows if row.median_ms is not None and row.top1 is not None]
    if not drawn:
        raise MixzooError("Nothing to draw: no row has both a latency and a published top-1 accuracy.")
    require("matplotlib", extra="train")
    return atomic_write(path, _draw(drawn, path.suffix.lower().lstrip(".")))


def _draw(rows: Sequence[Row], kind: str) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    labels = list(dict.fromkeys(row.label for row in rows))
    for model in dict.fromkeys(row.model for row in rows):
        line = sorted(_place(row) for row in rows if row.model == model)
        axes.plot([x for x, _ in line], [y for _, y in line], color="0.8", linewidth=1, zorder=1)
    for label, marker in zip(labels, MARKERS * (1 + len(labels) // len(MARKERS)), strict=False):
        places = [_place(row) for row in rows if row.label == label]
        axes.scatter([x for x, _ in places], [y for _, y in places], marker=marker, label=label, zorder=3)
    for row in _fastest(rows):
        axes.annotate(row.model, _place(row), xytext=(4, 4), textcoords="offset points", fontsize=8)
    first = rows[0]
    axes.set_xlabel(f"median latency, ms (batch {first.batch}, {first.threads} threads)")
    axes.set_ylabel("published ImageNet-1k top-1, %")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend()
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "mixzoo", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _place(row: Row) -> tuple[float, float]:
    """(latency, accuracy) of a row that has both."""
    return row.median_ms or 0.0, row.top1 or 0.0


def _fastest(rows: Sequence[Row]) -> list[Row]:
    """The fastest row of each model, which carries its name."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.median_ms or 0.0):
        found.setdefault(row.model, row)
    return list(found.values())
