"""`mixzoo benchmark`: one model in PyTorch and in every runtime, in one table."""

from __future__ import annotations

import copy
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixzoo.export import benchmark as b
from mixzoo.export.matrix import Cell, Plan, Settings, filling, records
from mixzoo.export.prepare import Prepared, prepare
from mixzoo.export.protocol import Runner
from mixzoo.export.target import TARGETS
from mixzoo.zoo import cli
from rich.console import Console
from small import shallow
from test_matrix import MANIFEST
from typer.testing import CliRunner

SHAPE = b.Shape(batch=2, size=(64, 96), threads=1, rounds=3)
MACHINE = {"cpu": "a processor", "cores": 2, "load_1min": 0.5}


class Written(Runner):
    """Gives what the model gives, or breaks."""

    def __init__(self, path: Path, threads: int | None) -> None:
        assert path.name == "van_b0.onnx" and threads == SHAPE.threads

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        assert x.shape == (2, 3, 64, 96)
        return [x.mean((2, 3))]


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(shallow("shvit_s1"), name="shvit_s1")


@pytest.fixture
def rows(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[b.Row]:
    folder = tmp_path / "shvit_s1/onnx_fp32"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    monkeypatch.setattr(TARGETS["onnx"], "load", Written)
    green = records.green(MANIFEST)
    found = {
        Cell("shvit_s1", "onnx"): green,
        Cell("shvit_s1", "coreml"): green | {"runs": "program", "run_by": "its program, in PyTorch"},
        Cell("shvit_s1", "tensorrt"): green | {"runs": "source", "not_run_because": "there is no GPU"},
        Cell("shvit_s1", "ncnn"): records.red("pnnx crashed"),
    }
    return b.benchmark(prepared, found, {Cell("shvit_s1", "litert"): "needs litert_torch"}, tmp_path, SHAPE)


def test_every_format_is_a_row(rows: list[b.Row]) -> None:
    assert [(row.format, row.status) for row in rows] == [
        ("PyTorch", "ok"),
        ("PyTorch deploy", "ok"),
        ("onnx", "ok"),
        ("coreml", "not run here"),
        ("tensorrt", "not run here"),
        ("ncnn", "failed"),
        ("litert", "not tried"),
    ]
    timed = [row for row in rows if row.status == "ok"]
    assert all(row.ms and row.p90 and row.bytes for row in timed)
    assert all(row.images_s == pytest.approx(2000 / row.ms) for row in timed if row.ms)
    assert not any(row.ms or row.times for row in rows if row.status != "ok")
    assert rows[0].times == 1 and rows[0].error == 0 and rows[1].error and rows[1].error < 1e-4
    assert rows[2].error == MANIFEST["error"] and rows[2].bytes == 16_400_000
    assert [row.reason for row in rows[3:]] == [
        "run by its program, in PyTorch",
        "there is no GPU",
        "pnnx crashed",
        "needs litert_torch",
    ]


def test_what_runs_elsewhere_is_compared_with_pytorch_there(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a second name of the processor, for a GPU."""
    manifest = copy.deepcopy(MANIFEST)
    manifest["artifacts"][0]["elsewhere"] = {"error": 3e-6}
    folder = tmp_path / "shvit_s1/onnx_fp32"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    slow = Written(folder / "van_b0.onnx", 1)
    slow.device = "cpu:0"
    outputs = slow.outputs
    monkeypatch.setattr(slow, "outputs", lambda x: time.sleep(0.2) or outputs(x))
    monkeypatch.setattr(b, "_devices", lambda: ["cpu", "cpu:0"])
    monkeypatch.setattr(TARGETS["onnx"], "load", Written)
    monkeypatch.setattr(TARGETS["onnx"], "accelerator", lambda: "a GPU")
    monkeypatch.setattr(TARGETS["onnx"], "load_accelerated", lambda path: slow)
    rows = b.benchmark(prepared, {Cell("shvit_s1", "onnx"): records.green(manifest)}, {}, tmp_path, SHAPE)
    names = ["PyTorch", "PyTorch deploy", "PyTorch on cpu:0", "PyTorch deploy on cpu:0"]
    assert [row.label for row in rows] == [*names, "onnx fp32", "onnx fp32 on cpu:0"]
    assert rows[2].times == 1 and rows[4].error == manifest["error"] and rows[5].error == 3e-6
    assert rows[2].ms and rows[5].ms and rows[5].times == pytest.approx(rows[2].ms / rows[5].ms, rel=0.7)


def test_a_file_that_does_not_load_is_a_row(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {Cell("shvit_s1", "onnx"): records.green(MANIFEST)}
    row = b.benchmark(prepared, found, {}, tmp_path, SHAPE)[2]
    assert row.status == "failed" and row.reason and "does not load" in row.reason and row.ms is None


def test_the_table_and_the_record_have_everything(rows: list[b.Row], prepared: Prepared) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(b.table(rows, prepared, SHAPE, MACHINE))
    text = console.export_text()
    assert "batch 2, 64x96, 1 threads" in text and "16.4" in text and "tensorrt fp32: there is no GPU" in text
    record = json.loads(json.dumps(b.record(rows, prepared, SHAPE, MACHINE)))
    assert (record["batch"], record["size"], record["machine"]["cores"]) == (2, [64, 96], 2)
    assert len(record["formats"]) == 7


def test_exports_get_the_weights_and_the_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def command(cell: Cell, settings: Settings, out: Path) -> list[str]:
        asked.append(settings.arguments(cell, out))
        return ["false"]

    monkeypatch.setattr(filling, "command_of", command)
    settings = Settings("64", "2", "none", weights=("--checkpoint", "run"))
    said: list[str] = []
    found = b.export_all(Plan([Cell("shvit_s1", "onnx")]), settings, tmp_path, 1, said.append)
    assert "--checkpoint run" in " ".join(asked[0]) and "--sizes 64" in " ".join(asked[0])
    assert found[Cell("shvit_s1", "onnx")]["status"] == "red" and said == ["exporting shvit_s1 onnx fp32"]


def test_a_format_that_fails_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "command_of", lambda *_: ["false"])
    monkeypatch.setattr(TARGETS["onnx"], "unavailable", lambda: None)
    words = ["benchmark", "shvit_s1", "--to", "onnx", "--size", "64", "--threads", "1", "--runs", "1", "--json"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 1 and "does not work in onnx fp32" in result.stderr
    formats = json.loads(result.stdout)["formats"]
    assert [f["format"] for f in formats] == ["PyTorch", "PyTorch deploy", "onnx"] and formats[0]["ms"] > 0
    assert torch.get_num_threads() >= 1
