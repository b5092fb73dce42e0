"""The precisions of files.

    fp32   float32 throughout
    fp16   weights and arithmetic in float16, with islands of float32 where float16 overflows or is too coarse
    int8   weights and activations of layers in 8 bits, with scales from real images; what that hurts stays in float

Inputs and outputs of a file are float32 at every precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..zoo.errors import UnknownNameError

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Precision:
    """What a file computes in.

    Attributes:
        name: one of `PRECISIONS`.
        images: to calibrate with, as the model takes them, float32 (1, C, H, W) each, of every size that the file is
            run at; of int8 only.
        keep: dotted paths of modules of the deploy form that stay in float, with all that is inside; of int8 only.
    """

    name: str = "fp32"
    images: tuple[Tensor, ...] = ()
    keep: frozenset[str] = frozenset()

    def keeps(self, path: str) -> bool:
        """Whether the module at ``path`` stays in float."""
        return any(path == kept or path.startswith(f"{kept}.") for kept in self.keep)

    def surrounds(self, path: str) -> bool:
        """Whether a module inside of the one at ``path`` stays in float, and so what that does with its results."""
        return any(kept.startswith(f"{path}." if path else "") for kept in self.keep)


def as_precisions(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names of precisions given as text ("fp32,int8") or a list, each once, in the order of `PRECISIONS`.

    Raises:
        UnknownNameError: there is no such precision, or none is named.
    """
    listed = [item.strip() for item in names.split(",")] if isinstance(names, str) else list(names)
    for name in listed or [""]:
        if name not in PRECISIONS:
            raise UnknownNameError("precision", name, PRECISIONS, f"Precisions: {', '.join(PRECISIONS)}.")
    return tuple(name for name in PRECISIONS if name in listed)
