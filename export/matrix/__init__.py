"""The support matrix: models x targets x precisions, each cell exported, run and compared in a process of its own."""

from __future__ import annotations

from .book import Book
from .cells import Cell, Plan, Settings, models_of, plan, smallest_models
from .filling import Limits, fill, pending
from .records import Record, Store

__all__ = [
    "Book",
    "Cell",
    "Limits",
    "Plan",
    "Record",
    "Settings",
    "Store",
    "fill",
    "models_of",
    "pending",
    "plan",
    "smallest_models",
]
