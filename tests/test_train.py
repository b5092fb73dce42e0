"""The training loop, and what a run leaves, on a model that trains in a second."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch
from mixzoo.train import DivergedError, Recipe, RecipeError, TrainResult, load_run, train
from mixzoo.train.pixels import accuracy, as_pixels, predict_logits
from mixzoo.zoo.errors import CheckpointError, MixzooError
from mixzoo.zoo.timing import torch_threads
from rich.console import Console
from torch import nn

TINY = (
    "model.kwargs={depths: [1, 1, 1], dims: [16, 24, 32], partial_dims: [null, 8, 8]}",
    "data.size=32",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
)


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A short run of a tiny model, with its folder."""
    return train("shvit_digits", [*TINY, "schedule.epochs=5"], tmp_path_factory.mktemp("run"), quiet())


# the loop


def test_training_lowers_the_loss_and_beats_chance(run: TrainResult) -> None:
    assert run.epochs[-1].loss < run.epochs[0].loss - 0.3
    assert run.accuracy > 0.4  # chance is 0.1
    assert not run.model.training


def test_the_schedule_ends_at_the_least_learning_rate(run: TrainResult) -> None:
    assert run.epochs[-1].lr == pytest.approx(run.recipe.schedule.min_lr, rel=0.01)
    assert run.epochs[0].lr > 10 * run.epochs[-1].lr


def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    seeds = {"a": 0, "b": 0, "c": 1}
    short = [*TINY, "schedule.epochs=1"]
    runs = {k: train("shvit_digits", [*short, f"seed={s}"], tmp_path / k, quiet()) for k, s in seeds.items()}
    weights = {k: (tmp_path / k / "model.safetensors").read_bytes() for k in runs}
    assert weights["a"] == weights["b"] != weights["c"]
    assert runs["a"].epochs[0].loss == runs["b"].epochs[0].loss != runs["c"].epochs[0].loss


def test_the_callers_random_state_and_threads_stay_as_they_were(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    with torch_threads(2):
        train("shvit_digits", [*TINY, "schedule.epochs=1", "compute.threads=1"], tmp_path, quiet())
        assert torch.get_num_threads() == 2
    assert torch.equal(before, torch.get_rng_state())
    assert json.loads((tmp_path / "train.json").read_text())["threads"] == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"step \d+ \(epoch 1 of 2.*\): the loss is (nan|inf).*optim\.lr") as caught:
        train("shvit_digits", [*TINY, "optim.optimizer=sgd", "optim.lr=1e30"], tmp_path, quiet())
    assert re.search(r"first module whose output is not finite is '|weights '.*' are not finite", str(caught.value))
    assert 1 < int(re.search(r"step (\d+)", str(caught.value))[1]) < 21  # type: ignore[index]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "steps.csv"]


def test_gradients_are_clipped_where_the_recipe_says_so(run: TrainResult, tmp_path: Path) -> None:
    clipped = train("shvit_digits", [*TINY, "schedule.epochs=1", "optim.clip_grad=1e-9"], tmp_path, quiet())
    assert clipped.epochs[0].loss != run.epochs[0].loss


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'data\.batch' is 2000, but there are only 1347"):
        train("shvit_digits", [*TINY, "data.batch=2000"], tmp_path, quiet())


def test_an_unknown_model_or_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MixzooError, match="shvit_s1"):
        train("shvit_digits", ["model.name=shvit_s11", "model.kwargs={}"], tmp_path, quiet())
    with pytest.raises(MixzooError, match="depths"):
        train("shvit_digits", ["model.kwargs.depth=[1, 1, 1]"], tmp_path, quiet())


# what a run leaves


def test_the_checkpoint_gives_the_same_logits(run: TrainResult) -> None:
    trained, test = load_run(run.checkpoint), as_pixels(run.data, run.recipe.data).test
    images = test.images
    logits = predict_logits(trained.model, images, trained.recipe)
    assert torch.equal(logits, predict_logits(run.model, images, run.recipe))
    fresh = predict_logits(_refilled(load_run(run.checkpoint).model), images, run.recipe)
    assert not torch.allclose(logits, fresh, rtol=0.1)
    assert run.accuracy == trained.record["test_accuracy"]
    assert accuracy(logits, test.labels) == pytest.approx(run.accuracy, abs=1 / 450)


def _refilled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    return model


def test_the_model_says_how_its_images_must_be_prepared(run: TrainResult) -> None:
    cfg = load_run(run.checkpoint).model.pretrained_cfg
    assert isinstance(cfg, dict)
    assert (cfg["input_size"], cfg["num_classes"]) == ((1, 32, 32), 10)
    assert (cfg["mean"], cfg["std"]) == (run.recipe.data.mean, run.recipe.data.std)


def test_the_record_tells_the_whole_run(run: TrainResult) -> None:
    record = json.loads((run.checkpoint / "train.json").read_text())
    assert Recipe.model_validate(record["recipe"]) == run.recipe
    assert (record["seed"], record["train_images"], record["test_images"]) == (0, 1347, 450)
    assert {"python", "mixzoo", "torch", "timm"} <= set(record["versions"])
    with (run.checkpoint / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["loss"]) for r in rows] == [pytest.approx(e.loss, abs=1e-6) for e in run.epochs]
    assert sorted(p.name for p in run.checkpoint.iterdir()) == [
        "log.csv",
        "model.safetensors",
        "steps.csv",
        "train.json",
    ]


def test_files_that_do_not_belong_together_are_refused(run: TrainResult, tmp_path: Path) -> None:
    for name in ("train.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run.checkpoint / name).read_bytes())
    assert load_run(tmp_path)
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match=r"not the file that train\.json describes"):
        load_run(tmp_path)
    with pytest.raises(CheckpointError, match="does not hold a finished training run"):
        load_run(tmp_path / "nothing")


# what is seen meanwhile


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_lines_in_a_pipe_and_a_bar_on_a_terminal(tmp_path: Path, terminal: bool) -> None:
    screen = io.StringIO()
    train("shvit_digits", TINY, tmp_path, Console(file=screen, force_terminal=terminal, width=120))
    lines = re.findall(r"^epoch \d/2  loss [\d.]+  test accuracy [\d.]+%  \d+ images/s", screen.getvalue(), re.M)
    assert len(lines) == (0 if terminal else 2)
    assert ("\x1b[" in screen.getvalue()) == terminal
    assert "images/s" in screen.getvalue()
