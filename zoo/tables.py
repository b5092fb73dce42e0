"""Tables for a terminal, all of one look."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table


def new_table(
    names: Iterable[str] = (),
    numbers: Iterable[str] = (),
    texts: Iterable[str] = (),
    title: str | None = None,
    caption: str | None = None,
) -> Table:
    """An empty table: columns of names, which are never broken, then of numbers, to the right, then of longer texts."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", header_style="bold")
    for heading in names:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in texts:
        table.add_column(heading, overflow="fold")
    return table


def number(value: float | None, spec: str) -> str:
    """``value`` in a format, or nothing."""
    return "" if value is None else format(value, spec)
