"""Initial weights, as the papers' code sets them. Each function is applied to one module at a time."""

from __future__ import annotations

import math

from torch import nn


def keep_defaults(module: nn.Module) -> None:
    """PyTorch's own initial weights."""


def trunc_normal(module: nn.Module) -> None:
    """Convolutions and linears: normal, std 0.02, cut at 2; biases zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def fan_out_normal(module: nn.Module) -> None:
    """Convolutions: normal, std sqrt(2 / fan_out), the fan counted per group; linears as `trunc_normal`."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        trunc_normal(module)


def linear_trunc_normal(module: nn.Module) -> None:
    """Linears as `trunc_normal`; convolutions keep PyTorch's initial weights."""
    if isinstance(module, nn.Linear):
        trunc_normal(module)
