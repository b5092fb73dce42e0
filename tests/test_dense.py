"""Backbones from the zoo in segmentation and detection libraries: each builds, and trains a step."""

from __future__ import annotations

import math

import pytest
import torch
from mixzoo.zoo.registry import timm_name
from small import images, make
from torch import Tensor, nn

# dense prediction


@pytest.mark.parametrize("name", ("poolformer_s12", "van_b0"))
@pytest.mark.parametrize("decoder", ("Unet", "FPN"))
def test_segmentation_models_pytorch_trains(name: str, decoder: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = getattr(smp, decoder)(f"tu-{timm_name(name)}", encoder_weights=None, classes=2).train()
    for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout2d)):
        dropout.p = 0.0
    x, target = images(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        out = model(x)
        assert out.shape == (2, 2, 64, 64)
        loss = nn.functional.cross_entropy(out, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert all(p.grad is not None for p in model.encoder.parameters())


class Pyramid(nn.Module):
    """Maps of a feature extractor through torchvision's pyramid, as its detectors want them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.body = make(name, features_only=True)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 32)
        self.out_channels = 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(i): m for i, m in enumerate(self.body(x))})


@pytest.mark.parametrize("name", ("shvit_s1", "poolformer_s12"))
def test_torchvision_detects(name: str) -> None:
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    torch.manual_seed(0)
    backbone = Pyramid(name)
    levels = len(backbone.body.feature_info)
    anchors = AnchorGenerator(tuple((16 * 2**i,) for i in range(levels)), ((0.5, 1.0, 2.0),) * levels)
    model = RetinaNet(backbone, num_classes=3, anchor_generator=anchors, min_size=96, max_size=128).train()
    boxes = {"boxes": torch.tensor([[8.0, 8.0, 60.0, 50.0]]), "labels": torch.tensor([1])}
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = sum(model([images(3, 96, 112)], [boxes]).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    with torch.no_grad():
        (found,) = model.eval()([images(3, 90, 110)])
    assert set(found) == {"boxes", "scores", "labels"} and found["boxes"].shape[1] == 4
