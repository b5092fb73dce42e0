"""Features of a teacher that a student's are drawn to, through a trained projection (FitNets, arXiv:1412.6550).

    distance = mean (P(s(x)) - t(x))^2

s and t are what enters the classifiers, (B, C), or the last maps, (B, C, H, W), of student and teacher for the same
images. P takes the student's width to the teacher's: a linear layer or, for maps, a convolution of one pixel. It is
trained with the student, and no part of the result. Of two maps the larger is averaged to the smaller's size.

FitNets have half of the sum in place of the mean, compare maps in the middle of both models, and do so before labels
are looked at. Here both losses are one sum, as in timm's `FeatureDistillationTask`, which knows pooled features alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import ClassifierInput, ModelError
from .schema import Recipe


class Pooled:
    """A model, read where its classifier begins: images (B, C, H, W) -> (what it says, features (B, D))."""

    shape: ClassVar = "(B, C)"

    def __init__(self, model: nn.Module) -> None:
        self.model, self.entered = model, ClassifierInput(model)

    def __call__(self, images: Tensor) -> tuple[Any, Tensor]:
        outputs = self.model(images)
        return outputs, self.entered.features

    @staticmethod
    def projection(ours: int, theirs: int) -> nn.Module:
        return nn.Linear(ours, theirs)


class LastMap:
    """A model, read where its head begins: images -> (what it says, features (B, D, H', W')); class tokens left out."""

    shape: ClassVar = "(B, C, H, W)"

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    def __call__(self, images: Tensor) -> tuple[Any, Tensor]:
        features = self.model.forward_features(images)
        return self.model.forward_head(features), self._as_map(features)

    def _as_map(self, features: Tensor) -> Tensor:
        if features.ndim == 4 and getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return features.permute(0, 3, 1, 2)
        if features.ndim != 3:
            return features
        tokens = features[:, getattr(self.model, "num_prefix_tokens", 0) :]  # (B, N, C)
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).unflatten(2, (side, side)) if side**2 == tokens.shape[1] else features

    @staticmethod
    def projection(ours: int, theirs: int) -> nn.Module:
        return nn.Conv2d(ours, theirs, 1)


Reader = Pooled | LastMap
READERS: dict[str, type[Pooled] | type[LastMap]] = {"pooled": Pooled, "map": LastMap}


class Imitator(nn.Module):
    """A student beside its projection: images (B, C, H, W) -> (what it says, its features in the teacher's width).

    Args:
        student: the model.
        teacher: reads the features that it is drawn to; both are run once, for their widths.
        recipe: of the run.

    Raises:
        ModelError: one of the two has no such features.
    """

    def __init__(self, student: nn.Module, teacher: Reader, recipe: Recipe) -> None:
        super().__init__()
        self.student, self.read = student, READERS[recipe.distillation.features](student)
        device = next(student.parameters()).device
        image = torch.zeros(1, len(recipe.data.mean), recipe.data.size, recipe.data.size, device=device)
        ours, theirs = _width(self.read, image, "student"), _width(teacher, image, "teacher")
        self.projection = self.read.projection(ours, theirs).to(device)

    def forward(self, images: Tensor) -> tuple[Any, Tensor]:
        outputs, features = self.read(images)
        return outputs, self.projection(features)


@torch.no_grad()
def _width(reader: Reader, image: Tensor, name: str) -> int:
    training = reader.model.training
    reader.model.eval()
    features = reader(image)[1]
    reader.model.train(training)
    if features.ndim != reader.shape.count(",") + 1:
        other = next(kind for kind, made in READERS.items() if not isinstance(reader, made))
        raise ModelError(
            f"The {name}'s features for an image are {tuple(features.shape)}, not {reader.shape}: "
            f"set distillation.features={other}."
        )
    return features.shape[1]


def distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean square of the difference of two features of one width, in float32."""
    ours, theirs = ours.float(), theirs.float()
    if ours.ndim == 4 and ours.shape != theirs.shape:
        size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
        ours, theirs = F.adaptive_avg_pool2d(ours, size), F.adaptive_avg_pool2d(theirs, size)
    return F.mse_loss(ours, theirs)
