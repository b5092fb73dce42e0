"""Functions that are written as others while a model is captured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mixzoo
import pytest
import torch
import torch.nn.functional as F
from mixzoo.export.capture import Capture
from mixzoo.export.check import check
from mixzoo.export.resizing import smoothed
from mixzoo.export.rewriting import CAPTURED, Rewriting, attention, fold
from mixzoo.export.target import TARGETS
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


RESIZED: list[dict[str, Any]] = [
    {"size": (7, 9)},
    {"size": 23},
    {"size": (1, 30)},
    {"size": (12, 2)},
    {"scale_factor": 1.7},
    {"scale_factor": (0.3, 0.45)},
    {"scale_factor": (0.3, 2.45), "recompute_scale_factor": True},
]


@pytest.mark.parametrize("mode", ("bilinear", "bicubic"))
@pytest.mark.parametrize("options", RESIZED, ids=str)
def test_antialiasing_is_a_product_with_matrices(mode: str, options: dict[str, Any]) -> None:
    x = torch.rand(2, 3, 12, 20)
    expected = F.interpolate(x, mode=mode, antialias=True, **options)
    assert rel_err(smoothed(x, mode=mode, antialias=True, **options), expected) < 2e-6
    exact = F.interpolate(x.double(), mode=mode, antialias=True, **options)
    assert rel_err(smoothed(x.double(), mode=mode, antialias=True, **options), exact) < 1e-12


def test_a_column_alone_is_resized_as_two() -> None:
    """... where torch repeats its first value."""
    x = torch.rand(1, 2, 9, 1)
    expected = F.interpolate(x.expand(1, 2, 9, 2), (5, 2), mode="bicubic", antialias=True)[..., :1]
    assert rel_err(smoothed(x, (5, 1), mode="bicubic", antialias=True), expected) < 1e-6


def test_other_ways_of_resizing_stay_as_they_are() -> None:
    x, volume = torch.rand(1, 2, 4, 5), torch.rand(1, 2, 3, 4, 5)
    for given, options in ((x, {"mode": "bilinear"}), (x, {"mode": "nearest"}), (volume, {"mode": "trilinear"})):
        assert torch.equal(
            smoothed(given, scale_factor=2.0, **options), F.interpolate(given, scale_factor=2.0, **options)
        )
    corners = {"size": (2, 3), "mode": "bilinear", "align_corners": True, "antialias": True}
    assert torch.equal(smoothed(x, **corners), F.interpolate(x, **corners))


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


@pytest.mark.parametrize("kernel", (1, 2, 3, (3, 2)))
@pytest.mark.parametrize("stride", (1, 2, 3, (2, 1)))
@pytest.mark.parametrize("padding", (0, 1, (2, 0)))
def test_windows_are_added_where_they_overlap(kernel: Any, stride: Any, padding: Any) -> None:
    """Also where strides leave positions without a window, and where windows lie apart."""
    for dilation in (1, (1, 3)):
        for size in ((9, 9), (10, 13)):
            windows = F.unfold(torch.randn(2, 3, *size, dtype=torch.float64), kernel, dilation, padding, stride)
            for x in (windows, windows[0]):
                expected = F.fold(x, size, kernel, dilation, padding, stride)
                out = fold(x, size, kernel, dilation, padding, stride)
                assert out.shape == expected.shape and rel_err(out, expected) < 1e-12


class Outlook(nn.Module):
    """Windows that are weighted, put back and added, as timm's VOLO has them, and others by strides, as HaloNet."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.q = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        v = self.v(x)
        b, c, h, w = v.shape
        v = F.fold(F.unfold(v, 3, padding=1, stride=2).softmax(1), (h, w), 3, padding=1, stride=2)
        k = F.pad(v, (1, 1, 1, 1)).unfold(2, 6, 4).unfold(3, 6, 4).reshape(b, c, -1, 36).permute(0, 2, 1, 3)
        q = self.q(v).reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c, 16)
        return (q.mT @ k).softmax(-1).mean(1).flatten(1)


@pytest.mark.parametrize("target", ("onnx", "openvino", "litert", "coreml", "ncnn"))
def test_overlapping_windows_are_written(target: str, tmp_path: Path) -> None:
    if reason := TARGETS[target].unavailable():
        pytest.skip(reason)
    model = fill_(Outlook()).eval()
    (verdict,) = check(model, target, sizes="32x48")
    assert verdict.clean, verdict.findings
    (report,) = mixzoo.export(model, to=target, out=tmp_path, name="windows", sizes="32x48")
    assert report.error < 1e-5


class Bounded(nn.Module):
    """Bounds that are buffers of one number, as timm's Gemma has them, of which onnxscript makes Clips."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, 2)
        for i, name in enumerate(("low", "high", "least", "most")):
            self.register_buffer(name, torch.tensor((-0.4, 0.5, -0.2, 0.3)[i]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return (torch.clamp(x, self.low, self.high) * torch.clamp(x, self.least, self.most).mean()).flatten(1)


@pytest.mark.skipif(bool(TARGETS["onnx"].unavailable()), reason=str(TARGETS["onnx"].unavailable()))
def test_constants_of_one_name_are_all_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (report,) = mixzoo.export(Bounded().eval(), to="onnx", out=tmp_path, name="bounded", sizes="32", dynamic="none")
    assert report.error < 1e-5


class Padded(nn.Module):
    """A pooling as TensorFlow pads it, in timm's ResNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.pad(self.layer(x), (0, 1, 0, 1), value=float("-inf")), 3, 2)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("target", ("ncnn", "litert", "coreml"))
def test_padding_without_end_is_written(target: str, tmp_path: Path) -> None:
    if reason := TARGETS[target].unavailable():
        pytest.skip(reason)
    (report,) = mixzoo.export(fill_(Padded()).eval(), to=target, out=tmp_path, name="padded", sizes="32x48")
    assert report.error < 1e-5
