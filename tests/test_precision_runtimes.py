"""Lower precision in every runtime: files of float16 and of eight bits, and what of them stays in float32."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import mixzoo
import numpy as np
import pytest
import torch
from mixzoo.export import ExportError
from mixzoo.export.capture import Capture
from mixzoo.export.precision import Precision
from mixzoo.export.prepare import size_of
from mixzoo.export.protocol import Runner, not_run_because
from mixzoo.export.sensitivity import layers
from mixzoo.export.target import TARGETS
from mixzoo.train.pixels import digits, write_images
from precision_doubles import trained, with_outlier
from timm.layers import LayerNorm2d
from torch import Tensor, nn

LOWER = [
    pytest.param(name, precision, marks=pytest.mark.skipif(bool(reason), reason=str(reason)))
    for name, target in TARGETS.items()
    if name not in ("onnx", "openvino")  # tests/test_precision.py has those
    for reason in (target.unavailable(),)
    for precision in target.precisions
    if precision != "fp32"
]
QUANTISED = [case for case in LOWER if case.values[1] == "int8"]
EASY = [
    pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=str(reason)))
    for name in ("litert", "coreml")  # which quantise in seconds
    for reason in (TARGETS[name].unavailable(),)
]
SIDE = 32
ERROR = {"fp16": 5e-3, "int8": 0.15}
SIZE = {"fp16": 0.65, "int8": 0.5}  # of the float32 file
NO_SMALLER = [("executorch", "fp16")]  # XNNPACK's parts hold the weights of convolutions in float32


class Net(nn.Module):
    """A convolution, a norm, softmax attention, linear attention whose sums grow with the map, and a classifier."""

    def __init__(self, dim: int = 48) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 4, 4)
        self.norm = LayerNorm2d(dim)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.linear = nn.Conv2d(dim, 3 * dim, 1)
        self.ffn = nn.Sequential(nn.Conv2d(dim, 4 * dim, 1), nn.ReLU(), nn.Conv2d(4 * dim, dim, 1))
        self.fc = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + _attention(self.qkv(self.norm(x)))
        x = x + _linear_attention(self.linear(x))
        x = x + self.ffn(x)
        return self.fc(self.norm(x).mean((2, 3)))


def _attention(qkv: Tensor) -> Tensor:
    b, _, h, w = qkv.shape
    q, k, v = qkv.flatten(2).chunk(3, dim=1)  # (B, C, N)
    return (v @ (q.transpose(1, 2) @ k / 7).softmax(-1).transpose(1, 2)).reshape(b, -1, h, w)


def _linear_attention(qkv: Tensor) -> Tensor:
    b, _, h, w = qkv.shape
    q, k, v = qkv.flatten(2).chunk(3, dim=1)  # (B, C, N)
    q, k = q.relu(), k.relu()
    sums = v @ k.transpose(1, 2)  # (B, C, C)
    return (sums @ q / (k.sum(-1, keepdim=True).transpose(1, 2) @ q + 1e-3)).reshape(b, -1, h, w)


@cache
def net(gain: float = 1.0) -> nn.Module:
    """With activations that are ``gain`` times as large as its images."""
    torch.manual_seed(0)
    model = Net().eval().requires_grad_(False)
    model.stem.weight *= gain * 4
    return model


def images(count: int, seed: int = 0) -> Tensor:
    """Waves of random directions, (count, 3, SIDE, SIDE)."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.linspace(0, 6, SIDE)
    a, b, c = torch.rand(3, count, 3, 1, 1, generator=generator) * 2 - 1
    return torch.sin(a * 3 * at[:, None] + b * 3 * at + c * 6) + c


CALIBRATION = tuple(images(12, seed=1).split(1))


def precision_of(name: str, keep: frozenset[str] = frozenset()) -> Precision:
    return Precision(name, CALIBRATION if name == "int8" else (), keep)


@cache
def capture(gain: float = 1.0) -> Capture:
    return Capture(net(gain), images(1), ())


def written(folder: Path, name: str, precision: Precision, gain: float = 1.0) -> Path:
    target = TARGETS[name]
    path = folder / f"net_{precision.name}_{len(precision.keep)}{target.suffix}"
    target.export(capture(gain).at(precision), path, {})
    return path


def loaded(name: str, path: Path) -> Runner:
    """The file in its runtime, or what it was made from where that cannot run."""
    target: Any = TARGETS[name]
    return target.load_source(path, 1) if not_run_because(target) else target.load(path, 1)


def errors(runner: Runner, gain: float = 1.0) -> tuple[float, float]:
    """The greatest relative error on other images than those of calibration, and what the wrong image would make."""
    mine, theirs = [], []
    for image, other in zip(images(4, seed=2).split(1), images(4, seed=3).split(1), strict=True):
        with torch.no_grad():
            wanted, wrong = net(gain)(image).numpy(), net(gain)(other).numpy()
        scale = np.abs(wanted).max()
        (got,) = runner.outputs(image.numpy())
        assert got.dtype == np.float32 and got.shape == wanted.shape
        mine.append(np.abs(got - wanted).max() / scale)
        theirs.append(np.abs(wrong - wanted).max() / scale)
    return float(np.max(mine)), float(np.min(theirs))


