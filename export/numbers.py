"""How outputs are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import ExportError

Outputs = list[np.ndarray]


@torch.no_grad()
def outputs_of(model: Callable[[Tensor], Any], images: Tensor) -> Outputs:
    """Every output of a model that gives a tensor, or a tuple or list of them.

    Raises:
        ExportError: it gives something else.
    """
    outputs: Any = model(images)
    tensors = outputs if isinstance(outputs, tuple | list) else [outputs]
    if others := [type(t).__name__ for t in tensors if not isinstance(t, Tensor)]:
        raise ExportError(
            f"the model gives a {others[0]} where only tensors can be, alone or in one tuple or list: wrap it in a "
            "module that returns these."
        )
    return [t.cpu().numpy() for t in tensors]


def relative_error(got: Outputs, wanted: Outputs) -> float:
    """The greatest ``max|a - b| / max|b|`` over the outputs; infinite for NaN, infinities and other shapes."""
    if len(got) != len(wanted):
        return float("inf")
    return max(_relative(a, b) for a, b in zip(got, wanted, strict=True))


def least_difference(got: Outputs, wanted: Outputs) -> float:
    """The least ``max|a - b| / max|b|`` over the outputs."""
    return min(_relative(a, b) for a, b in zip(got, wanted, strict=True))


def percent(share: float) -> str:
    """In words, rounded down: all is 100%, and nothing less."""
    return f"{math.floor(100 * share)}%"


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    scale = float(np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0)) / max(scale, 1e-30)
