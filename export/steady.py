"""Filled weights under which a comparison in float32 means something.

`mixzoo.zoo.fill` gives every matrix unit gain. In some deep models (ConvFormer-S36, EfficientViT) this saturates
attention or squares small differences again and again: float32 rounding inside the model then moves its outputs by more
than any tolerance, and right and wrong files look alike. Smaller matrices, which is what training leaves, cure that.

In others (MobileNetV3) the signal fades on its way through rectifiers and gates, until the outputs are those of the
biases whatever the image. There batch norms get the statistics of images, as in training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..zoo.fill import calibrate_, fill_
from .numbers import least_difference, outputs_of, relative_error

ROUNDING = 1e-5  # relative: what float32 may lose inside a model that is compared to 1e-4
APART = 0.02  # relative: what another image must at least make
_GAINS = (1.0, 0.7, 0.5, 0.35)


def fill_steadily_(model: nn.Module, images: Sequence[Tensor]) -> str:
    """Fill ``model``, in evaluation mode, in place, so that images are told apart and float32 and float64 agree.

    Args:
        model: any module.
        images: inputs that it takes, float32 (1, C, H, W) each, at least two.

    Returns:
        What was done beside filling, in words; empty for nothing.
    """
    fill_(model)
    faded = _difference(model, images) < APART
    if faded:
        _, channels, *size = images[0].shape
        calibrate_(model, (size[0], size[1]), channels)
    gain = _scale_down(model, images)
    done = ["batch norms calibrated"] if faded else []
    return ", ".join([*done, *([f"matrices scaled by {gain:g}"] if gain != 1 else [])])


def _difference(model: nn.Module, images: Sequence[Tensor]) -> float:
    """Relative, between what the first two images make."""
    first, second = (outputs_of(model, image) for image in images[:2])
    return least_difference(second, first)


def _scale_down(model: nn.Module, images: Sequence[Tensor]) -> float:
    """What matrices and kernels were multiplied by; the least of the gains where even that is not enough."""
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
    model.train().eval()  # some of timm's keep what they made of weights for inference, until they train again
