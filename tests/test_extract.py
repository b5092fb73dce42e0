"""Runs that train nested widths, and the models that are cut out of them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mixzoo.blocks.elastic import make_elastic
from mixzoo.blocks.ffn import nested_size
from mixzoo.blocks.nested import narrow_model
from mixzoo.train import ExtractError, extract, load_recipe, load_run, train
from mixzoo.train.checkpoint import load_statistics
from mixzoo.train.judge import Wanted, judge
from mixzoo.train.logs import NESTED, STEPS
from mixzoo.train.models import ModelError, build_model
from mixzoo.train.pixels import as_pixels, normalise
from mixzoo.train.plan import make_plan, show_plan
from mixzoo.train.snapshots import saved_steps
from mixzoo.train.sources import load_data
from mixzoo.zoo import cli
from mixzoo.zoo.errors import CheckpointError
from rich.console import Console
from support import rel_err
from torch import nn
from typer.testing import CliRunner

COMMON = ("data.size=32", "schedule.epochs=2", "schedule.warmup_epochs=0", "elastic.widths=[0.25,0.5,1.0]")
PLAIN = ("compute.memory_format=contiguous", "optim.lr=1e-3")
DEIT = (*COMMON, *PLAIN, "model.name=deit", "model.kwargs={depth: 3, dim: 32}", "saving.every_epochs=1")
SHVIT = (
    *COMMON,
    "model.kwargs={depths: [1, 1, 1], dims: [16, 24, 32], partial_dims: [null, 8, 8]}",
    "data.batch=128",
    "saving.every_epochs=1",
    "saving.every_steps=3",
)
VIT = (
    *COMMON,
    *PLAIN,
    "model.name=timm/vit_tiny_patch16_224",
    "model.kwargs={embed_dim: 32, depth: 2, num_heads: 2, patch_size: 8}",
    "schedule.epochs=1",
)


def quiet() -> Console:
    return Console(file=io.StringIO())


def command(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return " ".join(result.stderr.split()) if code else result.stdout


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "train.json").read_text())


def pictures(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def at_width(folder: Path, index: int) -> nn.Module:
    """The large model of a run, at its width of this number."""
    run = load_run(folder)
    elastic = make_elastic(run.model, run.recipe.elastic.widths)
    elastic.choose(index)
    statistics = load_statistics(folder, run.record)
    for key, rows in statistics.items():
        name, _, leaf = key.rpartition(".")
        getattr(run.model.get_submodule(name), leaf).copy_(rows)
    return run.model


@pytest.fixture(scope="module")
def deit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without batch norms."""
    folder = tmp_path_factory.mktemp("deit")
    train("shvit_digits", DEIT, folder, quiet())
    return folder


