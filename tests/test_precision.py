"""Lower precisions: what is written is judged by real images, and what eight bits hurt stays in float."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mixzoo
import numpy as np
import pytest
import torch.nn.functional as F
from export_doubles import ProgramTarget, Pyramid, names, small, stage
from mixzoo.export import ExportError, FolderError, IncompleteError, Report
from mixzoo.export.judge import DropError, Judgement
from mixzoo.export.precision import Precision, as_precisions
from mixzoo.export.prepare import prepare
from mixzoo.export.sensitivity import layers, put_back, rank_layers
from mixzoo.export.target import TARGETS
from mixzoo.export.words import render, summary
from mixzoo.train.pixels import digits, write_images
from mixzoo.zoo.cli import app
from mixzoo.zoo.errors import UnknownNameError
from mixzoo.zoo.fill import fill_
from mixzoo.zoo.pictures import ImageError, preparation
from precision_doubles import SIDE, Reader, RoundedTarget, trained, with_outlier
from rich.console import Console
from typer.testing import CliRunner

RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=str(reason)))
    for name in ("onnx", "openvino")
    for reason in (TARGETS[name].unavailable(),)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Digits that were trained on to calibrate with, and others to judge by."""
    root, data = tmp_path_factory.mktemp("digits"), digits()
    calibration = write_images(data.train, data.classes, root / "calibration", 48)
    return {"calibration": calibration, "labelled": write_images(data.test, data.classes, root / "labelled", 120)}


@pytest.fixture(scope="module")
def reader() -> Reader:
    """Trained on digits, and with a layer that eight bits hurt."""
    return with_outlier(trained())


# from end to end, in the runtimes themselves


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_every_precision_of_a_trained_model(
    name: str, reader: Reader, folders: dict[str, Path], tmp_path: Path
) -> None:
    reports = mixzoo.export(reader, to=name, out=tmp_path, name="reader", precision="int8,fp16,fp32", **folders)
    assert [report.precision for report in reports] == ["fp32", "fp16", "int8"]
    assert [report.folder for report in reports] == [tmp_path / p for p in ("fp32", "fp16", "int8")]
    suffix = TARGETS[name].suffix
    assert [report.path.name for report in reports] == [f"reader{lower}{suffix}" for lower in ("", "_fp16", "_int8")]
    plain, half, whole = (report.manifest for report in reports)
    for content in (half, whole):
        (item,) = content["artifacts"]
        assert {t["dtype"] for t in (*item["inputs"], *item["outputs"])} == {"float32"}
        assert content["dynamic_axes"] == ["batch", "height", "width"]
        assert item["latency"]["float32_ms"] > 0 and item["float32_bytes"] == _bytes(plain)
    assert plain["error"] < 1e-4 < half["error"] < 1e-2 < whole["error"]
    assert _bytes(half) < 0.75 * _bytes(plain), "the graph is a good part of so small a file"
    judged = whole["artifacts"][0]["judged"]
    assert judged["kept_in_float"][0] == "second" and len(judged["kept_in_float"]) < judged["layers"] == 4
    assert judged["drop"] <= 1.0 and judged["accuracy_of_original"] > 0.9 and judged["images"] == 120
    assert judged["accuracy"] == pytest.approx(accuracy(reports[2], reader, folders["labelled"]))
    assert whole["calibration_images"] == 48 and half["calibration_images"] is None


def _bytes(content: dict[str, Any]) -> int:
    (item,) = content["artifacts"]
    return int(item["bytes"] + sum(c["bytes"] for c in item["companions"]))


def accuracy(report: Report, reader: Reader, folder: Path) -> float:
    """Share of the pictures in ``folder`` that the file gets right, counted by hand."""
    read = preparation(reader.pretrained_cfg)
    run = TARGETS[report.target].load(report.path)
    paths = sorted(folder.rglob("*.png"))
    return float(np.mean([run(read(p)[None].numpy()).argmax() == int(p.parent.name) for p in paths]))


