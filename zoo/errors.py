"""Errors that a user can act on: every message says what is wrong and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MixzooError(Exception):
    """Base of every error that mixzoo raises on bad input; the command line prints its message and nothing else."""


class UnknownNameError(MixzooError, LookupError):
    """A name that is not registered.

    Attributes:
        suggestions: registered names that are near the one given, nearest first.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        names = list(known)
        self.name = name
        self.suggestions = near_names(name, names)
        hint = f" Did you mean {_either(self.suggestions)}?" if self.suggestions else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint}{' ' + remedy if remedy else ''}")


class UnknownModelError(UnknownNameError):
    """A model name that the zoo does not have."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__("model", name, known, "`mixzoo list` shows every model.")


class MissingExtraError(MixzooError, ImportError):
    """An optional package that the job needs is not installed."""


class CheckpointError(MixzooError, RuntimeError):
    """A checkpoint that cannot be found, read, or fitted to the model."""


class DeployFormError(CheckpointError):
    """A checkpoint of a model's deploy form, offered to the model in its training form."""


def near_names(name: str, known: Iterable[str], count: int = 4) -> list[str]:
    """Names in ``known`` that resemble ``name``, nearest first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)


def _either(names: list[str]) -> str:
    quoted = [repr(n) for n in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + f" or {quoted[-1]}"
