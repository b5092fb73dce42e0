"""What a target does not take is told from the graph alone: operator, module, reason and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mixzoo
import pytest
import torch
import torch.nn.functional as F
from export_doubles import ProgramTarget
from mixzoo.export import ExportError
from mixzoo.export.check import RULES, Finding, check
from mixzoo.export.check.findings import OUTSIDE, REFUSED, UNTRIED
from mixzoo.export.check.graph import original_path
from mixzoo.export.check.targets import operators
from mixzoo.export.protocol import FileFacts
from mixzoo.export.target import TARGETS
from mixzoo.zoo.cli import app
from mixzoo.zoo.errors import UnknownNameError
from mixzoo.zoo.fill import fill_
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner


class Inner(nn.Module):
    """A function of a map (B, 8, 16, 16) as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Outer(nn.Module):
    """A convolution, then ``function`` in a module called body.inner."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Module()
        self.body.inner = Inner(function)

    def forward(self, x: Tensor) -> Tensor:
        return self.body.inner(self.conv(x))


def findings(function: Callable[[Tensor], Tensor], target: str, fast: bool = False) -> tuple[Finding, ...]:
    (verdict,) = check(Outer(function), target, sizes=(16,), fast=fast)
    return verdict.findings


def windows(x: Tensor) -> Tensor:
    """Softmax of a tensor with six axes."""
    return x.reshape(1, 8, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).softmax(-1).flatten(1)


def overlapping(x: Tensor) -> Tensor:
    """As others call it; `torch.nn.functional.fold` is written as a sum."""
    return torch.ops.aten.col2im(x[:, :, :9, :4].reshape(1, 72, 4), [5, 5], [3, 3], [1, 1], [0, 0], [2, 2])


REFUSING = {
    "fft": (lambda x: torch.fft.rfft2(x).abs(), "aten.fft_rfft2", "coreml,ncnn,openvino,executorch", "onnx"),
    "windows": (windows, "aten.permute", "coreml", "onnx,openvino,litert,executorch,tensorrt"),
    "six": (lambda x: x.reshape(1, 8, 4, 4, 4, 4).exp(), "aten.reshape", "coreml,ncnn,qnn", "onnx,litert,executorch"),
    "strides": (lambda x: x.as_strided((8, 7), (9, 2)), "aten.as_strided", "coreml,ncnn", "onnx,openvino"),
    "nonzero": (lambda x: x[x > 0], "aten.index", "litert,coreml,qnn,tensorrt", "onnx,openvino,executorch"),
    "random": (lambda x: x + torch.rand_like(x), "aten.rand_like", "all", ""),
    "dropout": (lambda x: F.dropout(x, 0.5, training=True), "aten.dropout", "all", ""),
    "statistics": (lambda x: F.batch_norm(x, None, None, training=True), "aten.batch_norm", "all", ""),
    "topk": (lambda x: x.topk(2)[0], "aten.topk", "litert", "ncnn,onnx,openvino"),
    "places": (lambda x: x * x.topk(16, largest=False)[1], "aten.topk", "ncnn", "litert,onnx,openvino"),
    "rows": (
        lambda x: x[:, x.mean((1, 2, 3)).long(), x.amax((1, 2, 3)).long()] * 2,
        "aten.index",
        "ncnn",
        "onnx,openvino",
    ),
    "fold": (overlapping, "aten.col2im", "coreml,litert,tensorrt", "onnx,openvino,ncnn"),
    "erfcx": (torch.special.erfcx, "aten.special_erfcx", "coreml,litert", "onnx"),
}


@pytest.mark.parametrize("name", REFUSING)
def test_what_is_refused_is_named_with_its_module(name: str) -> None:
    function, operator, refusing, taking = REFUSING[name]
    verdicts = {v.target: v for v in check(Outer(function), "all", sizes=(16,), fast=False)}
    for target in RULES if refusing == "all" else refusing.split(","):
        (finding, *_) = verdicts[target].refused
        assert (finding.operator, finding.module, finding.kind) == (operator, "body.inner", "Inner"), target
        assert finding.count >= 1 and finding.reason and finding.remedy.endswith(".") and finding.source
        assert operator in finding.sentence and "body.inner" in finding.sentence
    for target in filter(None, taking.split(",")):
        assert verdicts[target].clean, verdicts[target].findings


def test_a_plain_model_is_clean_everywhere() -> None:
    verdicts = check(Outer(lambda x: x.relu()), sizes=(16,))
    assert [v.target for v in verdicts] == list(RULES) and all(v.clean and not v.findings for v in verdicts)


def test_calls_of_one_reason_in_one_module_are_counted() -> None:
    (finding,) = findings(lambda x: torch.special.erfcx(x) * torch.special.erfcx(x), "coreml")
    assert finding.count == 2 and finding.shape == (1, 8, 16, 16)


def test_what_only_moves_may_have_any_rank_in_some() -> None:
    for target in ("coreml", "ncnn"):
        assert not findings(lambda x: x.reshape(1, 8, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(16, 128), target)


def test_rows_may_be_taken_from_any_rank_for_ncnn() -> None:
    def packed(x: Tensor) -> Tensor:
        q, k, v = x[:, :6].reshape(16, 16, 3, 2, 1).permute(2, 0, 3, 1, 4).unbind(0)
        return q + k * v

    assert not findings(packed, "ncnn")
    assert not findings(lambda x: x.reshape(1, 8, 4, 4, 4, 4).permute(0, 2, 1, 4, 3, 5).mean((1, 3)).flatten(1), "ncnn")
    assert findings(lambda x: x.reshape(1, 8, 4, 4, 4, 4).permute(0, 2, 1, 4, 3, 5)[:, :, ::2].flatten(1), "ncnn")
    assert not findings(lambda x: (x.reshape(8, 2, 2, 8, 8) * 2).sum(0), "ncnn")
    assert findings(
        lambda x: (x.reshape(8, 2, 2, 8, 8) * x[0].reshape(1, 2, 2, 1, 8, 8)[0, :, :, 0]).exp().sum(0), "ncnn"
    )


def test_what_runs_but_not_fast_is_no_refusal() -> None:
    (finding,) = findings(lambda x: x.flip(2), "executorch", fast=True)
    assert (finding.severity, finding.module) == (OUTSIDE, "body.inner")
    assert findings(lambda x: x.softmax(1), "executorch", fast=True) and not findings(
        lambda x: x.softmax(-1), "executorch", fast=True
    )


def test_an_operator_that_nobody_tried_is_called_that() -> None:
    finding = findings(torch.special.erfcx, "ncnn")[-1]
    assert finding.operator == "aten.special_erfcx" and finding.severity == UNTRIED


def test_a_model_that_cannot_be_captured_names_the_module() -> None:
    def branch(x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0 else x

    (finding,) = findings(branch, "litert")
    assert (finding.operator, finding.module, finding.severity) == ("torch.export", "body.inner", REFUSED)


def test_open_axes_that_cannot_be_captured_are_no_refusal() -> None:
    def frozen(x: Tensor) -> Tensor:
        return x * int(x.shape[2])

    verdicts = {v.target: v for v in check(Outer(frozen), "onnx,litert", sizes=(16,), dynamic="batch,height,width")}
    (finding,) = verdicts["onnx"].findings
    assert finding.severity == OUTSIDE and "height" in finding.reason and not verdicts["litert"].findings


def test_modules_have_the_names_of_the_model_that_was_given() -> None:
    inner = nn.Sequential()
    inner.add_module("fc1_a", nn.Linear(2, 2))
    model = nn.ModuleDict({"blocks": nn.Sequential(nn.ModuleDict({"mlp": inner}))})
    assert original_path("blocks.0_mlp_fc1_a", model) == "blocks.0.mlp.fc1_a"
    assert original_path("blocks.0_mlp_gone", model) == "blocks.0.mlp" and original_path("", model) == ""


class Refusing(ProgramTarget):
    """A target that writes nothing, under the name of one that is known."""

    name, title = "coreml", "Core ML"
    axes = ((),)

    def export(self, capture: Any, path: Path, options: dict[str, Any]) -> None:
        raise ExportError("the converter stopped")


class Unreadable(ProgramTarget):
    """A target whose runtime does not read what was written."""

    title = "Torch"

    def describe(self, path: Path) -> FileFacts:
        raise ValueError("no such builtin")


def test_a_failed_export_names_operator_module_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "coreml", Refusing())
    cause = r"the converter stopped\. Core ML does not take aten\.as_strided in body\.inner \(Inner\): .*\. Use reshape"
    with pytest.raises(ExportError, match=cause):
        mixzoo.export(
            Outer(lambda x: x.as_strided((8, 7), (9, 2))).eval(), to="coreml", out=tmp_path / "out", sizes="16"
        )
    assert not (tmp_path / "out").exists()
    with pytest.raises(ExportError, match=r"the converter stopped$"):
        mixzoo.export(Outer(torch.relu).eval(), to="coreml", out=tmp_path / "out", sizes="16")


def test_a_file_that_its_runtime_does_not_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "program", Unreadable())
    with pytest.raises(ExportError, match=r"Torch cannot read outer\.pt2: no such builtin"):
        mixzoo.export(Outer(torch.relu).eval(), to="program", out=tmp_path / "out", sizes="16")


def test_a_timm_model_and_an_unknown_target() -> None:
    (verdict,) = check("timm:test_convnext", "coreml", sizes=(64,))
    assert verdict.clean and verdict.model == "test_convnext"
    with pytest.raises(UnknownNameError, match="coreml"):
        check("timm:test_convnext", "corml")


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixzoo.export.check import api

    models = {"good": Outer(torch.relu), "bad": Outer(lambda x: x.as_strided((8, 7), (9, 2)))}
    monkeypatch.setattr(api, "build", lambda name, options=None: models[name])
    run = CliRunner().invoke
    good = run(app, ["check", "good", "--target", "coreml", "--sizes", "16", "--json"])
    assert good.exit_code == 0 and json.loads(good.stdout)[0]["clean"]
    bad = run(app, ["check", "bad", "--target", "coreml,onnx", "--sizes", "16"])
    assert bad.exit_code == 1 and "aten.as_strided" in bad.stdout and "body.inner" in bad.stdout
    assert "cannot be exported to coreml:" in bad.stderr
    assert run(app, ["check", "good", "--target", "corml"]).exit_code == 2


@pytest.mark.parametrize("table", [rules.table for rules in RULES.values()])
def test_tables_hold_names_of_operators(table: str) -> None:
    known = {name.partition("::")[2].partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    assert operators(table) and not {name for name in operators(table) if name not in known}


def test_a_file_in_eight_bits_that_is_not_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is loaded to be judged, long before it is verified; other targets go on."""
    target = TARGETS["onnx"]
    if reason := target.unavailable():
        pytest.skip(reason)
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 200 - 50 * i, 30)).save(tmp_path / f"{i}.png")

    def load(*_: Any) -> None:
        raise RuntimeError("no such slice")

    monkeypatch.setattr(target, "load", load)
    model = fill_(Outer(lambda x: x.relu().mean((2, 3)))).eval()
    with pytest.raises(ExportError, match=r"ONNX.* cannot read outer\S*\.onnx: no such slice"):
        mixzoo.export(
            model, to="onnx", out=tmp_path / "out", sizes="16", dynamic="none", precision="int8", calibration=tmp_path
        )
