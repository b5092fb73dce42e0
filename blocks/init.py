"""Initial weights, as the papers' code sets them. Each function is applied to one module at a time."""

from __future__ import annotations

import math

from torch import nn

from .tables import PositionEmbedding


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


def pointwise_normal(module: nn.Module) -> None:
    """Linears and 1x1 convolutions as `trunc_normal`, position tables alike; other convolutions keep PyTorch's."""
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
        trunc_normal(module)
    elif isinstance(module, PositionEmbedding):
        nn.init.trunc_normal_(module.table, std=0.02)


def conv_normal(module: nn.Module) -> None:
    """As `pointwise_normal`, with other convolutions as `fan_out_normal`."""
    pointwise_normal(module)
    if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
        fan_out_normal(module)
