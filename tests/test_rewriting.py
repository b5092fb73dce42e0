"""Functions that are written as others while a model is captured."""

from __future__ import annotations

from pathlib import Path

import mixzoo
import pytest
import torch
import torch.nn.functional as F
from mixzoo.export.capture import Capture
from mixzoo.export.rewriting import CAPTURED, Rewriting, attention
from mixzoo.zoo.fill import fill_
from support import rel_err
from torch import Tensor, nn


@pytest.mark.parametrize("rank", (2, 3, 4, 5, 6))
@pytest.mark.parametrize("mask", ("none", "whole", "of keys"))
def test_attention_of_any_axes_is_of_four(rank: int, mask: str) -> None:
    torch.manual_seed(0)
    lead = (2, 3, 2, 2)[: rank - 2]
    q, k, v = (torch.randn(*lead, n, width) for n, width in ((5, 4), (7, 4), (7, 6)))
    added = {"none": None, "whole": torch.randn(*lead, 5, 7), "of keys": torch.randn(1, 7)}[mask]
    expected = F.scaled_dot_product_attention(q, k, v, added, scale=0.3)
    seen: list[int] = []

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is F.scaled_dot_product_attention:
                seen.append(args[0].ndim)
            return func(*args, **(kwargs or {}))

    with Seen():
        out = attention(q, k, v, added, scale=0.3)
    assert out.shape == expected.shape and rel_err(out, expected) < 1e-5 and seen == [4]


@pytest.mark.parametrize("side", (1, 4, 5, (3, None), (7, 20)))
def test_the_greatest_of_cells(side: int | tuple[int, int | None]) -> None:
    x = torch.randn(2, 3, 12, 20)
    program = torch.export.export(Pooled(side), (x,))
    with Rewriting(CAPTURED):
        rewritten = torch.export.export(Pooled(side), (x,))
    assert torch.equal(rewritten.module()(x), program.module()(x))
    assert "adaptive_max" in str(program.graph) and "adaptive_max" not in str(rewritten.graph)


class Pooled(nn.Module):
    def __init__(self, side: int | tuple[int, int | None]) -> None:
        super().__init__()
        self.pool = nn.AdaptiveMaxPool2d(side)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


class Windows(nn.Module):
    """Attention of five axes, as timm's Hiera has it, which torch.onnx does not write."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(3, 24, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.qkv(x)
        b, c, h, w = x.shape
        q, k, v = x.reshape(b, 3, 2, c // 6, h * w // 4, 4).permute(1, 0, 2, 4, 5, 3).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).flatten(1).mean(1, keepdim=True)


def test_it_is_written_as_onnx(tmp_path: Path) -> None:
    model = fill_(Windows()).eval()
    ranks = {
        node.args[0].meta["val"].ndim
        for node in Capture(model, torch.randn(2, 3, 16, 32), ("batch",)).program.graph.nodes
        if "scaled_dot_product" in str(node.target)
    }
    assert ranks == {4}
    (report,) = mixzoo.export(model, to="onnx", out=tmp_path, name="windows", sizes="16x32", dynamic="batch")
    assert report.error < 1e-5
