"""The command ``mixzoo export``: each runtime in a process of its own.

Converters and runtimes are libraries of C++ that can die of an input. One that does takes no other runtime along, and
what it had not finished is removed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import report as reports
from .api import IncompleteError
from .errors import ExportError
from .precision import as_precisions
from .process import Child, cause, command
from .protocol import Target
from .report import Report

_POLL = 0.2  # s
_USAGE = 2  # exit code of a command that was asked for what there is not


class UsageError(ExportError, ValueError):
    """What no runtime can be asked for."""


def separately(
    words: Sequence[str],
    name: str,
    targets: Sequence[Target],
    precision: str,
    root: Path,
    say: Callable[[str], None],
) -> list[Report]:
    """Export to every one of ``targets``, whatever fails.

    Args:
        words: of the command, but for the runtime and the folder.
        name: of the model, in messages.
        targets: the runtimes.
        precision: of the files, as the command takes it.
        root: gets the files; of several runtimes, a folder for each.
        say: called with a few words at each step.

    Returns:
        A report per runtime and precision.

    Raises:
        UsageError: of what no runtime can do.
        IncompleteError: some of the targets failed; it has the others' reports.
    """
    done, failed = [], []
    for target in targets:
        if reason := target.unavailable():
            failed.append(f"{name} could not be exported to {target.name}: {reason}")
            say(failed[-1])
            continue
        folder = root / target.name if len(targets) > 1 else root
        places = _places(folder, name, as_precisions(precision))
        found, reason = _one([*words, "--to", target.name, "--out", str(folder)], places, say)
        done += found
        if reason:
            known = f"{name} could not be exported to {target.name}"
            failed.append(reason if known in reason else f"{known}: {reason}")
            say(failed[-1])
    if failed:
        raise IncompleteError(" ".join(failed), done)
    return done


def _places(folder: Path, name: str, precisions: Sequence[str]) -> list[Path]:
    """Folders that an export to ``folder`` may write to: that of another model is not mixed with it."""
    roots = [folder, *(folder / precision for precision in precisions)]
    return [*roots, *(root / f"{name}{end}" for root in roots for end in ("", *(f"_{p}" for p in precisions)))]


def _one(words: list[str], places: Sequence[Path], say: Callable[[str], None]) -> tuple[list[Report], str]:
    """The reports of one runtime that writes to ``places``, and what went wrong, empty where nothing did."""
    start = time.time()
    with tempfile.TemporaryDirectory(prefix="mixzoo-") as work:
        log, output, told = (Path(work) / name for name in ("log", "output", "steps"))
        child = Child(command([*words, "--json"]), log, output=output, told=told)
        try:
            status = _followed(child, told, say)
        except BaseException:
            child.stop()
            _tidy(places, start)
            raise
        child.kill()  # or what it left behind
        if status < 0:
            _tidy(places, start)
            return _finished(places, start), cause(log.read_text(errors="replace"), status)
        reason = cause(log.read_text(errors="replace"), status) if status else ""
        if status == _USAGE:
            raise UsageError(reason)
        return _printed(output), reason


def _followed(child: Child, told: Path, say: Callable[[str], None]) -> int:
    """The exit status of ``child``; meanwhile its steps are passed on."""
    passed = 0
    while True:
        status = child.ended()
        lines = told.read_text(errors="replace").splitlines() if told.exists() else []
        for line in lines[passed:]:
            say(line)
        passed = len(lines)
        if status is not None:
            return status
        time.sleep(_POLL)


def _printed(output: Path) -> list[Report]:
    """The reports that a process printed; libraries may have printed before them."""
    text = output.read_text(errors="replace")
    for place in (0, *(i + 1 for i, letter in enumerate(text) if letter == "\n")):
        with contextlib.suppress(ValueError):
            return [_report(item) for item in json.loads(text[place:])]
    return []


def _report(item: dict[str, Any]) -> Report:
    return Report(Path(item.pop("folder")), item)


def _finished(places: Sequence[Path], start: float) -> list[Report]:
    """The exports in ``places`` that were finished after ``start``, seconds since the epoch."""
    files = (place / reports.MANIFEST for place in places)
    new = (file.parent for file in files if file.is_file() and file.stat().st_mtime >= start)
    return [Report(place, content) for place in new if (content := reports.read(place)) is not None]


def _tidy(places: Sequence[Path], start: float) -> None:
    """Remove the folders that a process which died was writing to, beside those that it would have given them."""
    for place in places:
        for half in place.parent.glob(f".{place.name}-*"):
            if half.is_dir() and half.stat().st_mtime >= start:
                shutil.rmtree(half, ignore_errors=True)
