"""Written files with what lies beside them: weights and the like, under the same name with another suffix."""

from __future__ import annotations

from pathlib import Path

from ..zoo.files import remove
from .prepare import size_of


def companions(path: Path) -> list[Path]:
    """What belongs to the file at ``path``."""
    return sorted(p for p in path.parent.iterdir() if p != path and p.name.startswith(f"{path.stem}."))


def clear(path: Path) -> None:
    """Remove the file at ``path`` and what belongs to it, if there is one."""
    for file in (path, *companions(path)):
        remove(file)


def total_size(path: Path) -> int:
    """Bytes of the file at ``path`` and of what belongs to it."""
    return sum(size_of(file) for file in (path, *companions(path)))
