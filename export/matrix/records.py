"""What is kept of a cell: a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...zoo.errors import MixzooError
from ...zoo.files import atomic_write
from ..process import cause
from .cells import Cell

GREEN, RED, ABSENT = "green", "red", "absent"
_LONGEST = 1000  # characters of a reason

Record = dict[str, Any]


class RecordsError(MixzooError, ValueError):
    """A file of records that cannot be read."""


class Store:
    """The records of a matrix in a file, one a line. The file is replaced whole, so that it is never half written.

    Args:
        path: the file; it need not exist.

    Raises:
        RecordsError: it is no file of records.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = {key_of(record): record for record in read(path)} if path.is_file() else {}

    def put(self, record: Record) -> None:
        """Add a record, or replace that of the same cell, on disk too."""
        self.records[key_of(record)] = record
        atomic_write(self.path, lines(self.records.values()))

    def get(self, cell: Cell) -> Record | None:
        return self.records.get(cell.key)


def read(path: Path) -> list[Record]:
    """The records in a file.

    Raises:
        RecordsError: a line that is none.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            key_of(record)
        except (ValueError, KeyError, TypeError):
            raise RecordsError(f"{path}, line {number}, is no record of `mixzoo matrix`: remove the line.") from None
        found.append(record)
    return found


def lines(records: Iterable[Record]) -> str:
    """Records as text, one a line."""
    return "".join(json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n" for record in records)


def key_of(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """Which cell it is of."""
    return record["model"], record["target"], record["precision"]


def base(cell: Cell, settings: Mapping[str, Any]) -> Record:
    """What every record begins with."""
    return {
        "model": cell.model,
        "family": cell.family,
        "target": cell.target,
        "precision": cell.precision,
        "settings": dict(settings),
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def green(manifest: Mapping[str, Any]) -> Record:
    """What the manifest of a finished export says."""
    artifacts = manifest["artifacts"]
    first = artifacts[0]
    runs = "yes" if manifest.get("in_its_runtime") else "program" if manifest["verified"] else "source"
    return {
        "status": GREEN,
        "runs": runs,
        "run_by": manifest["run_by"] or manifest.get("checks_are_of"),
        "not_run_because": manifest.get("not_run_because"),
        "error": manifest["error"],
        "tolerance": manifest["tolerance"],
        "dynamic_axes": manifest["dynamic_axes"],
        "fixed_because": [_shortened(item["reason"]) for item in manifest["fixed_because"]],
        "delegated": _delegated(first["delegated"]),
        "files": len(artifacts),
        "bytes": first["bytes"] + sum(item["bytes"] for item in first["companions"]),
        "nodes": first["nodes"],
        "max_rank": manifest["max_rank"],
        "parameters": manifest["parameters"],
        "weights": manifest["weights"],
        "latency": first["latency"],
        "judged": first.get("judged"),
        "reason": None,
    }


def _delegated(part: Mapping[str, Any] | None) -> Record | None:
    return {key: part[key] for key in ("to", "share", "parts", "macs_share") if key in part} if part else None


def red(reason: str, stopped: str | None = None) -> Record:
    """Of an export that failed; ``stopped`` is "time" or "memory" where a limit ended it."""
    return {"status": RED, "stopped": stopped, "reason": _shortened(reason)}


def absent(reason: str) -> Record:
    """Of a cell that cannot be filled here."""
    return {"status": ABSENT, "reason": reason}


def reason_in(log: str, status: int, cell: Cell) -> str:
    """Why a process with exit status ``status`` failed, from what it printed as errors."""
    name = cell.model.partition(":")[2] or cell.model
    which = "" if cell.precision == "fp32" else f" in {cell.precision}"
    return cause(log, status).removeprefix(f"{name} could not be exported to {cell.target}{which}: ")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
