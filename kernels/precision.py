"""Sums in float32 for half-precision inputs, whether they come from autocast or not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Autocast would take matrix products back to half precision; the meta device has none."""
    active = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if active else nullcontext()


def accumulated(x: Tensor) -> Tensor:
    """``x`` in the type that sums over it are made in."""
    return x.float() if x.dtype in HALVES else x
