"""What can go wrong in an export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..zoo.errors import MixzooError

if TYPE_CHECKING:
    from .report import Report


class ExportError(MixzooError):
    """An export that was not done; nothing of it was left behind."""


class IncompleteError(ExportError):
    """Of several targets some failed.

    Attributes:
        reports: of those that did not.
    """

    def __init__(self, message: str, reports: Sequence[Report]) -> None:
        super().__init__(message)
        self.reports = list(reports)


class ShapeError(ExportError, ValueError):
    """Sizes or batches that cannot be read: wrong usage, not a failed export."""


class VerificationError(ExportError):
    """A written file that does not do what the model does."""


class UnprovableError(VerificationError):
    """A model whose outputs, with the weights it has, cannot tell a right file from a wrong one."""
