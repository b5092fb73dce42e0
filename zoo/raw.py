"""Detectors and segmenters as modules that `mixzoo.export` takes: images in, what the heads give out.

What follows a head in a detector, decoding and suppression, depends on the data and is left to the application.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .dense import DenseBackbone
from .errors import MixzooError

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class RawOutputs(nn.Module):
    """Normalised images (B, C, H, W) -> the tensors that the heads of ``model`` give, in their order.

    Args:
        model: a detector of one stage, of torchvision or mmdetection, or a segmenter of mmsegmentation, with a backbone
            of mixzoo. A segmenter's logits have the size of the images.
        size: (height, width) in pixels that the model is meant for.

    Raises:
        MixzooError: a model of another kind, such as a detector of two stages, whose regions depend on the data.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.run = _runner(model)
        body = next((m for m in model.modules() if isinstance(m, DenseBackbone)), None)
        if body is None:
            raise MixzooError(f"{type(model).__name__} has no backbone of mixzoo: export it with its own library.")
        mean, std = _statistics(model)
        channels = int(getattr(body.body, "in_chans", 3))
        self.pretrained_cfg: dict[str, Any] = {
            "architecture": f"{type(model).__name__.lower()}_{body.model_name}",
            "input_size": (channels, *size),
            "mean": mean,
            "std": std,
        }

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.run(self.model, x)


def _runner(model: Any) -> Any:
    if hasattr(model, "decode_head") and hasattr(model, "extract_feat"):
        return _segmenter
    if hasattr(model, "bbox_head") and hasattr(model, "extract_feat"):
        return _openmmlab_detector
    if hasattr(model, "head") and hasattr(model, "anchor_generator"):
        return _torchvision_detector
    raise MixzooError(
        f"{type(model).__name__} is neither a segmenter nor a detector of one stage: regions of two-stage detectors "
        "depend on the data, so export its backbone alone."
    )


def _segmenter(model: Any, x: Tensor) -> Tensor:
    logits = model.decode_head(model.extract_feat(x))
    return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=model.align_corners)


def _openmmlab_detector(model: Any, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(_flat(model.bbox_head(model.extract_feat(x))))


def _torchvision_detector(model: Any, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(model.head(list(model.backbone(x).values())).values())


def _flat(outputs: Iterable[Any]) -> Iterable[Tensor]:
    for output in outputs:
        yield from [output] if isinstance(output, Tensor) else _flat(output)


def _statistics(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that images, in [0, 1], are normalised with before they enter the model."""
    before = getattr(model, "data_preprocessor", None)
    if before is not None and getattr(before, "mean", None) is not None:
        return tuple((before.mean.flatten() / 255).tolist()), tuple((before.std.flatten() / 255).tolist())
    transform = getattr(model, "transform", None)
    return tuple(getattr(transform, "image_mean", _MEAN)), tuple(getattr(transform, "image_std", _STD))
