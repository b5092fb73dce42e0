"""Every runtime: a file written for it does there what the model does, and its manifest says what is in it."""

from __future__ import annotations

import io
import json
import re
import types
from pathlib import Path
from typing import Any

import mixzoo
import pytest
import torch
import torch.nn.functional as F
from export_doubles import Pyramid, mixed, small, stage
from mixzoo.export import ExportError, IncompleteError
from mixzoo.export.protocol import not_run_because
from mixzoo.export.runtimes import executorch as executorch_target
from mixzoo.export.runtimes import ncnn as ncnn_target
from mixzoo.export.runtimes import tensorrt as tensorrt_target
from mixzoo.export.target import TARGETS
from mixzoo.export.words import render, summary
from mixzoo.zoo.fill import fill_
from rich.console import Console
from torch import Tensor, nn

RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=str(reason)))
    for name, target in TARGETS.items()
    for reason in (target.unavailable(),)
]
ACCELERATED = ("litert", "executorch")
every_runtime = pytest.mark.parametrize("name", RUNTIMES)


@pytest.mark.slow
@every_runtime
def test_a_backbone_of_four_mixers(name: str, tmp_path: Path) -> None:
    (report,) = mixzoo.export(mixed(), to=name, out=tmp_path, name="mixed", sizes="64x96", batches="2")
    content = report.manifest
    reason = not_run_because(TARGETS[name])
    assert report.error <= content["tolerance"] and content["verified"] == (reason is None)
    assert content["run_by"] == (None if reason else TARGETS[name].runtime)
    assert set(report.dynamic_axes) in (set(), {"batch", "height", "width"})
    assert report.dynamic_axes or name != "executorch"  # not even attention's batch is taken for constant
    (item,) = content["artifacts"]
    assert 0 < item["max_rank"] <= 5 and item["nodes"] == sum(item["operators"].values()) > 20
    assert [t["shape"][1] for t in item["inputs"]] == [3] and item["outputs"][0]["shape"][-1] == 10
    if not report.dynamic_axes:
        batch = 2 if TARGETS[name].batched else 1
        assert item["inputs"][0]["shape"] == [batch, 3, 64, 96] and item["outputs"][0]["shape"] == [batch, 10]
    assert item["bytes"] + sum(c["bytes"] for c in item["companions"]) > 4 * content["parameters"] * 0.9
    assert all(c["error"] <= 1e-4 < 1e-2 < c["negative_control"] for c in item["checks"])
    if TARGETS[name].timed and not reason:
        assert item["latency"]["file_ms"] > 0 and item["latency"]["batch"] == 2
    else:
        assert item["latency"] is None and "not taken" in summary(content)
    assert (item["delegated"] is not None) == (name in ACCELERATED)
    if item["delegated"]:
        part = item["delegated"]
        inside, outside = part["nodes"], sum(part["rest"].values())
        assert part["share"] == pytest.approx(inside / (inside + outside), abs=1e-3) and part["share"] > 0.3
    assert json.loads((tmp_path / "manifest.json").read_text()) == content
    assert (reason or TARGETS[name].runtime) in summary(content)


class Enlarged(nn.Module):
    """Nearest neighbours with whole factors and others, by size and by factors."""

    def forward(self, image: Tensor) -> Tensor:
        small = F.avg_pool2d(image, 2)[:, :, :, 1:]
        whole, other = F.interpolate(small, scale_factor=3.0), F.interpolate(small, scale_factor=(1.7, 2.3))
        return F.interpolate(whole, (29, 31)) + F.interpolate(other, (29, 31))


