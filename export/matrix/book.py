"""A matrix on disk: its records, and the pages that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...zoo.files import atomic_write
from . import page, records, tables
from .cells import Cell, Plan, Settings
from .filling import Limits, pending
from .records import Store

if TYPE_CHECKING:
    from rich.table import Table


class Book:
    """matrix.jsonl, matrix.md and matrix.html in a folder.

    Args:
        folder: where they are.
        readme: a Markdown file that shows the grid too.
    """

    def __init__(self, folder: Path, readme: Path | None = None) -> None:
        self.store = Store(folder / "matrix.jsonl")
        self.files = [folder / "matrix.jsonl", folder / "matrix.md", folder / "matrix.html"]
        self.readme = readme

    def take_up(self, plan: Plan, settings: Settings, limits: Limits, again: bool = False) -> list[Cell]:
        """Note what cannot be tried here, and give the cells that are to be filled."""
        self._note(plan.absent, settings)
        return pending(plan.cells, self.store, settings, limits, again)

    def _note(self, absent: Mapping[Cell, str], settings: Settings) -> None:
        for cell, reason in absent.items():
            known = self.store.get(cell)
            if known is None or known["status"] == records.ABSENT:  # what was seen where it could be tried stays
                self.store.put({**records.base(cell, settings.record(cell)), **records.absent(reason)})

    def write(self) -> None:
        """Make the pages of all records that there are."""
        found = list(self.store.records.values())
        if not found:
            return
        atomic_write(self.files[1], tables.markdown(found))
        atomic_write(self.files[2], page.page(found))
        if self.readme:
            tables.put_into(self.readme, found)

    def table(self, plan: Plan) -> Table:
        """What the records say of a plan's cells, for a terminal."""
        asked = {cell.key for cell in (*plan.cells, *plan.absent)}
        return tables.table([r for r in self.store.records.values() if records.key_of(r) in asked])