def whole_size(path: Path) -> int:
    """Bytes of the file and of the weights beside it."""
    weights = path.with_suffix(".bin")
    return size_of(path) + (size_of(weights) if weights.is_file() else 0)


@cache
def float_size(name: str) -> int:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return whole_size(written(Path(folder), name, Precision()))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), LOWER)
def test_a_file_of_lower_precision_is_smaller_and_right(name: str, precision: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, precision_of(precision))
    error, wrong = errors(loaded(name, path))
    assert 1e-6 < error < ERROR[precision] < wrong / 2  # it was rounded, and another image would be seen
    if not not_run_because(TARGETS[name]) and (name, precision) not in NO_SMALLER:
        assert whole_size(path) < SIZE[precision] * float_size(name)
    facts = TARGETS[name].describe(path)
    assert {t.dtype for t in (*facts.inputs, *facts.outputs)} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [case for case in LOWER if case.values[1] == "fp16"])
def test_large_activations_do_not_overflow(name: str, precision: str, tmp_path: Path) -> None:
    """Images a thousand times as large: squares and sums in norms and attention are beyond float16."""
    gain = 1000.0
    naive = _in_half(net(gain), images(4, seed=2))
    assert not torch.isfinite(naive).all()  # all of it in float16 does overflow
    error, wrong = errors(loaded(name, written(tmp_path, name, precision_of(precision), gain)), gain)
    assert error < ERROR[precision] < wrong / 2


def _in_half(model: nn.Module, x: Tensor) -> Tensor:
    import copy

    with torch.no_grad():
        return copy.deepcopy(model).half()(x.half())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), QUANTISED)
def test_what_is_to_stay_in_float_does(name: str, precision: str, tmp_path: Path) -> None:
    """With more layers in float a file is larger, and nearer to the model."""
    files = [
        written(tmp_path, name, precision_of(precision, keep))
        for keep in (frozenset(), frozenset({"ffn.2"}), frozenset(layers(net())) - {"qkv"})
    ]
    first, _, last = (errors(loaded(name, path))[0] for path in files)
    assert last < first / 2
    if not not_run_because(TARGETS[name]):
        none, one, most = map(whole_size, files)
        assert none < one < most


@pytest.mark.skipif(bool(TARGETS["ncnn"].unavailable()), reason=str(TARGETS["ncnn"].unavailable()))
def test_ncnn_has_no_quantiser_and_says_so(tmp_path: Path) -> None:
    from PIL import Image

    for index in range(2):
        Image.fromarray(np.full((40, 40, 3), 100 * index, np.uint8)).save(tmp_path / f"{index}.png")
    with pytest.raises(ExportError, match=r"ncnn2table and ncnn2int8, is not in its Python packages: .*fp16"):
        mixzoo.export(net(), to="ncnn", out=tmp_path / "out", sizes="32", precision="int8", calibration=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(bool(TARGETS["tensorrt"].unavailable()), reason=str(TARGETS["tensorrt"].unavailable()))
@pytest.mark.parametrize(("precision", "kind"), [("fp16", "Half"), ("int8", "Int8")])
def test_an_engine_computes_in_what_its_source_says(precision: str, kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, "tensorrt", precision_of(precision))
    found = TARGETS["tensorrt"].describe(path).extra["layer_precision"]
    assert found.get(kind, 0) > 0 and kind not in _float_layers(tmp_path)


def _float_layers(folder: Path) -> dict[str, int]:
    path = written(folder, "tensorrt", Precision())
    layers: dict[str, int] = TARGETS["tensorrt"].describe(path).extra["layer_precision"]
    return layers


@pytest.mark.slow
@pytest.mark.parametrize("name", EASY)
def test_layers_that_eight_bits_hurt_are_put_back(name: str, tmp_path: Path) -> None:
    """A model trained on digits, with a layer that eight bits hurt: the file keeps it in float, and so its accuracy."""
    data = digits()
    folders = {
        "calibration": write_images(data.train, data.classes, tmp_path / "calibration", 48),
        "labelled": write_images(data.test, data.classes, tmp_path / "labelled", 120),
    }
    model = with_outlier(trained())
    (report,) = mixzoo.export(
        model, to=name, out=tmp_path / "out", name="reader", precision="int8", dynamic=(), **folders
    )
    (item,) = report.manifest["artifacts"]
    judged = item["judged"]
    assert judged["kept_in_float"][0] == "second" and len(judged["kept_in_float"]) < judged["layers"] == 4
    assert judged["drop"] <= 1.0 and judged["accuracy_of_original"] > 0.9 and judged["images"] == 120
    assert (item["latency"] is not None) == TARGETS[name].timed
