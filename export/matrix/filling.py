"""Filling cells, some at a time, each in a process of its own, with limits; what is done is on disk before the next."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ...zoo.errors import MixzooError
from ..process import Child, command
from ..report import read as read_manifest
from . import records
from .cells import Cell, Settings
from .records import Record, Store

_POLL = 0.2  # s
_WORK = ".cells"
_GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """What a cell may use.

    Attributes:
        seconds: of wall-clock time.
        gib: of resident memory, GiB, of the process and all that it starts; 0 for eight tenths of the machine's,
            divided by ``jobs``.
        jobs: cells at a time.
        threads: of each; 0 for the machine's cores divided by ``jobs``.
    """

    seconds: float = 1800.0
    gib: float = 0.0
    jobs: int = 1
    threads: int = 0

    @property
    def memory(self) -> float:
        """GiB."""
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
        return self.gib or 0.8 * total / self.jobs

    @property
    def cores(self) -> int:
        return self.threads or max(1, (os.cpu_count() or 1) // self.jobs)


class BusyError(MixzooError, RuntimeError):
    """Another process fills the same matrix."""


def pending(cells: Sequence[Cell], store: Store, settings: Settings, limits: Limits, again: bool) -> list[Cell]:
    """Those of ``cells`` without a record that holds still; with ``again``, red ones too."""
    return [cell for cell in cells if not _holds(store.get(cell), cell, settings, limits, again)]


def _holds(record: Record | None, cell: Cell, settings: Settings, limits: Limits, again: bool) -> bool:
    if record is None or record["status"] == records.ABSENT or record["settings"] != settings.record(cell):
        return False
    if record["status"] == records.GREEN:
        return True
    allowed = {"time": limits.seconds, "memory": limits.memory}.get(record["stopped"], 0.0)
    return not again and allowed <= record.get("limit", 0.0)


def fill(
    cells: Sequence[Cell],
    settings: Settings,
    store: Store,
    limits: Limits,
    keep: Path | None = None,
    say: Callable[[Record], None] = lambda record: None,
    watch: Callable[[Sequence[Cell]], None] = lambda running: None,
) -> None:
    """Fill ``cells``. What was recorded stays, whatever ends this.

    Args:
        cells: to fill.
        settings: what they are asked.
        store: gets a record for each, at once.
        limits: of each.
        keep: folder that the exported files go to, in MODEL/TARGET_PRECISION; they are removed if None.
        say: told each record.
        watch: told, now and then, which cells are being filled.

    Raises:
        BusyError: another process fills this matrix.
    """
    waiting, running = deque(cells), list[_Running]()
    with _alone(store.path.parent) as work, _ended_by_signals():
        try:
            while waiting or running:
                while waiting and len(running) < limits.jobs:
                    running.append(_Running(waiting.popleft(), settings, work, limits))
                watch([one.cell for one in running])
                time.sleep(_POLL)
                for one in [one for one in running if one.finished()]:
                    running.remove(one)
                    record = one.record(settings)
                    one.leave(keep)
                    store.put(record)
                    say(record)
        finally:
            for one in running:
                one.child.kill()


def command_of(cell: Cell, settings: Settings, out: Path) -> list[str]:
    """The process that fills ``cell`` and writes into ``out``."""
    return command(settings.arguments(cell, out))


class _Running:
    """A cell that is being filled."""

    def __init__(self, cell: Cell, settings: Settings, work: Path, limits: Limits) -> None:
        self.cell, self.limits, self.status, self.stopped = cell, limits, 0, ""
        self.folder = Path(tempfile.mkdtemp(dir=work))
        self.out = self.folder / "out"
        self.child = Child(command_of(cell, settings, self.out), self.folder / "log", limits.cores)

    def finished(self) -> bool:
        """Whether it has ended, or was ended for passing a limit."""
        status = self.child.ended()
        if status is None:
            if self.child.seconds > self.limits.seconds:
                self.stopped = "time"
            elif self.child.peak > self.limits.memory * _GIB:
                self.stopped = "memory"
        done = status is not None or bool(self.stopped)
        if done:
            self.child.kill()  # or what it left behind
            self.status = status or 0
        return done

    def record(self, settings: Settings) -> Record:
        cost = {"seconds": round(self.child.seconds, 1), "peak_gib": round(self.child.peak / _GIB, 2)}
        return {**records.base(self.cell, settings.record(self.cell)), **self._result(), **cost}

    def _result(self) -> Record:
        if self.stopped == "time":
            reason = f"stopped after {self.limits.seconds:g} s, the limit"
            return records.red(reason, self.stopped) | {"limit": self.limits.seconds}
        if self.stopped == "memory":
            reason = f"stopped at {self.child.peak / _GIB:.1f} GiB of memory; the limit is {self.limits.memory:.1f}"
            return records.red(reason, self.stopped) | {"limit": self.limits.memory}
        manifest = None if self.status else read_manifest(self.out)
        if manifest:
            return records.green(manifest)
        log = (self.folder / "log").read_text(errors="replace")
        return records.red(records.reason_in(log, self.status, self.cell))

    def leave(self, keep: Path | None) -> None:
        """Take the files away, or to ``keep``."""
        if keep is not None and self.out.is_dir():
            place = keep / self.cell.model.replace(":", "_") / f"{self.cell.target}_{self.cell.precision}"
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(self.out, place)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """A folder to work in, beside the records, that no other process uses."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    work = folder / _WORK
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(work, ignore_errors=True)  # of one that was killed
        work.mkdir()
        yield work
        shutil.rmtree(work, ignore_errors=True)
    except BlockingIOError:
        raise BusyError(f"Another process fills the matrix in {folder}: wait for it, or take another --out.") from None
    finally:
        os.close(handle)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a polite request to end be an exception, so that no process is left behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
