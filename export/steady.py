"""Filled weights under which a comparison in float32 means something.

`mixzoo.zoo.fill` gives every matrix unit gain. In some deep models (ConvFormer-S36, EfficientViT) this saturates
attention or squares small differences again and again: float32 rounding inside the model then moves its outputs by more
than any tolerance, and right and wrong files look alike. Smaller matrices, which is what training leaves, cure that.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..zoo.fill import fill_
from .numbers import outputs_of, relative_error

ROUNDING = 1e-5  # relative: what float32 may lose inside a model that is compared to 1e-4
_GAINS = (1.0, 0.7, 0.5, 0.35)


def fill_steadily_(model: nn.Module, images: Sequence[Tensor]) -> float:
    """Fill ``model``, in evaluation mode, in place, and scale its matrices down until float32 and float64 agree.

    Args:
        model: any module.
        images: inputs that it takes, float32 (1, C, H, W) each.

    Returns:
        What matrices and kernels were multiplied by; the least of the gains where even that is not enough.
    """
    fill_(model)
    for gain, following in pairwise(_GAINS):
        if all(rounding(model, image) <= ROUNDING for image in images):
            return gain
        _scale(model, following / gain)
    return _GAINS[-1]


def rounding(model: nn.Module, image: Tensor) -> float:
    """Relative difference between a model's outputs in float32 and in float64."""
    exact = outputs_of(copy.deepcopy(model).double(), image.double())
    return relative_error(outputs_of(model, image), exact)


@torch.no_grad()
def _scale(model: nn.Module, gain: float) -> None:
    for parameter in model.parameters():
        if parameter.numel() != max(parameter.shape, default=1):  # not a vector, whatever its number of axes
            parameter.mul_(gain)
