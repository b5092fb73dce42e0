"""Backbones for torchvision's detectors: Faster R-CNN, Mask R-CNN, RetinaNet, FCOS.

from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

MaskRCNN(backbone_with_fpn("van_b2", pretrained=True), num_classes=91)
RetinaNet(backbone_with_fpn("shvit_s4", strides=(8, 16, 32), extra_blocks=LastLevelP6P7(256, 256)), num_classes=91)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelMaxPool

from .dense import DenseBackbone


class PyramidBackbone(BackboneWithFPN):
    """Images (B, C, H, W) -> maps of one width: {"0": (B, out_channels, H / 4, W / 4), "1": ..., "pool": ...}.

    Attributes:
        out_channels: of every map, as torchvision's detectors ask for.
        strides: of the maps before the extra blocks.
    """

    def __init__(self, body: DenseBackbone, out_channels: int, extra_blocks: ExtraFPNBlock | None = None) -> None:
        nn.Module.__init__(self)  # torchvision's would take the model apart by the names of its children
        self.body = body
        extra = extra_blocks or LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(list(body.channels), out_channels, extra)
        self.out_channels, self.strides = out_channels, body.strides

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(self.fpn(OrderedDict((str(i), level) for i, level in enumerate(self.body(x)))))


def backbone_with_fpn(
    model: str,
    out_channels: int = 256,
    strides: Sequence[int] = (4, 8, 16, 32),
    extra_blocks: ExtraFPNBlock | None = None,
    **options: Any,
) -> PyramidBackbone:
    """A backbone with torchvision's pyramid on it, as its detectors take one.

    Args:
        model: a model or family of the zoo, or a model of timm.
        out_channels: of every map of the pyramid.
        strides: of its maps; those that the model does not have are made, see `DenseBackbone`.
        extra_blocks: what adds coarser maps, in torchvision one more by pooling where this is None.
        options: those of `DenseBackbone` (frozen_stages, norm_eval, checkpoint, ...) and of the model.

    Raises:
        UnknownModelError, MixzooError, CheckpointError: as `DenseBackbone`.
    """
    return PyramidBackbone(DenseBackbone(model, strides=strides, **options), out_channels, extra_blocks)