class Smoothed(nn.Module):
    """Antialiasing of a map and of a table that is as large."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = fill_(nn.Conv2d(3, 3, 1))
        self.register_buffer("table", torch.linspace(-1, 1, 120).reshape(1, 3, 5, 8).cos())

    def forward(self, image: Tensor) -> Tensor:
        smaller = F.interpolate(self.stem(image), (5, 7), mode="bilinear", antialias=True)
        larger = F.interpolate(smaller, scale_factor=(1.5, 2.6), mode="bicubic", antialias=True)
        return larger + F.interpolate(self.table, (7, 18), mode="bicubic", antialias=True)


@every_runtime
def test_antialiasing_is_that_of_torch(name: str, tmp_path: Path) -> None:
    (report,) = mixzoo.export(Smoothed().eval(), to=name, out=tmp_path, name="smoothed", sizes="14x18", dynamic=())
    assert report.error < 2e-6


@every_runtime
def test_nearest_neighbours_are_those_of_torch(name: str, tmp_path: Path) -> None:
    (report,) = mixzoo.export(Enlarged().eval(), to=name, out=tmp_path, name="enlarged", sizes="14x18", dynamic=())
    assert report.error < 1e-6


@pytest.mark.slow
@every_runtime
def test_outputs_come_in_the_order_of_the_model(name: str, tmp_path: Path) -> None:
    (report,) = mixzoo.export(fill_(Pyramid()).eval(), to=name, out=tmp_path, name="two", sizes="40x48")
    (item,) = report.manifest["artifacts"]
    assert [t["shape"][1] for t in item["outputs"]] == [4, 6] and report.error <= 1e-4


def test_other_targets_go_on_where_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that is not installed is a sentence; what was written for the others stays."""
    stage(monkeypatch)
    monkeypatch.setattr(TARGETS["openvino"], "unavailable", lambda: "openvino is not here", raising=False)
    with pytest.raises(IncompleteError, match="to openvino: openvino is not here") as caught:
        mixzoo.export(small(), to=("openvino", "program"), out=tmp_path, sizes="40")
    (report,) = caught.value.reports
    assert report.target == "program" and report.files[0].is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["program"]


@pytest.mark.skipif(bool(TARGETS["ncnn"].unavailable()), reason=str(TARGETS["ncnn"].unavailable()))
def test_ncnn_serves_every_batch_with_one_file(tmp_path: Path) -> None:
    (report,) = mixzoo.export(small(), to="ncnn", out=tmp_path, name="one", sizes="37x51", batches="1,3")
    assert {path.name for path in tmp_path.iterdir()} == {"one.param", "one.bin", "manifest.json", "summary.md"}
    checks = report.manifest["artifacts"][0]["checks"]
    assert [check["batch"] for check in checks] == [1, 3] and checks[1]["batch_against_single"] == 0


