"""float16: what would overflow, and what adds up many terms, is computed in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mixzoo
import pytest
import torch
from mixzoo.export.capture import Capture
from mixzoo.export.half import LIMIT, Half, greatest, in_half, with_islands
from mixzoo.export.target import TARGETS
from mixzoo.zoo.fill import fill_
from support import rel_err
from torch import Tensor, nn

AXES = ("batch", "height", "width")
HALF = 5e-3  # relative: some dozens of roundings to 5e-4


class Loud(nn.Module):
    """A convolution whose activations are beyond float16, norms, attention and a square; images -> five numbers."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(1, 16)
        self.mix, self.qkv, self.head = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 48, 1), nn.Linear(16, 5)
        fill_(self)
        with torch.no_grad():
            self.stem.weight *= gain

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.mix(self.norm(x))
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        x = ((q @ k.transpose(1, 2)).softmax(-1) @ v).relu().square()
        return self.head(x.mean(1))


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_activations_beyond_float16_stay_right() -> None:
    """... and without the islands they do not."""
    model, x = Loud(gain=60000.0).eval(), images(2, 3, 64, 64)
    half = in_half(Capture(model, x, AXES))
    assert model.stem(x).abs().max() > 65504
    for image in (x, images(3, 3, 96, 80)):
        assert rel_err(half.run(image), model(image)) < HALF
        assert half.run(image).dtype == torch.float32
    assert rel_err(Half(model)(x), model(x)) == float("inf"), "without islands"


@torch.no_grad()
def test_what_fits_is_computed_in_float16() -> None:
    model, x = Loud(gain=1.0).eval(), images(2, 3, 64, 64)
    nodes = {n.name: n for n in in_half(Capture(model, x, AXES)).program.graph.nodes if "val" in n.meta}
    kind = {str(n.target): n.meta["val"].dtype for n in nodes.values() if n.op == "call_function" and _one(n)}
    for name in ("conv2d.default", "matmul.default", "linear.default"):
        assert kind[f"aten.{name}"] == torch.float16
    for name in ("group_norm.default", "softmax.int", "square.default", "mean.dim"):
        assert kind[f"aten.{name}"] == torch.float32


def _one(node: Any) -> bool:
    return isinstance(node.meta["val"], Tensor)


@torch.no_grad()
def test_sums_over_many_small_terms_keep_their_precision() -> None:
    """16,384 values of about 1: float16 has no number between 2,048 and 2,050."""

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.sum((2, 3)) / 64).relu()

    x = 1 + 0.01 * images(1, 3, 128, 128)
    half = in_half(Capture(Sum(), x, ()))
    assert rel_err(half.run(x), Sum()(x)) < HALF


@pytest.mark.parametrize("mixer", ["linear", "rala", "flow", "attention"])
@torch.no_grad()
def test_mixers_of_the_zoo(mixer: str) -> None:
    """Linear attention adds in float32 by itself, which its graph keeps."""
    model = fill_(mixzoo.create_model("metaformer", depths=(1,) * 4, dims=(8, 16, 24, 32), mixers=mixer)).eval()
    x = images(2, 3, 64, 64)
    capture = Capture(model, x, ())
    half = in_half(capture)
    assert half is in_half(capture) and rel_err(half.run(x), model(x)) < 2 * HALF


@torch.no_grad()
def test_activations_are_measured_in_float32() -> None:
    model, x = Loud(gain=60000.0).eval(), images(1, 3, 64, 64)
    program = torch.export.export(Half(model), (x,))
    sizes = {str(node.target): size for node, size in greatest(program, x).items()}
    assert sizes["aten.conv2d.default"] < LIMIT < sizes["aten.add.Tensor"] and torch.isfinite(model(x)).all()
    assert with_islands(program, x) is program


@pytest.mark.slow
@pytest.mark.skipif(bool(TARGETS["onnx"].unavailable()), reason=str(TARGETS["onnx"].unavailable()))
def test_a_file_of_a_loud_model(tmp_path: Path) -> None:
    import onnx

    model = Loud(gain=60000.0).eval()
    (report,) = mixzoo.export(model, out=tmp_path, name="loud", sizes="64", precision="fp16", dynamic="batch")
    assert report.path.name == "loud_fp16.onnx" and report.error < HALF < report.manifest["tolerance"]
    kinds = {tensor.data_type for tensor in onnx.load(report.path).graph.initializer if tensor.dims}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert report.manifest["artifacts"][0]["operators"]["Cast"] > 2
