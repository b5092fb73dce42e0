"""What a Core ML package is checked for, and what is written in another way for coremltools."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import mixzoo
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export_doubles import small
from mixzoo.export import ExportError
from mixzoo.export.capture import Capture
from mixzoo.export.constants import fold_constants
from mixzoo.export.precision import Precision
from mixzoo.export.prepare import sha256, size_of
from mixzoo.export.runtimes.coreml_eval import MilEvaluator, MilProgram, variable_type
from mixzoo.export.runtimes.coreml_ops import OPERATORS
from mixzoo.export.target import TARGETS
from mixzoo.zoo.files import atomic_dir
from mixzoo.zoo.fill import fill_
from support import rel_err
from torch import Tensor, nn

TARGET = TARGETS["coreml"]
needs_coremltools = pytest.mark.skipif(bool(TARGET.unavailable()), reason=str(TARGET.unavailable()))


@needs_coremltools
def test_the_file_is_checked_not_what_was_converted(tmp_path: Path) -> None:
    """A damaged weight, an operator without evaluator and one that gives another shape are all found."""
    (report,) = mixzoo.export(small(), to="coreml", out=tmp_path, name="small", sizes="40")
    path = report.path
    content = report.manifest["artifacts"][0]
    assert (content["sha256"], content["bytes"]) == (sha256(path), size_of(path)) and report.error < 1e-5
    assert (
        report.manifest["computed_in"].keys() <= {"fp32", "int32", "bool"}
        and report.manifest["minimum_deployment_target"] == "iOS16"
    )
    text = (tmp_path / "summary.md").read_text()
    assert ("The program read back from every file was run" in text) != report.manifest["in_its_runtime"]
    image = np.random.default_rng(0).standard_normal((1, 3, 40, 40), dtype=np.float32)
    before = TARGET.load(path).outputs(image)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(OPERATORS, "conv")
        with pytest.raises(ExportError, match="conv of the MIL program cannot be evaluated"):
            MilEvaluator(MilProgram(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPERATORS, "conv", lambda a: F.conv2d(a["x"], a["weight"]))
        with pytest.raises(ExportError, match=r"conv .* gives .* as the program says"):
            MilEvaluator(MilProgram(path))(torch.from_numpy(image))
    damage(path)
    assert sha256(path) != content["sha256"]
    after = MilEvaluator(MilProgram(path))(torch.from_numpy(image))[0].numpy()
    assert np.abs(after - before).max() > 0.01 * np.abs(before).max()


def damage(path: Path) -> None:
    """Change the greatest weight in a package's file of weights."""
    (file,) = path.rglob("weight.bin")
    data = np.frombuffer(file.read_bytes(), np.float32).copy()
    at = np.nanargmax(np.where(np.abs(data) < 100, np.abs(data), 0))
    data[at] *= -3
    file.write_bytes(data.tobytes())


@needs_coremltools
def test_a_damaged_package_does_not_reach_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verification reads the package: with a wrong weight in it, the export fails and what was there stays."""
    mixzoo.export(small(), to="coreml", out=tmp_path, name="small", sizes="40")
    digest, write = sha256(tmp_path / "small.mlpackage"), type(TARGET).export

    def spoiled(self: Any, capture: Any, path: Path, options: Any) -> None:
        write(self, capture, path, options)
        damage(path)

    monkeypatch.setattr(type(TARGET), "export", spoiled)
    with pytest.raises(ExportError, match="the file differs from the model"):
        mixzoo.export(small(), to="coreml", out=tmp_path, name="small", sizes="40")
    assert sha256(tmp_path / "small.mlpackage") == digest
    monkeypatch.undo()
    mixzoo.export(small(), to="coreml", out=tmp_path, name="small", sizes="48x40")  # takes the place of the folder
    assert MilProgram(tmp_path / "small.mlpackage").function.inputs["image"].shape == (1, 3, 48, 40)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "small.mlpackage", "summary.md"]


def test_folders_take_each_others_place(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_dir(tmp_path / "out") as folder:
            (folder / "a.package").mkdir()
            (folder / "a.package" / content).write_text(content)
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["a.package", "new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    lines = f"{hashlib.sha256(b'new').hexdigest()}  new\n"
    assert sha256(tmp_path / "out" / "a.package") == hashlib.sha256(lines.encode()).hexdigest()
    assert size_of(tmp_path / "out") == 3


class Indexed(nn.Module):
    """Reads by indices that are clamped, and adds a table that is resized."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 3, 4, 4))

    def forward(self, image: Tensor) -> Tensor:
        at = (torch.arange(image.shape[-1]) - 2).clamp(min=0)
        table = F.interpolate(self.table, image.shape[-2:], mode="bicubic")
        return image.index_select(3, at) * 2 + table