@pytest.fixture(scope="module")
def shvit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with batch norms, and an average of the weights."""
    folder = tmp_path_factory.mktemp("shvit")
    train("shvit_digits", [*SHVIT, "ema.decay=0.9"], folder, quiet())
    return folder


# what the run leaves


def test_every_width_is_tested_after_every_epoch(deit: Path) -> None:
    rows = record(deit)["nested"]
    assert [(r["number"], r["width"]) for r in rows] == [(n, w) for n in (1, 2) for w in (0.25, 0.5, 1.0)]
    assert rows[-1]["accuracy"] == record(deit)["test_accuracy"] > 0.2
    assert len({r["test_loss"] for r in rows}) == 6
    assert len((deit / NESTED).read_text().splitlines()) == 7
    assert not (deit / "statistics.safetensors").exists()


def test_the_result_is_the_full_model(shvit: Path) -> None:
    assert judge(str(shvit), Wanted()).top1 == record(shvit)["test_accuracy"]


def test_curves_show_each_width(deit: Path, tmp_path: Path) -> None:
    command("plot", deit, "--out", tmp_path / "c.svg")
    assert "at width 0.25" in (tmp_path / "c.svg").read_text()


def test_a_dry_run_tells_the_widths() -> None:
    screen = io.StringIO()
    Console(file=screen, width=200).print(show_plan(make_plan(load_recipe("shvit_digits", DEIT))))
    assert "one of 0.25, 0.5, 1 in each step" in screen.getvalue()


# what is cut out of it


@pytest.mark.parametrize("sort", ["deit", "shvit"])
@pytest.mark.parametrize("index", [0, 1])
def test_a_cut_model_gives_what_the_large_one_gives_at_its_width(
    sort: str, index: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = request.getfixturevalue(sort)
    width = (0.25, 0.5)[index]
    cut, large = extract(run, width, tmp_path), at_width(run, index)
    with torch.no_grad():
        assert torch.equal(cut.model(pictures()), large(pictures()))
        assert rel_err(cut.model.double()(pictures().double()), large.double()(pictures().double())) <= 1e-12
        assert rel_err(large.double()(pictures().double()), load_run(run).model.double()(pictures().double())) > 1e-3
    known = record(run)["nested"][-3 + index]["accuracy"]
    assert judge(str(tmp_path), Wanted()).top1 == cut.accuracy == known == record(tmp_path)["test_accuracy"]
    assert cut.bytes < (run / "model.safetensors").stat().st_size and cut.params < 1.3e5
    assert record(tmp_path)["recipe"]["model"]["kwargs"]["ffn_width"] == width


def test_blocks_may_have_different_widths(deit: Path, tmp_path: Path) -> None:
    cut, large = extract(deit, (0.25, 1, 0.5), tmp_path), at_width(deit, 2)
    for dial, width in zip(large.elastic.dials, (0.25, 1.0, 0.5), strict=True):  # type: ignore[union-attr, arg-type]
        dial.used = nested_size(width, dial.hidden)
    with torch.no_grad():
        assert torch.equal(cut.model(pictures()), large(pictures()))
    assert cut.accuracy is None and judge(str(tmp_path), Wanted()).top1 > 0.15


def test_batch_norms_of_a_mixture_see_training_images(shvit: Path, tmp_path: Path) -> None:
    cut = extract(shvit, (0.25, 0.5, 1.0), tmp_path / "a")
    again = extract(shvit, (0.25, 0.5, 1.0), tmp_path / "b")
    assert all(torch.equal(t, again.model.state_dict()[k]) for k, t in cut.model.state_dict().items())
    recipe = load_run(shvit).recipe.data
    images = normalise(as_pixels(load_data(recipe), recipe).train.images, recipe)
    kept = narrow_model(load_run(shvit).model, (0.25, 0.5, 1.0))  # with the statistics of the full width
    off = [_furthest(model, images) for model in (cut.model, kept)]
    assert off[0] < 0.1 < 0.5 < off[1]
    assert all(m.momentum == 0.1 and not m.training for m in cut.model.modules() if isinstance(m, nn.BatchNorm2d))


@torch.no_grad()
def _furthest(model: nn.Module, images: torch.Tensor) -> float:
    """How far the mean of what a batch norm sees is from what it holds, at most, in standard deviations."""
    off: list[float] = []

    def look(module: Any, inputs: tuple[torch.Tensor]) -> None:
        mean, deviation = inputs[0].mean((0, 2, 3)), inputs[0].std((0, 2, 3))
        off.append(((module.running_mean - mean).abs() / (deviation + 1e-3)).max().item())

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model(images)
    for hook in hooks:
        hook.remove()
    return max(off)


def test_the_full_width_is_a_plain_copy(shvit: Path, tmp_path: Path) -> None:
    cut = extract(shvit, 1.0, tmp_path)
    with torch.no_grad():
        assert torch.equal(cut.model(pictures()), load_run(shvit).model(pictures()))
    assert cut.accuracy == record(shvit)["test_accuracy"]


def test_the_command_cuts_and_the_others_take_what_it_left(deit: Path, tmp_path: Path) -> None:
    said = command("extract", deit, "--width", "0.5", "--out", tmp_path / "half")
    assert "M parameters" in said and f"{record(tmp_path / 'half')['test_accuracy']:.2%}" in said
    facts = json.loads(command("extract", deit, "--width", "0.25,0.5,1", "--out", tmp_path / "mix", "--json"))
    assert facts["ffn_width"] == [0.25, 0.5, 1.0] and facts["accuracy"] is None
    scores = json.loads(command("eval", tmp_path / "half", "--json"))
    assert scores["top1"] == record(tmp_path / "half")["test_accuracy"]
    assert "is no list of numbers" in command("extract", deit, "--width", "half", "--out", tmp_path / "x", code=2)
    assert "The width 0.3 was not trained" in command("extract", deit, "--width", "0.3", "--out", "x", code=2)


def test_what_cannot_be_cut_is_one_sentence(deit: Path, tmp_path: Path) -> None:
    extract(deit, 0.5, tmp_path / "half")
    for run, width, says in (
        (tmp_path / "half", 0.5, r"trained one width: train with elastic\.widths"),
        (deit, 0.3, r"0\.3 was not trained: choose of 0\.25, 0\.5, 1"),
        (deit, [0.5, 0.5], r"do not fit deit \(there are 2 widths: give 1 or 3 \(one per block\)\)"),
    ):
        with pytest.raises(ExtractError, match=says):
            extract(run, width, tmp_path / "out")
    with pytest.raises(ExtractError, match="holds a run that was trained"):
        extract(deit, 0.5, deit)
    with pytest.raises(CheckpointError, match="does not hold a finished training run"):
        extract(tmp_path / "nothing", 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    extract(deit, 0.25, tmp_path / "half")  # an earlier extraction gives way
    assert record(tmp_path / "half")["extracted"]["ffn_width"] == 0.25


def test_statistics_that_are_not_those_of_the_run_are_refused(shvit: Path, tmp_path: Path) -> None:
    shutil.copytree(shvit, tmp_path / "run")
    (tmp_path / "run" / "statistics.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"statistics\.safetensors is not the file"):
        extract(tmp_path / "run", 0.5, tmp_path / "out")


def test_timms_models_are_cut_block_by_block_and_trained_on(tmp_path: Path) -> None:
    train("shvit_digits", VIT, tmp_path / "run", quiet())
    cut = extract(tmp_path / "run", (0.25, 0.5), tmp_path / "cut")
    assert judge(str(tmp_path / "cut"), Wanted()).top1 > 0.1
    alone = [change for change in VIT if "elastic" not in change]
    more = ["model.kwargs.ffn_width=[0.25,0.5]", f"model.checkpoint={tmp_path / 'cut'}"]
    again = build_model(load_recipe("shvit_digits", [*alone, *more]), 10)
    with torch.no_grad():
        assert torch.equal(again.eval()(pictures()), cut.model(pictures()))
    with pytest.raises(ModelError, match=r"ffn_width does not fit vit_tiny_patch16_224 \(there are 3 widths"):
        build_model(load_recipe("shvit_digits", [*alone, "model.kwargs.ffn_width=[1,1,1]"]), 10)


# runs


def test_a_model_without_ffns_is_refused_before_the_first_step(tmp_path: Path) -> None:
    changes = [*COMMON, "model.name=timm/resnet18", "model.kwargs={}"]
    with pytest.raises(ModelError, match=r"resnet18 cannot be trained with elastic\.widths \(its blocks have no FFN"):
        train("shvit_digits", changes, tmp_path, quiet())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelError, match="no FFN"):
        make_plan(load_recipe("shvit_digits", changes))


def test_a_resumed_run_draws_the_widths_that_it_would_have_drawn(shvit: Path, tmp_path: Path) -> None:
    for name in ("checkpoints", "log.csv", STEPS, NESTED):
        copy = shutil.copytree if (shvit / name).is_dir() else shutil.copy
        copy(shvit / name, tmp_path / name)  # type: ignore[operator]
    shutil.rmtree(saved_steps(tmp_path)[0])
    train("shvit_digits", [*SHVIT, "ema.decay=0.9"], tmp_path, quiet(), resume=True)
    for name in (STEPS, NESTED, "model.safetensors", "statistics.safetensors"):
        assert (tmp_path / name).read_bytes() == (shvit / name).read_bytes(), name
    assert record(tmp_path)["nested"] == record(shvit)["nested"]


def test_a_run_of_one_width_leaves_nothing_of_an_earlier_one_of_several(shvit: Path, tmp_path: Path) -> None:
    shutil.copytree(shvit, tmp_path / "run")
    train("shvit_digits", [*SHVIT, "elastic.widths=[]", "schedule.epochs=1"], tmp_path / "run", quiet())
    assert not (tmp_path / "run" / NESTED).exists() and not (tmp_path / "run" / "statistics.safetensors").exists()
    assert "nested" not in record(tmp_path / "run")


@pytest.mark.slow
def test_two_processes_draw_the_same_widths(tmp_path: Path) -> None:
    changes = [*DEIT, "data.batch=128"]
    train("shvit_digits", changes, tmp_path / "one", quiet())
    words = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    words += ["-m", "mixzoo", "train", "shvit_digits", *changes, "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True)
    one, two = (
        [float(line.split(",")[3]) for line in (tmp_path / name / STEPS).read_text().splitlines()[1:]]
        for name in ("one", "two")
    )
    assert len(one) == 20 and two == pytest.approx(one, rel=1e-4)  # sums in another order
    last = [row["test_loss"] for row in record(tmp_path / "two")["nested"]]
    assert last == pytest.approx([row["test_loss"] for row in record(tmp_path / "one")["nested"]], rel=1e-3)
