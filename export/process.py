"""Processes whose libraries may die: what they said at last, how much memory they use, an end to all they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..zoo.console import STEPS

_KIB = 1024
_PATIENCE = 10.0  # s
_ALONE = "MIXZOO_ALONE"  # environment variable of a process that was started to die alone
_FORESEEN = "This is not an error that mixzoo foresaw"


class Entry(NamedTuple):
    """A process: its id, its parent's, its group's, and its resident memory in bytes."""

    pid: int
    parent: int
    group: int
    resident: int


class Child:
    """A command in a process group of its own.

    Args:
        command: its words.
        log: file that gets what it prints as errors and progress.
        threads: that its libraries may use; as many as this process's may if None.
        output: file that gets what else it prints.
        told: file that gets a line for each step of a command of mixzoo.

    Attributes:
        peak: the most resident memory of the process and its descendants seen so far, bytes; pages that they share
            count for each.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        threads: int | None = None,
        output: Path | None = None,
        told: Path | None = None,
    ) -> None:
        self.log, self.peak, self.started = log, 0, time.monotonic()
        environment = {**os.environ, "MIXZOO_DEBUG": "", _ALONE: "1"}
        environment |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        environment |= {STEPS: str(told)} if told else {}
        with log.open("wb") as file, (output or Path(os.devnull)).open("wb") as printed:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=file,
                env=environment,
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    def ended(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs. Takes a sample of the memory."""
        self.peak = max(self.peak, sum(entry.resident for entry in self._members()))
        return self.process.poll()

    def stop(self) -> None:
        """Ask it to end, so that it leaves nothing half-written, and end it if it does not."""
        _signal(os.kill, self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_PATIENCE)
        self.kill()

    def kill(self) -> None:
        """End it and everything that it started."""
        for entry in self._members():
            _signal(os.kill, entry.pid)
        _signal(os.killpg, self.process.pid)
        self.process.wait()

    def _members(self) -> list[Entry]:
        return members(processes(), self.process.pid)


def alone() -> bool:
    """Whether this process, or one that started it, is a `Child`: whoever started that is told if it dies."""
    return bool(os.environ.get(_ALONE))


def command(words: Sequence[str]) -> list[str]:
    """The command `mixzoo` with ``words`` as a process that ends itself when this one is gone."""
    return [sys.executable, "-m", f"{__package__}.child", str(os.getpid()), *words]


def cause(log: str, status: int) -> str:
    """Why a command of mixzoo with exit status ``status`` failed, from what it printed as errors."""
    _, found, message = f"\n{log}".rpartition("\nError: ")
    if found and status >= 0:
        return " ".join(message.split(_FORESEEN)[0].split())
    said = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "nothing")
    ending = f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with code {status}"
    return f"the process {ending}; the last it printed: {said}"


def members(table: Sequence[Entry], root: int) -> list[Entry]:
    """Of ``table``, the process ``root``, those of its group, and all descendants of these."""
    found = {entry.pid for entry in table if root in (entry.pid, entry.group)}
    while more := {entry.pid for entry in table if entry.parent in found} - found:
        found |= more
    return [entry for entry in table if entry.pid in found]


def processes() -> list[Entry]:
    """Every process that can be seen."""
    return _from_proc(Path("/proc")) if Path("/proc/self/stat").exists() else _from_ps()


def _from_proc(root: Path) -> list[Entry]:
    page = os.sysconf("SC_PAGE_SIZE")
    found = []
    for folder in root.iterdir():
        if folder.name.isdigit() and (fields := _stat(folder)):
            found.append(Entry(int(folder.name), int(fields[1]), int(fields[2]), int(fields[21]) * page))
    return found


def _stat(folder: Path) -> list[str] | None:
    """Fields of a process after its name, which may hold spaces and brackets; None if it has gone."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _from_ps() -> list[Entry]:
    asked = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,pgid=,rss="], capture_output=True, text=True, check=True)
    rows = (map(int, line.split()) for line in asked.stdout.splitlines())
    return [Entry(pid, parent, group, kib * _KIB) for pid, parent, group, kib in rows]


def _signal(send: Callable[[int, int], None], number: int, kind: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has gone, or it is not ours
        send(number, kind)
