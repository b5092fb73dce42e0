"""What is told while cells are filled: a line for each that is done and, on a terminal, a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .cells import Cell
from .records import GREEN, Record
from .tables import sign

_LONGEST = 160  # characters of a reason


@contextmanager
def following(total: int) -> Iterator[tuple[Callable[[Record], None], Callable[[Sequence[Cell]], None]]]:
    """Yield what `fill` tells of records and of running cells; everything goes to standard error."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal)
    task = bar.add_task("", total=total)
    done = 0

    def say(record: Record) -> None:
        nonlocal done
        done += 1
        bar.advance(task)
        console.print(escape(f"{done}/{total} {_line(record)}"))

    def watch(running: Sequence[Cell]) -> None:
        bar.update(task, description=escape(", ".join(map(str, running))))

    with bar:
        yield say, watch


def _line(record: Record) -> str:
    name = f"{record['model']} {record['target']} {record['precision']}"
    cost = f"{record['seconds']:.0f} s, {record['peak_gib']:.1f} GiB"
    if record["status"] == GREEN:
        return f"{name}: {sign(record)} ({cost})"
    reason = record["reason"]
    return f"{name}: ✗ {reason if len(reason) <= _LONGEST else reason[:_LONGEST] + '...'} ({cost})"