@pytest.mark.skipif(bool(TARGETS["ncnn"].unavailable()), reason=str(TARGETS["ncnn"].unavailable()))
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo '############# pass_level2' >&2; kill -SEGV $$", "pnnx crashed with SIGSEGV in its pass_level2"),
        ("echo 'no such thing' >&2; exit 3", r"pnnx failed with code 3 \(no such thing\)"),
        ("exec sleep 60", "pnnx did not finish in 1 s, and was stopped"),
        ("exit 0", "pnnx wrote no ncnn files: it does not say why"),
    ],
)
def test_a_converter_that_dies_is_one_sentence(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pnnx

    program = tmp_path / "pnnx"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(pnnx, "EXEC_PATH", str(program))
    monkeypatch.setattr(ncnn_target, "_LIMIT", 1)
    with pytest.raises(ExportError, match=message):
        mixzoo.export(small(), to="ncnn", out=tmp_path / "out", sizes="40")
    assert not (tmp_path / "out").exists()


class Erfcx(nn.Module):
    """The scaled complementary error function, which no converter to ncnn knows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.erfcx(x).mean((2, 3))


@pytest.mark.skipif(bool(TARGETS["ncnn"].unavailable()), reason=str(TARGETS["ncnn"].unavailable()))
def test_an_operator_that_ncnn_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"ncnn has no layer for what pnnx left in PyTorch's form: .*erfcx"):
        mixzoo.export(Erfcx().eval(), to="ncnn", out=tmp_path / "out", sizes="40")
    assert not (tmp_path / "out").exists()


needs_tensorrt = pytest.mark.skipif(
    bool(TARGETS["tensorrt"].unavailable()) or torch.cuda.is_available(),
    reason="tensorrt_rtx is not installed, or there is a GPU that runs the engine",
)


@needs_tensorrt
def test_an_engine_that_was_not_run_is_not_called_verified(tmp_path: Path) -> None:
    (report,) = mixzoo.export(small(), to="tensorrt", out=tmp_path, name="x", sizes="40")
    content = report.manifest
    assert content["verified"] is False and content["run_by"] is None and "no NVIDIA GPU" in content["not_run_because"]
    assert content["built_for"] == list(tensorrt_target.AHEAD) and "Half" not in content["layer_precision"]
    (item,) = content["artifacts"]
    assert item["latency"] is None and item["nodes"] > 0
    assert {c["file"] for c in item["companions"]} == {"x.onnx", "x.layers.json"}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(report))
    for text in (summary(content), console.export_text()):
        assert "no NVIDIA GPU" in text and "is not verified" in text and "ONNX Runtime" in text and "run by" not in text


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        ((8, 9), None),
        ((12, 1), None),
        ((13, 0), None),
        ((9, 0), r"no kernels for Hopper, of compute capability 9\.0"),
    ],
)
def test_a_gpu_that_tensorrt_rtx_does_not_know_is_not_asked(
    capability: tuple[int, int], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = type("ComputeCapability", (), {name: 0 for name in ("NONE", "SM75", "SM80", "SM86", "SM89", "SM120")})
    monkeypatch.setattr(tensorrt_target, "_package", lambda: types.SimpleNamespace(ComputeCapability=known))
    monkeypatch.setattr(tensorrt_target, "available", lambda package: package == "tensorrt_rtx")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Hopper")
    found = tensorrt_target.TensorRtTarget().cannot_run()
    assert found is None if reason is None else re.search(reason, str(found))


@needs_tensorrt
def test_what_the_parser_does_not_take_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    def foreign(self: Any, capture: Any, path: Path, options: Any) -> None:
        image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 40, 40])
        output = onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [1, 5])
        node = onnx.helper.make_node("Mystery", ["image"], ["output"], name="the_node", domain="nowhere")
        graph = onnx.helper.make_graph([node], "graph", [image], [output])
        domains = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("nowhere", 1)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=domains), path)

    monkeypatch.setattr(tensorrt_target.OnnxTarget, "export", foreign)
    with pytest.raises(ExportError, match=r"TensorRT's parser does not take Mystery \(the_node\): "):
        mixzoo.export(small(), to="tensorrt", out=tmp_path / "out", sizes="40", dynamic=())
    assert not (tmp_path / "out").exists()


@needs_tensorrt
def test_what_the_builder_refuses_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turing has no float32 products."""
    monkeypatch.setattr(tensorrt_target, "AHEAD", ("SM75",))
    with pytest.raises(ExportError, match=r"TensorRT cannot build the engine: .*Turing"):
        mixzoo.export(small(), to="tensorrt", out=tmp_path / "out", sizes="40", dynamic=())


def test_an_opset_without_onnx_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(monkeypatch)
    with pytest.raises(ExportError, match="opset 18 is for onnx"):
        mixzoo.export(small(), to="program", out=tmp_path, sizes="40", opset=18)


class Copied(nn.Module):
    """A map that is used, and returned, beside a copy of itself."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x.transpose(1, 2)
        return y, y.clone() * 2, y + 1


def test_what_has_a_copy_is_used_through_it() -> None:
    """ExecuTorch refuses XNNPACK parts that a tensor and its copy both leave."""
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    program = executorch_target._one_copy(torch.export.export(Copied(), (x,)).run_decompositions())
    (copy,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default)
    assert [user for user in copy.args[0].users if user.op != "output"] == [copy] and len(copy.users) == 2
    for got, wanted in zip(program.module()(x), Copied()(x), strict=True):
        assert torch.equal(got, wanted)


class OneWeight(nn.Module):
    """A convolution, and a linear layer of tokens made of its result by the last rows of the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        tokens = x.mean((2, 3))[:, :3].softmax(1)
        return self.head(nn.functional.linear(tokens, self.conv.weight.flatten(1)[16:], self.conv.bias[16:]))


@pytest.mark.slow
def test_layers_of_one_weight_are_no_cycle(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    model = OneWeight()
    fill_(model)
    (report,) = mixzoo.export(model, to="executorch", out=tmp_path, sizes=(32,), dynamic="none", name="one_weight")
    assert 0 < report.error < 1e-5
