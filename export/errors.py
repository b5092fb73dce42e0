"""What can go wrong in an export."""

from __future__ import annotations

from ..zoo.errors import MixzooError


class ExportError(MixzooError):
    """An export that was not done; nothing of it was left behind."""


class ShapeError(ExportError, ValueError):
    """Sizes or batches that cannot be read: wrong usage, not a failed export."""


class VerificationError(ExportError):
    """A written file that does not do what the model does."""


class DiffersError(VerificationError):
    """A written file that runs, but does not give what the model gives."""


class UnprovableError(VerificationError):
    """A model whose outputs, with the weights it has, cannot tell a right file from a wrong one."""


class RefusedError(ExportError):
    """A model with operators that a target does not take."""
