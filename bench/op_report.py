"""Rows of an op as a table for people and as JSON lines for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from ..zoo.tables import new_table, number
from .ops import OpRow, exponents, speedups
from .report import describe

RECORD = "op"


def table(rows: Sequence[OpRow]) -> Table:
    """All rows of one op."""
    first = rows[0]
    place = f"{first.threads} threads" if first.device == "cpu" else first.device
    title = f"{first.op}: batch {first.batch}, {first.dim} channels, {first.dtype}, {place}"
    numbers = ("tokens", "heads", "median ms", "floor ms", "peak MiB", "speedup", "memory")
    grid = new_table(("implementation",), numbers, ("why not",), title=title)
    for row in rows:
        grid.add_row(*_cells(row))
    return grid


def _cells(row: OpRow) -> list[str]:
    return [
        row.implementation,
        f"{row.side}x{row.side}",
        str(row.heads),
        number(row.median_ms, ".3f"),
        number(row.floor_ms, ".3f"),
        number(row.peak_mb, ".2f"),
        number(row.speedup, ".2f"),
        number(row.memory_ratio, ".2f"),
        row.reason or "",
    ]


def full_report(rows: Sequence[OpRow], machine: Mapping[str, Any]) -> RenderableType:
    """The table, the machine, how each implementation grows with the tokens, and how much faster it is."""
    growth = (
        f"{name}: time grows as tokens^{fit['time']:.2f}, memory as tokens^{fit['memory']:.2f}"
        for name, fit in exponents(rows).items()
    )
    gains = (
        f"{name}: {mean:.2f} times as fast as the reference, the geometric mean over sizes (median {middle:.2f})"
        for name, (mean, middle) in speedups(rows).items()
    )
    return Group(table(rows), *describe(machine), *growth, *gains)


def json_lines(rows: Iterable[OpRow], machine: Mapping[str, Any]) -> str:
    """One JSON object a line, every row with the machine it was taken on; the last one has the fitted exponents."""
    rows = list(rows)
    lines: list[dict[str, Any]] = [{"record": RECORD, **asdict(row), "machine": machine} for row in rows]
    lines.append({"record": "exponents", "op": rows[0].op, "exponents": exponents(rows)})
    return "".join(json.dumps(line) + "\n" for line in lines)
