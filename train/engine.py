"""The training loop: timm's parts around one model, on the devices that Accelerate finds, with nothing hidden.

A run is fixed by its recipe: the same recipe, versions and number of threads give the same weights, bit for bit, on a
CPU, whether it runs through or is killed and resumed. The model of the last epoch is the result, or its average where
there is one; the test images measure it and choose nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from ..zoo.errors import MixzooError
from ..zoo.timing import torch_threads
from ..zoo.trained import RECORD
from .checkpoint import STATISTICS, Trained, load_run
from .images import Data
from .logs import NESTED, Epoch, storing
from .loop import Loop
from .models import WEIGHTS
from .processes import Processes
from .randomness import borrowed_generators
from .recipe import RecipeError, load_recipe, override
from .schema import Recipe, valid_keys
from .snapshots import Snapshot, discard, latest_snapshot, saved_steps, sweep
from .sources import load_data

FREE_KEYS = ("saving.", "data.workers", "data.root")  # may differ when a run is resumed: no number depends on them
_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset)|DataLoader worker|Socket", re.IGNORECASE)


class LostError(MixzooError):
    """A process that the run needs has ended."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run. ``model`` is in eval mode; ``accuracy`` is the share of test images it gets right."""

    model: nn.Module
    recipe: Recipe
    data: Data
    epochs: tuple[Epoch, ...]
    accuracy: float
    seconds: float
    checkpoint: Path


def train(
    recipe: Recipe | str | Path,
    overrides: Iterable[str] = (),
    out: str | Path = "runs/latest",
    console: Console | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train what a recipe describes.

    Leaves in ``out``: ``model.safetensors`` and ``train.json`` (only once the run is finished), ``log.csv`` and
    ``steps.csv`` (a row for every epoch and step, as it ends), and ``checkpoints`` to resume from. The caller's random
    state is not touched.

    Args:
        recipe: a recipe, its name in the package, or the path of a YAML file.
        overrides: ``key=value`` changes, such as ``"schedule.epochs=3"``.
        out: the folder, made if it is not there.
        console: where progress goes; standard error if None.
        resume: go on with the run that ``out`` holds; one that is finished is given back as it is.

    Raises:
        RecipeError: the recipe or an override is wrong, or not that of the run to be resumed.
        DivergedError: a loss is not finite; the message names the step and the module.
        StorageError: a file cannot be written; what was saved before is whole.
        LostError: another process of the run, or one that reads images, has ended.
    """
    recipe = override(recipe, overrides) if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    out, processes = Path(out), Processes(recipe.compute)
    console = (console or Console(stderr=True)) if processes.main else Console(quiet=True)
    with processes.first_here():
        data = load_data(recipe.data)
    if resume and (out / RECORD).is_file():
        return _finished(out, recipe, data, console)
    snapshot = _prepare(out, recipe, resume, console, processes)
    with borrowed_generators(), torch_threads(recipe.compute.threads or torch.get_num_threads()), _watched(out):
        loop = Loop(recipe, data, out, console, processes, snapshot)
        epochs, seconds = loop.run()
        trained = load_run(out) if processes.main else Trained(loop.model.eval(), recipe, {})
    processes.end()
    return TrainResult(trained.model, recipe, data, epochs, epochs[-1].accuracy, seconds, out)


def _finished(out: Path, recipe: Recipe, data: Data, console: Console) -> TrainResult:
    run = load_run(out)
    _check_same(run.recipe, recipe, out)
    console.print(f"The run in {out} is finished: nothing to do.", markup=False)
    epochs = tuple(Epoch(**row) for row in run.record["epochs"])
    return TrainResult(run.model, recipe, data, epochs, run.record["test_accuracy"], run.record["seconds"], out)


def _prepare(out: Path, recipe: Recipe, resume: bool, console: Console, processes: Processes) -> Snapshot | None:
    """Make ``out`` ready, and give the saved step to go on from."""
    if resume:
        if processes.main:
            sweep(out)
        snapshot = latest_snapshot(out, lambda text: console.print(text, markup=False))
        if snapshot is None:
            console.print(f"There is no checkpoint in {out}: the run begins anew.", markup=False)
            return None
        _check_same(Recipe.model_validate(snapshot.facts["recipe"]), recipe, out)
        console.print(f"Going on after step {snapshot.facts['step']}, from {snapshot.path}.", markup=False)
        return snapshot
    if saved_steps(out) and not (out / RECORD).is_file():
        raise RecipeError(f"{out} holds a run that is not finished: go on with --resume, or give another --out.")
    processes.wait()
    if processes.main:
        with storing("A run", out):
            discard(out)
            for name in (RECORD, WEIGHTS, STATISTICS, NESTED):
                (out / name).unlink(missing_ok=True)
    return None


def _check_same(then: Recipe, now: Recipe, out: Path) -> None:
    """Raise RecipeError where two recipes differ in what decides the numbers."""
    pairs = {key: (_value(then, key), _value(now, key)) for key in valid_keys() if not key.startswith(FREE_KEYS)}
    differing = [f"{key} was {was!r} and is {new!r}" for key, (was, new) in pairs.items() if was != new]
    if differing:
        raise RecipeError(
            f"The run in {out} has another recipe ({'; '.join(differing)}): give the same, or another --out."
        )


def _value(recipe: Recipe, key: str) -> object:
    value: object = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


@contextmanager
def _watched(out: Path) -> Iterator[None]:
    """Turn the loss of another process into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, MixzooError) or not _LOST.search(str(error)):
            raise
        saved = saved_steps(out)
        remedy = f"{saved[0]} is saved: go on with --resume" if saved else "Nothing was saved: start again"
        reason = str(error).strip().splitlines()[0]
        raise LostError(f"A process of this run has ended ({reason}). {remedy}.") from error
