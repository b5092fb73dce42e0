"""Benchmark rows as a table for people and as JSON lines for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from ..zoo.errors import MixzooError
from ..zoo.files import atomic_write
from ..zoo.tables import new_table, number
from ..zoo.timing import geometric_mean
from .run import Row

RECORD = "timing"


def table(rows: Sequence[Row]) -> Table:
    """All rows of one model or of many."""
    numbers = ("median ms", "p90 ms", "img/s", "memory MiB", "MACs G", "speedup", "paired", "error")
    grid = new_table(("model", "form"), numbers, ("than, or why not",), title=_title(rows))
    for row in rows:
        grid.add_row(*_cells(row))
    return grid


def _title(rows: Sequence[Row]) -> str:
    sizes = sorted({f"{row.height}x{row.width}" for row in rows})
    return f"{', '.join(sizes)}, batch {rows[0].batch}, {rows[0].threads} threads" if rows else ""


def _cells(row: Row) -> list[str]:
    source = "" if row.source == "mixzoo" else f"{row.source} "
    return [
        row.model,
        source + row.form,
        number(row.median_ms, ".2f"),
        number(row.p90_ms, ".2f"),
        number(row.throughput, ".1f"),
        number(row.peak_memory_mb, ".0f"),
        number(row.macs_g, ".2f"),
        number(row.speedup, ".2f"),
        number(row.paired_speedup, ".2f"),
        number(row.error, ".0e"),
        row.reason or (row.baseline or "").removeprefix("mixzoo "),
    ]


def summaries(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Per form of ours: the geometric mean over models of how many times faster it is than its baseline.

    Returns:
        form -> {"baseline", "models", "geometric_mean", "paired_geometric_mean", "slowest", "slowest_speedup"}; a form
        that is its own baseline is left out.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.source == "mixzoo" and row.baseline and row.baseline != row.label:
            found.setdefault(row.form, []).append(row)
    return {form: _summary(members) for form, members in found.items()}


def _summary(rows: list[Row]) -> dict[str, Any]:
    slowest = min(rows, key=lambda row: row.speedup or 0.0)
    return {
        "baseline": ", ".join(sorted({row.baseline or "" for row in rows})),
        "models": len(rows),
        "geometric_mean": round(geometric_mean([row.speedup or 0.0 for row in rows]), 4),
        "paired_geometric_mean": round(geometric_mean([row.paired_speedup or 0.0 for row in rows]), 4),
        "slowest": slowest.model,
        "slowest_speedup": slowest.speedup,
    }


def summary_lines(rows: Iterable[Row]) -> list[str]:
    """One sentence for each entry of `summaries`."""
    return [
        f"{form}: {s['geometric_mean']:.2f} times as fast as {s['baseline']}, the geometric mean over {s['models']} "
        f"model{'s' if s['models'] > 1 else ''} ({s['paired_geometric_mean']:.2f} pair by pair); "
        f"least on {s['slowest']}: {s['slowest_speedup']:.2f}"
        for form, s in summaries(rows).items()
    ]


def full_report(rows: Sequence[Row], machine: Mapping[str, Any]) -> RenderableType:
    """The table, the machine it was taken on, and the means."""
    return Group(table(rows), *describe(machine), *summary_lines(rows))


def describe(machine: Mapping[str, Any]) -> list[str]:
    """Lines that tell what a measurement was taken on, and whether it can be trusted."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    place = f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_1min']} at the start; {versions}"
    busy = "The machine was busy with other work, so these figures are rough."
    return [place, busy] if _was_busy(machine) else [place]


def _was_busy(machine: Mapping[str, Any]) -> bool:
    return float(machine["load_1min"]) > 0.5 * int(machine["cores"] or 1)


def json_lines(rows: Iterable[Row], machine: Mapping[str, Any]) -> str:
    """One JSON object a line: every row with the machine it was taken on, so that files can be joined with cat."""
    return "".join(json.dumps({"record": RECORD, **asdict(row), "machine": machine}) + "\n" for row in rows)


def write_json_lines(path: Path, rows: Iterable[Row], machine: Mapping[str, Any]) -> Path:
    """Write `json_lines` to ``path`` in one step."""
    return atomic_write(path, json_lines(rows, machine))


def read_json_lines(path: Path) -> list[Row]:
    """Rows of a file of `write_json_lines`, or of several joined.

    Raises:
        MixzooError: the file cannot be read or holds something else; the message names the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MixzooError(f"Cannot read {path} ({error}): `mixzoo bench MODEL --out {path}` writes it.") from None
    return [_row(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]


def _row(line: str, place: str) -> Row:
    try:
        record = json.loads(line)
        if record.get("record") != RECORD:
            raise ValueError("not a timing")
        return Row(**{field.name: record[field.name] for field in fields(Row)})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MixzooError(f"{place} is not a row that `mixzoo bench --out` writes ({error}).") from None
