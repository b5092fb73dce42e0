"""The commands around training: dry runs, runs that go on, judging, curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mixzoo.train import list_recipes
from mixzoo.train.curves import running_mean
from mixzoo.zoo import cli
from PIL import Image
from typer.testing import CliRunner

SETTINGS = (
    "shvit_digits",
    "model.kwargs={depths: [1, 1, 1], dims: [16, 24, 32], partial_dims: [null, 8, 8]}",
    "data.size=32",
    "data.batch=256",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
    "saving.every_epochs=1",
    "saving.tensorboard=true",
)


def command(*words: object, code: int = 0) -> str:
    """What the command prints; what it says of an error where that is expected."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return " ".join(result.stderr.split()) if code else result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert "% of the test images are right" in command("train", *SETTINGS, "--out", folder)
    return folder


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    said = command("train", *SETTINGS, "--dry-run", "--out", tmp_path / "run")
    assert "10 in 2 epochs" in said and "Parameter groups" in said and not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU trains in fp16")
def test_a_dry_run_plans_for_another_machine(tmp_path: Path) -> None:
    half = (*SETTINGS, "compute.precision=fp16")
    said = " ".join(command("train", *half, "--dry-run").split())
    assert "precision: fp16" in said and "10 in 2 epochs" in said
    assert "This machine cannot run it as it is; memory and time are without that. 'compute.precision' is" in said
    assert "cannot run it" not in command("train", *SETTINGS, "--dry-run")
    assert "which a processor does not train in" in command("train", *half, "--out", tmp_path / "run", code=2)


def test_a_run_goes_on_only_when_asked(run: Path, tmp_path: Path) -> None:
    before = (run / "train.json").read_bytes()
    command("train", *SETTINGS, "--out", run, "--resume")
    assert (run / "train.json").read_bytes() == before
    assert "seed was 0 and is 1" in command("train", *SETTINGS, "seed=1", "--out", run, "--resume", code=2)


def test_tensorboard_has_the_scalars_of_the_log(run: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    losses = [float(line.split(",")[3]) for line in (run / "steps.csv").read_text().splitlines()[1:]]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)
    assert [e.step for e in events.Scalars("test/accuracy")] == [5, 10]


def test_a_run_is_judged_on_its_own_test_images_and_on_a_folder(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "train.json").read_text())
    scores = json.loads(command("eval", run, "--json"))
    assert scores["images"] == 450 and scores["top1"] == record["test_accuracy"]
    assert scores["loss"] == pytest.approx(record["epochs"][-1]["test_loss"], rel=1e-5)
    assert scores["top5"] >= scores["top1"]
    for name in record["classes"]:
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(np.full((9, 9), 20, np.uint8)).save(tmp_path / "val" / name / "0.png")
    same = json.loads(command("eval", run, "--data", tmp_path / "val", "--json"))
    assert same["images"] == 10 and same["top1"] == pytest.approx(0.1)  # alike but for their labels
    (tmp_path / "val" / "9").rename(tmp_path / "val" / "ten")
    assert "images of the same classes" in command("eval", run, "--data", tmp_path / "val", code=2)


def test_judging_needs_images_and_weights(run: Path) -> None:
    assert "Say what to judge with" in command("eval", "shvit_s1", "--checkpoint", run / "steps.csv", code=2)
    assert "given no weights" in command("eval", "shvit_s1", "--data", "digits", code=2)


def test_curves_of_a_run_are_drawn(run: Path, tmp_path: Path) -> None:
    command("plot", run)
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "accuracy" in command("plot", run, "--out", tmp_path / "c.svg") + (tmp_path / "c.svg").read_text()
    assert ".png or .svg" in command("plot", run, "--out", tmp_path / "c.pdf", code=2)
    assert running_mean([1.0, 3.0, 5.0, 9.0], 2) == [1.0, 2.0, 4.0, 7.0]


def test_a_models_name_that_no_recipe_lists_is_no_recipe() -> None:
    assert list_recipes()[0] in command("train", "no_such_model", code=2)
