"""Weights split over processes: the numbers of one process, whole checkpoints, and what is refused before a step."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import TINY, finish, launch, start
from mixzoo.train import RecipeError, load_recipe, train
from mixzoo.train.logs import STEPS
from mixzoo.train.models import build_model
from mixzoo.train.sharding import check_sharding
from mixzoo.train.snapshots import FOLDER, Snapshot, read_snapshot, saved_steps
from rich.console import Console
from small import KINDS
from torch import Tensor, nn

SETTINGS = (
    *TINY,
    "augment.mixup=0.8",
    "ema.decay=0.9",
    "optim.clip_grad=0.5",
    "optim.weight_decay=0.1",
    "compute.memory_format=contiguous",
    "compute.accumulate=2",
    "compute.sharding=fsdp",
    "saving.tensorboard=false",
    "saving.every_epochs=1",
    "saving.every_steps=3",
    "saving.keep=9",
)
PROGRAM = (str(Path(__file__).parent / "split_run.py"),)


def losses(folder: Path) -> list[float]:
    return [float(line.split(",")[3]) for line in (folder / STEPS).read_text().splitlines()[1:]]


def begun(source: Path, folder: Path, step: int) -> Path:
    """A copy of a run that was ended after ``step``."""
    shutil.copytree(source / FOLDER, folder / FOLDER)
    for name in ("log.csv", STEPS):
        shutil.copy(source / name, folder / name)
    for path in saved_steps(folder):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return folder


def shapes(tree: Any) -> Any:
    """Dicts and lists with (type, shape) in place of tensors, and no other values."""
    if isinstance(tree, Tensor):
        return type(tree), tree.dtype, tuple(tree.shape)
    if isinstance(tree, dict):
        return {key: shapes(value) for key, value in tree.items()}
    return [shapes(value) for value in tree] if isinstance(tree, list) else None


def snapshot(folder: Path, step: int) -> Snapshot:
    return read_snapshot(folder / FOLDER / f"step-{step:08d}")


@pytest.mark.slow
def test_split_weights_give_what_one_process_gives(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    quiet = Console(file=io.StringIO())
    train("shvit_digits", SETTINGS, one, quiet)
    finish(start(two, SETTINGS, 2, PROGRAM))
    for rank in (0, 1):
        shares = json.loads((two / f"shares-{rank}.json").read_text())
        assert set(shares) == {"weights", "gradients", "optimizer", "average"}
        assert all(0.4 < share < 0.6 for share in shares.values()), shares
    assert len(losses(one)) == 10 and losses(two) == pytest.approx(losses(one), rel=1e-4)  # sums in another order
    ours, theirs = snapshot(two, 9), snapshot(one, 9)
    assert shapes(ours.weights) == shapes(theirs.weights) and shapes(ours.state) == shapes(theirs.state)
    for kind in ("model", "ema"):
        pairs = [(ours.weights[kind][name], value) for name, value in theirs.weights[kind].items()]
        assert all(torch.allclose(a, b, rtol=1e-2, atol=1e-4) for a, b in pairs)
    finish(start(begun(two, tmp_path / "again", 3), SETTINGS, 2))  # as many processes: exactly
    assert (tmp_path / "again" / STEPS).read_text() == (two / STEPS).read_text()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    result = train("shvit_digits", SETTINGS, begun(two, tmp_path / "alone", 3), quiet, resume=True)  # any number
    assert losses(tmp_path / "alone") == pytest.approx(losses(two), rel=1e-4)
    result.model.load_state_dict(snapshot(two, 10).weights["ema"], strict=True)


@pytest.mark.slow
def test_what_one_process_saved_is_split_and_a_projection_with_it(tmp_path: Path) -> None:
    """Features at several sizes, in lower precision, recomputed: whatever calls a model in another way."""
    quiet = Console(file=io.StringIO())
    train("shvit_digits", SETTINGS, tmp_path / "teacher", quiet)
    more = [
        *SETTINGS,
        "compute.precision=bf16",
        "compute.checkpointing=true",
        "distillation.teacher=deit",
        "distillation.kwargs={depth: 2, dim: 32}",
        f"distillation.checkpoint={tmp_path / 'teacher'}",
        "distillation.kind=feature",
        "distillation.features=map",
        "resolutions.sizes=[32, 48]",
        "data.size=48",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    train("shvit_digits", more, one, quiet)
    finish(start(begun(one, two, 3), more, 2, PROGRAM))
    assert json.loads((two / "shares-0.json").read_text())["weights"] < 0.6
    assert losses(two) == pytest.approx(losses(one), rel=2e-2)  # bfloat16
    assert shapes(snapshot(two, 10).weights) == shapes(snapshot(one, 10).weights)


@pytest.mark.full
def test_every_kind_of_model_can_be_split(tmp_path: Path) -> None:
    finish(launch(2, str(Path(__file__).parent / "split_gradients.py"), str(tmp_path / "errors.json")))
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert len(errors) == len(KINDS) and not {name: e for name, e in errors.items() if not e < 1e-3}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("compute.compile=true", r"compute\.compile=true"),
        ("compute.precision=fp16", r"compute\.precision=fp16"),
        ("regularisation.sigma_reparam=true", r"regularisation\.sigma_reparam=true"),
        ("optim.optimizer=lamb", r"optim\.optimizer=lamb"),
        ("optim.clip_mode=agc", r"optim\.clip_mode=agc"),
        ("elastic.widths=[0.5, 1.0]", r"elastic\.widths"),
    ],
)
def test_what_does_not_go_with_split_weights_is_refused(change: str, says: str) -> None:
    recipe = load_recipe("shvit_digits", [*SETTINGS, change])
    model = build_model(recipe, 10)
    with pytest.raises(RecipeError, match=rf"'compute\.sharding' does not go with {says}: leave one of them out"):
        check_sharding(recipe, model)
    check_sharding(load_recipe("shvit_digits", SETTINGS), model)


def test_a_parameter_that_is_a_single_number_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_parameter("scale", nn.Parameter(torch.ones(())))
    with pytest.raises(RecipeError, match=r"the parameter '0\.scale', a single number"):
        check_sharding(load_recipe("shvit_digits", SETTINGS), model)
