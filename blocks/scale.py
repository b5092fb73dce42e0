"""Factories of per-channel scales; the module is timm's `LayerScale2d`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from timm.layers import LayerScale2d
from torch import nn


def layer_scale(init: float) -> Callable[[int], nn.Module]:
    """Factory of a per-channel scale at the end of a branch (LayerScale, arXiv:2103.17239)."""
    return partial(LayerScale2d, init_values=init)


residual_scale = layer_scale(1.0)  # on the shortcut (ResScale, arXiv:2110.09456)
