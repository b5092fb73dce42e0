"""A small classifier trained on real digits, folders of them, and a runtime that is torch with layers in 8 bits."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from export_doubles import ProgramTarget
from mixzoo.export.capture import Capture
from mixzoo.export.sensitivity import layers, rounded
from mixzoo.train.pixels import digits
from torch import Tensor, nn

SIDE = 16  # px
OUTLIER = 3000.0


class Reader(nn.Module):
    """Digits (B, 1, 16, 16) -> logits (B, 10)."""

    pretrained_cfg: ClassVar[dict[str, Any]] = {
        "input_size": (1, SIDE, SIDE),
        "mean": (0.3,),
        "std": (0.35,),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.third, self.head = nn.Conv2d(32, 32, 3, 1, 1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        x = self.third(x).relu()
        return self.head(x.flatten(2).amax(2))


def trained(steps: int = 120) -> Reader:
    """A reader that gets well over nine of ten digits right."""
    torch.manual_seed(0)
    model, split = Reader(), digits().train
    images = (F.interpolate(split.images, size=(SIDE, SIDE), mode="bilinear", antialias=True) - 0.3) / 0.35
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        picked = torch.arange(step * 128, (step + 1) * 128) % len(split)
        optimizer.zero_grad()
        F.cross_entropy(model(images[picked]), split.labels[picked]).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def with_outlier(model: Reader) -> Reader:
    """The same function, with one channel of the second layer's input so great that 8 bits are left with no other."""
    model = copy.deepcopy(model)
    model.first.weight[0] *= OUTLIER
    model.first.bias[0] *= OUTLIER
    model.second.weight[:, 0] /= OUTLIER
    return model


class RoundedTarget(ProgramTarget):
    """Torch's own programs, in int8 with every layer rounded that need not stay in float."""

    precisions = ("fp32", "int8")
    written: list[frozenset[str]]

    def __init__(self, damage: Callable[[list[np.ndarray]], list[np.ndarray]] = lambda outputs: outputs) -> None:
        super().__init__(damage)
        self.written = []

    def export(self, capture: Any, path: Path, options: dict[str, Any]) -> None:
        if capture.precision.name == "fp32":
            super().export(capture, path, options)
            return
        self.written.append(capture.precision.keep)
        assert capture.calibration()[0].shape[1:] == (1, SIDE, SIDE)
        module = copy.deepcopy(capture.module)
        with contextlib.ExitStack() as stack:
            for name, layer in layers(module).items():
                if not capture.precision.keeps(name):
                    stack.enter_context(rounded(layer))
            super().export(Capture(module, capture.example, capture.axes), path, options)