@pytest.mark.skipif(bool(TARGETS["onnx"].unavailable()), reason=str(TARGETS["onnx"].unavailable()))
def test_layers_that_stay_in_float_have_float_weights(reader: Reader, folders: dict[str, Path], tmp_path: Path) -> None:
    import onnx

    (report,) = mixzoo.export(
        reader, to="onnx", out=tmp_path, name="reader", precision="int8", dynamic="none", batches="3", **folders
    )
    model = onnx.load(report.path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = report.manifest["artifacts"][0]["judged"]["kept_in_float"]
    convolutions = {
        node.name.split("/")[0]: node.input[1] in weights for node in model.graph.node if node.op_type == "Conv"
    }
    assert convolutions == {path: path in kept for path in ("first", "second", "third")}
    assert report.manifest["artifacts"][0]["inputs"][0]["shape"] == [3, 1, SIDE, SIDE]


# the loop, in a runtime that is torch


def staged(monkeypatch: pytest.MonkeyPatch, **options: Any) -> RoundedTarget:
    target = RoundedTarget(**options)
    monkeypatch.setitem(TARGETS, "program", target)
    return target


def test_the_layer_that_loses_most_goes_back_first(
    reader: Reader, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = staged(monkeypatch)
    (report,) = mixzoo.export(reader, to="program", out=tmp_path, precision="int8", name="reader", **folders)
    assert target.written == [frozenset(), frozenset({"second"})]
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content == report.manifest and names(tmp_path) == {"reader_int8.pt2", "manifest.json", "summary.md"}
    judged = content["artifacts"][0]["judged"]
    assert judged["kept_in_float"] == ["second"] and judged["drop"] <= content["max_drop"] == 1.0
    assert judged["top1_agreement"] > 0.9 > 0.2 > judged["agreement_by_chance"]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(report))
    for text in (summary(content), console.export_text()):
        assert "1 of 4 layers: second" in text and "on 120 images" in text and "calibrated with" in text
        assert "float32 file" in text


def test_without_labels_accuracy_is_not_claimed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged(monkeypatch)
    (report,) = mixzoo.export(
        trained(), to="program", out=tmp_path, precision="int8", calibration=folders["calibration"], dynamic="none"
    )
    judged = report.manifest["artifacts"][0]["judged"]
    assert judged["accuracy"] is judged["drop"] is report.manifest["max_drop"] is None and judged["images"] == 48
    text = summary(report.manifest)
    assert "accuracy was not measured" in text and "not measured: no labelled images" in text


Damage = Callable[[list[np.ndarray]], list[np.ndarray]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda ys: [np.roll(y, 1, axis=1) for y in ys], "points of accuracy are lost on 120 images; at most 1 may be"),
        (lambda ys: [np.full_like(y, np.nan) for y in ys], "NaN or infinity"),
    ],
)
def test_a_file_that_no_layer_in_float_saves_is_refused(
    damage: Damage,
    message: str,
    reader: Reader,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    staged(monkeypatch, damage=damage)
    with pytest.raises(ExportError, match=rf"to program in int8: with 3 of 4 layers in float .*{message}.*Take fp16"):
        mixzoo.export(reader, to="program", out=tmp_path / "out", precision="int8", dynamic="none", **folders)
    assert not (tmp_path / "out").exists()


def test_a_file_that_answers_at_random_is_refused_without_labels(
    reader: Reader, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0)
    staged(monkeypatch, damage=lambda ys: [noise.normal(size=y.shape).astype(np.float32) for y in ys])
    with pytest.raises(ExportError, match=r"it names the model's class on \d+% of the images; chance gives"):
        mixzoo.export(
            reader, "program", tmp_path / "out", precision="int8", calibration=folders["calibration"], dynamic="none"
        )
    assert not (tmp_path / "out").exists()


# the parts


def judgement(drop: float) -> Judgement:
    return Judgement(100, 0.9 - drop / 100, 0.9, 0.95, 0.1, 0.01, 1.0)


@pytest.mark.parametrize("needed", range(10))
def test_no_more_layers_go_back_than_it_takes(needed: int) -> None:
    order, written = [f"layer{i}" for i in range(10)], []

    def attempt(keep: frozenset[str]) -> Judgement:
        written.append(keep)
        return judgement(0.5 if len(keep) >= needed else 5)

    fit = put_back(10, lambda: order, attempt, max_drop=1.0)
    assert list(fit.keep) == order[:needed] and written[-1] == frozenset(fit.keep) and len(written) <= 10


def test_all_layers_in_float_are_no_int8() -> None:
    with pytest.raises(DropError, match=r"with 9 of 10 layers in float 5.00 points"):
        put_back(10, lambda: [f"layer{i}" for i in range(10)], lambda keep: judgement(5), max_drop=1.0)


def test_judgements() -> None:
    assert judgement(1.0).refusal(1.0) is None and "1.50 points" in (judgement(1.5).refusal(1.0) or "")
    assert "chance" in (Judgement(100, None, None, 0.5, 0.4, 0.1, 1.0).refusal(1.0) or "")
    assert Judgement(100, None, None, None, None, 0.1, 0.3).refusal(1.0) is None
    assert "another image" in (Judgement(100, None, None, 0.9, 0.1, 0.2, 0.3).refusal(1.0) or "")
    assert "another image" in (Judgement(100, None, None, None, None, 0.2, 0.3).refusal(1.0) or "")


def test_the_worst_layer_is_ranked_first(reader: Reader) -> None:
    digit = F.interpolate(digits().train.images[:16], size=(SIDE, SIDE), mode="bilinear")
    images = list(((digit - 0.3) / 0.35).split(1))
    assert rank_layers(reader, images)[0] == "second" and set(layers(reader)) == {"first", "second", "third", "head"}


def test_a_module_keeps_what_is_inside() -> None:
    kept = Precision("int8", keep=frozenset({"stages.1"}))
    assert [kept.keeps(p) for p in ("stages.1", "stages.1.conv", "stages.10", "stages")] == [True, True, False, False]


def test_precisions_are_read() -> None:
    assert as_precisions("int8, fp32,int8") == ("fp32", "int8")
    for wrong in ("fp8", "", ()):
        with pytest.raises(UnknownNameError, match="Precisions: fp32, fp16, int8"):
            as_precisions(wrong)


def test_a_precision_that_a_target_lacks_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(monkeypatch)
    with pytest.raises(IncompleteError, match=r"to program in fp16: mixzoo writes files for .* in fp32 only") as caught:
        mixzoo.export(small(), to="program", out=tmp_path, sizes="40", precision="fp32,fp16")
    (report,) = caught.value.reports
    assert report.precision == "fp32" and names(tmp_path) == {"fp32"}


# folders


def bad(folders: dict[str, Path], root: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """What can be wrong with folders, with what is said of it."""
    fewer, hollow, broken, flat = (root / n for n in ("fewer", "hollow", "broken", "flat"))
    for copied in (fewer, hollow, broken):
        shutil.copytree(folders["labelled"], copied)
    shutil.rmtree(fewer / "3")
    for path in (hollow / "3").iterdir():
        path.unlink()
    (broken / "3" / "x.png").write_text("no picture")
    flat.mkdir()
    right = folders["labelled"]
    return {
        "none": ({}, "int8 takes its scales from real images"),
        "missing": ({"calibration": root / "nowhere"}, "nowhere is no folder"),
        "empty": ({"calibration": flat}, "holds 0 images: give a folder with some dozens"),
        "broken": ({"calibration": broken}, "x.png is not an image that can be read"),
        "fewer": ({"calibration": right, "labelled": fewer}, "has 9 classes .*tells 10 apart"),
        "hollow": ({"calibration": right, "labelled": hollow}, "hollow/3 holds no images"),
        "flat": ({"calibration": right, "labelled": flat}, "has no folders"),
    }


@pytest.mark.parametrize("fault", ["none", "missing", "empty", "broken", "fewer", "hollow", "flat"])
def test_folders_that_cannot_be_used(
    fault: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged(monkeypatch)
    options, message = bad(folders, tmp_path)[fault]
    with pytest.raises((FolderError, ImageError, ExportError), match=message):
        mixzoo.export(Reader().eval(), to="program", out=tmp_path / "out", precision="int8", **options)
    assert not (tmp_path / "out").exists()


def test_folders_for_nothing_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="--calibration is for int8"):
        mixzoo.export(Reader(), out=tmp_path, precision="fp16", calibration=folders["calibration"])
    with pytest.raises(FolderError, match="--labelled is to judge fp16 and int8"):
        mixzoo.export(Reader(), out=tmp_path, labelled=folders["labelled"])
    with pytest.raises(ExportError, match="the outputs are no classes"):
        mixzoo.export(fill_(Pyramid()), out=tmp_path, precision="fp16", labelled=folders["labelled"], sizes="40")


def test_a_model_that_learnt_nothing_has_no_accuracy_to_lose(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged(monkeypatch)
    with pytest.raises(ExportError, match=r"the model itself gets \d+% of .*labelled right, chance \d+%"):
        mixzoo.export(fill_(Reader()).eval(), "program", tmp_path / "out", precision="int8", dynamic="none", **folders)
    assert not (tmp_path / "out").exists()


def test_classes_follow_the_names_that_the_model_knows(folders: dict[str, Path], tmp_path: Path) -> None:
    from mixzoo.export.folders import labelled_set

    model = Reader().eval()
    plain = labelled_set(folders["labelled"], prepare(model, "reader"), 10)
    assert plain.labels == tuple(int(path.parent.name) for path in plain.paths)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": tuple("9876543210")}
    known = labelled_set(folders["labelled"], prepare(model, "reader"), 10)
    assert known.labels == tuple(9 - int(path.parent.name) for path in known.paths)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": tuple("abcdefghij")}
    with pytest.raises(FolderError, match=r"classes that the model was not trained on: 0, 1, 2, 3, ..."):
        labelled_set(folders["labelled"], prepare(model, "reader"), 10)


def test_the_command_refuses_what_it_cannot_do(folders: dict[str, Path]) -> None:
    run = CliRunner()
    for options, message in (
        (["--precision", "int8"], "--calibration FOLDER"),
        (["--precision", "fp8"], "Unknown precision 'fp8'"),
        (["--calibration", str(folders["calibration"])], "is for int8"),
    ):
        result = run.invoke(app, ["export", "shvit_s1", *options])
        assert result.exit_code == 2 and message in result.output.replace("\n", " ")


def test_a_target_double_has_what_targets_have() -> None:
    assert ProgramTarget.precisions == TARGETS["coreml"].precisions[:1] == ("fp32",)
