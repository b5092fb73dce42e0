"""Models that write into parts of tensors, and into tensors that are the same for every input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mixzoo
import pytest
import torch
from mixzoo.export.capture import Capture
from mixzoo.export.constants import fold_constants
from mixzoo.export.target import TARGETS
from mixzoo.zoo.fill import fill_
from torch import Tensor, nn


def scaled(x: Tensor) -> Tensor:
    x = x * 1.0
    x[:, 1:, :, 2:] = x[:, 1:, :, 2:] * 2
    return x


def filled(x: Tensor) -> Tensor:
    x = x * 1.0
    x[:, :, 3] = 0.5
    return x


def added(x: Tensor) -> Tensor:
    x = x * 1.0
    x[:, 1:] += 2 * x[:, :7]
    x[:, 0].mul_(3)
    return x


def biased(x: Tensor) -> Tensor:
    """By six axes, as timm's MViT adds its positions to the scores of all but the class token."""
    x = x.flatten(2)[:, :5, :26].reshape(1, 1, 5, 26) * 1.0
    x[:, :, 1:, 2:] = (x[:, :, 1:, 2:].reshape(1, 1, 2, 2, 6, 4) + x[:, :, :1, :1, None, None]).reshape(1, 1, 4, 24)
    return x.expand(-1, 8, -1, -1)


def summed(x: Tensor) -> Tensor:
    total = torch.zeros(1, 8, 16, 16)
    total += x
    total[:, :4] += x[:, 4:]
    return total


FORMS: list[Callable[[Tensor], Tensor]] = [scaled, filled, added, biased, summed]


class Written(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.function = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("form", FORMS)
def test_constants_are_folded_where_something_is_written_into_them(form: Callable[[Tensor], Tensor]) -> None:
    model, x = fill_(Written(form)).eval(), torch.randn(1, 3, 16, 16)
    graph = fold_constants(Capture(model, x, ()).arithmetic())
    for seed in range(3):  # what is written must not be there in the next run
        x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(graph(x), model(x))
    assert not any(
        str(node.target).endswith(("copy_.default", "add_.Tensor", "mul_.Tensor")) for node in graph.graph.nodes
    )


@pytest.mark.parametrize("target", ["coreml", "executorch", "onnx"])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_agrees(form: Callable[[Tensor], Tensor], target: str, tmp_path: Path) -> None:
    if reason := TARGETS[target].unavailable():
        pytest.skip(reason)
    model = fill_(Written(form)).eval()
    (report,) = mixzoo.export(model, to=target, out=tmp_path, name="written", sizes="16", dynamic="none")
    assert report.error < 1e-5
