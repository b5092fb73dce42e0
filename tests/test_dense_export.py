"""Detectors with a backbone of the zoo as ONNX files, run and compared at several sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mixzoo
import pytest
import torch
from mixzoo.zoo.detection import backbone_with_fpn
from mixzoo.zoo.errors import MixzooError
from mixzoo.zoo.fill import fill_
from mixzoo.zoo.raw import RawOutputs
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet, retinanet_resnet50_fpn
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

SIZE, OTHER = (160, 208), (128, 190)


def detector(kind: Any, name: str = "shvit_s1") -> nn.Module:
    model = kind(backbone_with_fpn(name, 32, (8, 16, 32), LastLevelP6P7(32, 32)), num_classes=5).eval()
    fill_(model)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", (RetinaNet, FCOS))
def test_one_file_for_every_size(kind: Any, tmp_path: Path) -> None:
    (report,) = mixzoo.export(RawOutputs(detector(kind), SIZE), out=tmp_path, sizes=(SIZE, OTHER), batches=(1, 2))
    assert report.dynamic_axes == ("batch", "height", "width")
    assert len(report.files) == 1 and report.error < 1e-4 and report.error > 0
    (artifact,) = report.manifest["artifacts"]
    sizes = {(check["height"], check["width"]) for check in artifact["checks"]}
    assert {SIZE, OTHER} < sizes  # and others, that nobody asked for


def test_raw_outputs_are_those_of_the_heads() -> None:
    model = detector(RetinaNet)
    raw = RawOutputs(model, SIZE).eval()
    x = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    logits, boxes = raw(x)
    heads = model.head(list(model.backbone(x).values()))  # type: ignore[operator]
    assert torch.equal(logits, heads["cls_logits"]) and torch.equal(boxes, heads["bbox_regression"])
    assert raw.pretrained_cfg["mean"] == (0.485, 0.456, 0.406) and raw.pretrained_cfg["input_size"] == (3, *SIZE)


def test_what_cannot_be_exported_is_refused() -> None:
    with pytest.raises(MixzooError, match="depend on the data"):
        RawOutputs(FasterRCNN(backbone_with_fpn("shvit_s1", 32), num_classes=3), SIZE)
    with pytest.raises(MixzooError, match="no backbone of mixzoo"):
        RawOutputs(retinanet_resnet50_fpn(weights=None, weights_backbone=None), SIZE)
