"""Training at several sizes at once, with features that agree across them (ResFormer, arXiv:2212.00776).

Each step is made with the same images at every size, the largest first, and the losses are averaged. A smaller size's
features are drawn to those of the next larger one: smooth L1 to what a layer norm makes of them, without gradient.
Features are what enters the classifier.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import ClassifierInput
from .schema import ResolutionsRecipe


class Resolutions:
    """The loss over all sizes.

    Args:
        recipe: the sizes, and how much agreement counts.
        model: not wrapped; its classifier is watched.
    """

    def __init__(self, recipe: ResolutionsRecipe, model: nn.Module) -> None:
        self.sizes, self.weight = sorted(recipe.sizes, reverse=True), recipe.consistency
        self.entered = ClassifierInput(model)

    def __call__(self, loss_of: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """``loss_of`` gives the loss of images (B, C, H, W) of any size."""
        losses, larger = [], None
        for size in self.sizes:
            losses.append(loss_of(resized(images, size)))
            if larger is not None and self.weight:
                losses.append(self.weight * agreement(self.entered.features, larger))
            larger = self.entered.features.detach()
        return torch.stack(losses).sum() / len(self.sizes)


def resized(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) at ``size`` x ``size``."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)


def agreement(features: Tensor, larger: Tensor) -> Tensor:
    """How far features (B, D) are from those of a larger size."""
    return F.smooth_l1_loss(features.float(), F.layer_norm(larger.float(), larger.shape[-1:]))
