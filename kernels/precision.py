"""Sums in float32 for half-precision inputs, whether they come from autocast or not; operands as autocast has them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

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


def as_autocast(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """All of them in the type that autocast, where it is on, gives the operands of a convolution."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x, *others
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in (x, *others))
