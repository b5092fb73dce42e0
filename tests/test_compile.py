"""Training by torch.compile: the numbers and names of an ordinary run, averages, tests, and an exact resumption."""

from __future__ import annotations

import io
import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from mixzoo.train import RecipeError, load_recipe, train
from mixzoo.train.diagnose import first_not_finite
from mixzoo.train.logs import STEPS
from mixzoo.train.processes import Processes
from mixzoo.train.snapshots import FOLDER, latest_snapshot, saved_steps
from rich.console import Console
from torch import nn

DEIT = (
    "model.name=deit",
    "model.kwargs={depth: 1, dim: 32}",
    "data.size=32",
    "data.batch=256",  # five steps an epoch
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "compute.memory_format=contiguous",
    "saving.tensorboard=false",
    "saving.every_epochs=1",
    "saving.every_steps=3",
    "ema.decay=0.9",
)


def steps(folder: Path) -> list[float]:
    return [float(line.split(",")[3]) for line in (folder / STEPS).read_text().splitlines()[1:]]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_a_compiled_run_is_an_ordinary_run(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default backend translates with a C++ compiler, for minutes; the other one shows all but that."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    if backend == "inductor" and shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch compiles for a processor with a C++ compiler, and there is none")
    plain, made, again = (tmp_path / name for name in ("plain", "made", "again"))
    quiet = Console(file=io.StringIO())
    expected = train("shvit_digits", DEIT, plain, quiet)
    settings = [*DEIT, "compute.compile=true"]
    torch._dynamo.utils.counters.clear()
    result = train("shvit_digits", settings, made, quiet)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert steps(made) == pytest.approx(steps(plain), rel=1e-5)
    (epoch,), (other,) = result.epochs, expected.epochs
    assert (epoch.accuracy, epoch.raw_accuracy) == pytest.approx((other.accuracy, other.raw_accuracy), abs=0.01)
    images = torch.rand(4, 1, 32, 32)
    assert torch.allclose(result.model(images), expected.model(images), rtol=1e-3, atol=1e-4)
    snapshots = [latest_snapshot(folder, pytest.fail) for folder in (plain, made)]
    names = [{kind: set(w) for kind, w in s.weights.items()} for s in snapshots if s is not None]
    assert names[0] == names[1] and set(names[0]) == {"model", "ema"}
    shutil.copytree(made / FOLDER, again / FOLDER)
    for name in ("log.csv", STEPS):
        shutil.copy(made / name, again / name)
    shutil.rmtree(saved_steps(again)[0])
    train("shvit_digits", settings, again, quiet, resume=True)
    assert (again / STEPS).read_text() == (made / STEPS).read_text()
    assert (again / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_what_is_first_not_finite_is_named_in_a_compiled_model() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model.compile(backend="eager")
    images, precision = torch.rand(2, 4), torch.autocast("cpu", enabled=False)
    model(images)
    nn.init.constant_(model[0].weight, 3e38)
    assert "is '0' (Linear)" in first_not_finite(model, 10 * images, precision)


def test_compiled_recomputation_is_refused_on_a_processor() -> None:
    recipe = load_recipe("shvit_digits", ["compute.compile=true", "compute.checkpointing=true"])
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="together give wrong gradients of attention on a processor"):
            Processes(recipe.compute)
