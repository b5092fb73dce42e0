"""The nearest valid name to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like ``name``."""
    return max(known, key=lambda k: _ratio(name, k))


def nearest_key(key: str, known: Iterable[str]) -> str:
    """The known dotted key most like ``key``: the last part counts most, so ``lr`` finds ``optim.lr``."""

    def likeness(candidate: str) -> float:
        pairs = zip((key, *key.rpartition(".")[::2]), (candidate, *candidate.rpartition(".")[::2]), strict=True)
        whole, section, leaf = (_ratio(a, b) for a, b in pairs)
        return whole + section + 2 * (1.0 if _initials(key) == candidate.rpartition(".")[2] else leaf)

    return max(known, key=likeness)


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _initials(key: str) -> str:
    """'lr' for optim.learning_rate."""
    return "".join(word[:1] for word in key.rpartition(".")[2].split("_"))
