"""Export: a backbone becomes a file for another runtime, which is run there and compared before anyone sees it."""

from __future__ import annotations

from .api import IncompleteError, export
from .errors import ExportError, ShapeError, VerificationError
from .folders import FolderError
from .precision import PRECISIONS
from .report import Report
from .shapes import parse_batches, parse_sizes
from .swaps import SwapError, swap
from .target import TARGETS, get_target
from .words import render

__all__ = [
    "PRECISIONS",
    "TARGETS",
    "ExportError",
    "FolderError",
    "IncompleteError",
    "Report",
    "ShapeError",
    "SwapError",
    "VerificationError",
    "export",
    "get_target",
    "parse_batches",
    "parse_sizes",
    "render",
    "swap",
]
