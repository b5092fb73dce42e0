"""What the evaluation of a MIL operator is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Arguments:
    """The inputs of an operation, by name; those of float16 in float32, which holds their values.

    Args:
        operation: of a MIL program.
        values: by the name of the variable.
    """

    def __init__(self, operation: Any, values: dict[str, Any]) -> None:
        self.operation, self.values = operation, values

    def has(self, name: str) -> bool:
        """Whether an input is given."""
        return self.operation.inputs.get(name) is not None

    def __getitem__(self, name: str) -> Tensor:
        """A tensor that must be there."""
        return _wide(self.values[self.operation.inputs[name].name])

    def all(self, name: str) -> list[Tensor]:
        """Every tensor of an input that is a list of them."""
        return [_wide(self.values[variable.name]) for variable in self.operation.inputs[name]]

    def optional(self, name: str) -> Tensor | None:
        """A tensor, or None where it is left out."""
        return self[name] if self.has(name) else None

    def plain(self, name: str, default: Any = None) -> Any:
        """Numbers, booleans or text; ``default`` where it is left out."""
        if not self.has(name):
            return default
        value = self[name]
        return value if isinstance(value, str) else value.tolist()


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


Result = Tensor | Sequence[Tensor]
Operator = Callable[[Arguments], Result]


def last_first(pad: Sequence[int]) -> list[int]:
    """[before_0, after_0, before_1, ...] in the order of torch: the last axis first."""
    return [n for i in range(len(pad) - 2, -1, -2) for n in pad[i : i + 2]]


def axes_of(a: Arguments) -> tuple[int, ...]:
    """The axes of a norm or reduction, all by default; none is negative."""
    rank = a["x"].ndim
    return tuple(sorted(axis % rank for axis in a.plain("axes") or range(rank)))
