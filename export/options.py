"""Options of a target."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..zoo.errors import UnknownNameError


def check_options(target: str, options: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """See that ``options`` are among those a target knows.

    Raises:
        UnknownNameError: one is not.
    """
    for option in options:
        if option not in known:
            takes = f"It takes {', '.join(known)}." if known else "It takes none."
            raise UnknownNameError(f"option of the {target} target", option, known, takes)
