"""`mixzoo train`, then `mixzoo export --precision fp32,int8`: the commands alone, from images to judged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from mixzoo.export.target import TARGETS
from mixzoo.train.pixels import digits, write_images
from mixzoo.zoo.cli import app
from typer.testing import CliRunner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(TARGETS["onnx"].unavailable()), reason=str(TARGETS["onnx"].unavailable())),
]
SETTINGS = (
    "model.kwargs={depths: [1, 1, 1], dims: [16, 32, 48], partial_dims: [null, 16, 16]}",
    "data.size=32",
    "schedule.epochs=6",
)
JUDGED_BY = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run in "run", digits that were trained on in "some" and labelled others in "judge"."""
    root, data = tmp_path_factory.mktemp("digits"), digits()
    done = CliRunner().invoke(app, ["train", "shvit_digits", *SETTINGS, "--out", str(root / "run")])
    assert done.exit_code == 0, done.output
    write_images(data.train, data.classes, root / "some", 32)
    write_images(data.test, data.classes, root / "judge", JUDGED_BY)
    return root


def exported(folder: Path, out: Path, *options: str) -> Any:
    words = ["export", "shvit", "--checkpoint", str(folder / "run"), "--to", "onnx", "--out", str(out)]
    words += ["--dynamic", "none", "--precision", "fp32,int8", "--calibration", str(folder / "some"), *options]
    return CliRunner().invoke(app, words)


def test_eight_bits_are_judged_by_labelled_images(folder: Path, tmp_path: Path) -> None:
    done = exported(folder, tmp_path, "--labelled", str(folder / "judge"), "--max-drop", "2", "--json")
    assert done.exit_code == 0, done.output
    plain, eight = json.loads(done.stdout)
    assert (plain["precision"], eight["precision"]) == ("fp32", "int8")
    assert eight["weights"].startswith("checkpoint model.safetensors sha256 ") and eight["model"] == "shvit"
    assert (eight["calibration_images"], eight["labelled_images"], eight["max_drop"]) == (32, JUDGED_BY, 2.0)
    (item,) = eight["artifacts"]
    judged = item["judged"]
    assert judged["images"] == JUDGED_BY and judged["accuracy_of_original"] > 0.8
    lost = 100 * (judged["accuracy_of_original"] - judged["accuracy"])
    assert judged["drop"] == pytest.approx(lost) and lost <= 2.0
    assert len(judged["kept_in_float"]) < judged["layers"] and item["operators"]["QuantizeLinear"] > 0
    assert item["bytes"] < item["float32_bytes"] and item["latency"]["float32_ms"] > 0
    written = onnx.load(Path(eight["folder"]) / item["file"])
    assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in written.graph.initializer}
    assert {path.name for path in tmp_path.iterdir()} == {"fp32", "int8"}


def test_without_labels_the_command_does_not_claim_accuracy(folder: Path, tmp_path: Path) -> None:
    done = exported(folder, tmp_path)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "not measured: no labelled images" in said and "same class" in said


def test_labels_that_are_wrong_are_not_judged_by(folder: Path, tmp_path: Path) -> None:
    """A model that gets none of them right has nothing to lose: the command says so, and the float file stays."""
    wrong = tmp_path / "wrong"
    for number in range(10):  # each digit under the next one's name
        (wrong / str((number + 1) % 10)).mkdir(parents=True)
        for picture in (folder / "judge" / str(number)).iterdir():
            (wrong / str((number + 1) % 10) / picture.name).write_bytes(picture.read_bytes())
    done = exported(folder, tmp_path / "out", "--labelled", str(wrong))
    assert done.exit_code == 1 and "Traceback" not in done.output
    assert "there is no accuracy to lose" in " ".join(done.output.split())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fp32"]