def test_what_the_input_does_not_reach_is_computed_once() -> None:
    capture = Capture(Indexed().eval(), torch.randn(1, 3, 6, 8), ())
    graph = fold_constants(capture.arithmetic())
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert called == ["aten.index_select.default", "aten.mul.Tensor", "aten.add.Tensor"]
    other = 3 * torch.randn(1, 3, 6, 8) + 1
    torch.testing.assert_close(graph(other), capture.module(other))


class InOne(nn.Module):
    """Operators that add a product, with factors that are whole numbers."""

    def forward(self, image: Tensor) -> Tensor:
        rows = image.flatten(0, 1)
        product = torch.baddbmm(rows, rows, rows.mT @ rows, beta=-1, alpha=2)
        return torch.addcmul(product, rows, rows, value=3).unflatten(0, image.shape[:2]) / 100


@needs_coremltools
def test_operators_that_add_a_product(tmp_path: Path) -> None:
    (report,) = mixzoo.export(InOne().eval(), to="coreml", out=tmp_path, name="sums", sizes="8")
    assert report.error < 1e-5 and report.manifest["artifacts"][0]["operators"]["matmul"] == 2


class Inverted(nn.Module):
    """Inverts small numbers, and takes a map apart into one."""

    def forward(self, image: Tensor) -> Tensor:
        (whole,) = image.chunk(1, dim=1)
        return (whole.square() * 1e-3 + 1e-4).reciprocal()


@needs_coremltools
def test_small_numbers_are_inverted_as_they_are(tmp_path: Path) -> None:
    """Core ML's own operator adds 1e-4 to them."""
    (report,) = mixzoo.export(Inverted().eval(), to="coreml", out=tmp_path, name="inverted", sizes="8")
    assert report.error < 1e-6 and "inverse" not in report.manifest["artifacts"][0]["operators"]


class Scaled(nn.Module):
    """Scales and shifts channels sixteen times."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1, 3, 1, 1) + 0.1), nn.Parameter(torch.ones(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        for _ in range(16):
            image = image * self.scale + self.shift
        return image


@needs_coremltools
def test_scales_are_what_they_are(tmp_path: Path) -> None:
    """coremltools makes batch norms of them, each of which divides by the root of 1 + 1e-5: 8e-5 after sixteen."""
    (report,) = mixzoo.export(Scaled().eval(), to="coreml", out=tmp_path, name="scaled", sizes="8")
    assert report.error < 1e-6 and "batch_norm" not in report.manifest["artifacts"][0]["operators"]


class Overflowing(nn.Module):
    """Between two convolutions numbers are beyond float16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = fill_(nn.Conv2d(3, 8, 3)), fill_(nn.Conv2d(8, 6, 3))
        with torch.no_grad():
            self.first.weight *= 1e6
            self.second.weight *= 1e-6

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.second(self.first(image).relu())) * image.mean()


@needs_coremltools
def test_what_overflows_on_the_example_stays_in_float32(tmp_path: Path) -> None:
    model = Overflowing().eval()
    (report,) = mixzoo.export(model, to="coreml", out=tmp_path, name="loud", sizes="16", precision="fp16", dynamic=())
    assert report.error < 5e-3 and report.manifest["computed_in"]["fp16"] > 3
    operations = MilProgram(report.path).operations
    kinds = [variable_type(op.outputs[0]) for op in operations if op.op_type == "conv"]
    assert kinds == ["fp32", "fp32"]


class Bessel(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.special.bessel_j0(image).mean((2, 3))


@needs_coremltools
def test_an_operator_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"coremltools cannot convert the model: .*bessel_j0"):
        mixzoo.export(Bessel().eval(), to="coreml", out=tmp_path, name="bessel", sizes="8")
    assert not list(tmp_path.iterdir())


class Great(nn.Module):
    """Its first convolution comes near to what float16 cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second((30000 * torch.tanh(self.first(x)) + self.first(1e4 * x)) / 30000)


@needs_coremltools
def test_a_layer_in_float32_stays_in_float(tmp_path: Path) -> None:
    """coremltools writes a scale in float16 behind it, which is an error there."""
    module = fill_(Great()).eval().requires_grad_(False)
    images = tuple(torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(4))
    capture = Capture(module, images[0], (), {}).at(Precision("int8", images))
    TARGET.export(capture, tmp_path / "great.mlpackage", {})
    found = torch.from_numpy(TARGET.load(tmp_path / "great.mlpackage").outputs(images[0].numpy())[0])
    assert rel_err(found, module(images[0])) < 0.1 < rel_err(found.flip(1), module(images[0]))
    kinds = [op.op_type for op in MilProgram(tmp_path / "great.mlpackage").operations]
    assert kinds.count("quantize") > 0
