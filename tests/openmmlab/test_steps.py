"""One step of Mask R-CNN and of Semantic FPN with every kind of backbone, at a size that no stride divides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixzoo.blocks.mixers import MIXERS
from small_detectors import SCENES, batch, build
from torch import Tensor, nn

SIZE = (140, 180)  # height, width
FOUR: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (16, 32, 48, 64)}
THREE: dict[str, Any] = {"depths": (1, 1, 1), "dims": (32, 48, 64), "strides": (8, 16, 32, 64)}
FAMILIES: dict[str, dict[str, Any]] = {
    "shvit": {"model": "shvit", **THREE},
    "efficientvit": {"model": "efficientvit", **THREE, "num_heads": (2, 2, 2)},
    "poolformer": {"model": "metaformer", **FOUR, "mixer": "pool"},
    "van": {"model": "van", **FOUR},
    "fcaformer": {"model": "fcaformer", "depths": (1, 1, 2, 2), "dims": (16, 32, 48, 64), "num_heads": (0, 0, 3, 4)},
}
every_kind = pytest.mark.parametrize("kind", SCENES)


def step(kind: str, backbone: dict[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model after a backward pass, and its losses."""
    torch.manual_seed(0)
    model = build(kind, backbone).train()
    for parameter in model.backbone.parameters():  # what ends in a norm that starts at zero gets no gradient at first
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    data = model.data_preprocessor(batch(kind, *SIZE), training=True)
    assert data["inputs"].shape == (2, 3, *SIZE)
    total, losses = model.parse_losses(model(**data, mode="loss"))
    total.backward()
    return model, losses


def check(kind: str, backbone: dict[str, Any]) -> None:
    """Losses are numbers, and gradients reach every parameter."""
    model, losses = step(kind, backbone)
    assert all(bool(loss.isfinite()) for loss in losses.values())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    without = {name for name, grad in gradients.items() if grad is None or not bool(grad.isfinite().all())}
    assert not without, without
    zero = {n.removeprefix("backbone.") for n, g in gradients.items() if n.startswith("backbone.") and not g.any()}
    assert not zero, zero


@every_kind
@pytest.mark.parametrize("family", FAMILIES)
def test_families(kind: str, family: str) -> None:
    check(kind, FAMILIES[family])


@every_kind
@pytest.mark.parametrize("mixer", MIXERS)
def test_mixers(kind: str, mixer: str) -> None:
    check(kind, {"model": "metaformer", **FOUR, "mixer": mixer})
