"""The training loop: timm's optimizer, schedule and loss around one model, with nothing hidden.

A run is fixed by its recipe: the same recipe, versions and number of threads give the same weights, bit for bit, on a
CPU. The model of the last epoch is the result; the test images measure it and choose nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

from ..zoo.errors import MixzooError
from ..zoo.timing import torch_threads
from .checkpoint import LOG, Epoch, EpochLog, build_model, save_run
from .data import Data, Split, augment, batches, load_data, normalise
from .progress import TrainProgress
from .recipe import RecipeError, load_recipe, override
from .schema import Recipe

_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class DivergedError(MixzooError):
    """The loss or the outputs stopped being finite; nothing was saved."""


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
) -> TrainResult:
    """Train what a recipe describes.

    Leaves in ``out``: ``model.safetensors`` and ``train.json`` (only once the run is finished), and ``log.csv`` (a row
    for every epoch, as it ends). The caller's random state is not touched.

    Args:
        recipe: a recipe, its name in the package, or the path of a YAML file.
        overrides: ``key=value`` changes, such as ``"schedule.epochs=3"``.
        out: the folder, made if it is not there.
        console: where progress goes; standard error if None.

    Raises:
        RecipeError: the recipe or an override is wrong.
        DivergedError: a loss is not finite; the message names the step.
    """
    recipe = override(recipe, overrides) if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    data = load_data(recipe.data)
    if len(data.train) < recipe.data.batch:
        raise RecipeError(f"'data.batch' is {recipe.data.batch}, but there are only {len(data.train)} training images.")
    start = time.perf_counter()
    with _seeded(recipe.seed), torch_threads(recipe.compute.threads or torch.get_num_threads()):
        model = build_model(recipe, data.in_chans, len(data.classes))
        epochs = _Loop(model, recipe, data).run(Path(out), console or Console(stderr=True))
        _to_format(model, "contiguous")
    result = TrainResult(
        model.eval(), recipe, data, epochs, epochs[-1].accuracy, time.perf_counter() - start, Path(out)
    )
    save_run(result.checkpoint, model, recipe, data, epochs, result.seconds)
    return result


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@torch.inference_mode()
def predict_logits(model: nn.Module, images: Tensor, recipe: Recipe, batch: int = 128) -> Tensor:
    """Logits (N, classes) of images (N, C, H, W) in [0, 1], without augmentation; the model's mode is left as it is."""
    return torch.cat([model(normalise(part, recipe.data)) for part in images.split(batch)])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose greatest logit is the label's."""
    return (logits.argmax(1) == labels).float().mean().item()


class _Loop:
    """One model on its way through one recipe."""

    def __init__(self, model: nn.Module, recipe: Recipe, data: Data) -> None:
        self.model, self.recipe, self.data = model, recipe, data
        _to_format(model, recipe.compute.memory_format)
        self.steps = len(data.train) // recipe.data.batch  # per epoch
        self.optimizer = _optimizer(model, recipe)
        self.scheduler = _scheduler(self.optimizer, recipe, self.steps)
        self.loss = LabelSmoothingCrossEntropy(recipe.regularisation.label_smoothing)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.updates = 0

    def run(self, out: Path, console: Console) -> tuple[Epoch, ...]:
        total, epochs = self.recipe.schedule.epochs, []
        with TrainProgress(console, total, self.steps) as progress, EpochLog(out / LOG, Epoch) as log:
            for number in range(1, total + 1):
                epoch = self._epoch(number, progress)
                epochs.append(epoch)
                log.write(epoch)
                left = (total - number) * sum(e.seconds for e in epochs) / number
                progress.epoch(number, epoch.loss, epoch.accuracy, epoch.images_per_s, left)
        return tuple(epochs)

    def _epoch(self, number: int, progress: TrainProgress) -> Epoch:
        start, total, seen = time.perf_counter(), 0.0, 0
        self.model.train()
        for images, labels in batches(self.data.train, self.recipe.data.batch, self.generator):
            total += self._step(images, labels, number) * len(labels)
            seen += len(labels)
            progress.step(number, total / seen, seen / (time.perf_counter() - start))
        speed = seen / (time.perf_counter() - start)
        share = self._test(self.data.test, number)
        lr = self.optimizer.param_groups[0]["lr"]
        return Epoch(number, lr, total / seen, share, speed, time.perf_counter() - start)

    def _step(self, images: Tensor, labels: Tensor, epoch: int) -> float:
        """One update; returns the loss before it."""
        images = normalise(augment(images, self.recipe.augment, self.generator), self.recipe.data)
        loss = self.loss(self.model(images), labels)
        value = loss.item()
        self._check("the loss", value, epoch)
        self.optimizer.zero_grad()
        loss.backward()
        if self.recipe.optim.clip_grad is not None:
            dispatch_clip_grad(self.model.parameters(), self.recipe.optim.clip_grad, self.recipe.optim.clip_mode)
        self.optimizer.step()
        self.updates += 1
        self.scheduler.step_update(self.updates)
        return value

    def _test(self, split: Split, epoch: int) -> float:
        logits = predict_logits(self.model.eval(), split.images, self.recipe)
        self._check("the sum of the test logits", logits.sum().item(), epoch)
        return accuracy(logits, split.labels)

    def _check(self, what: str, value: float, epoch: int) -> None:
        """Stop at the first value that is not finite."""
        if not math.isfinite(value):
            lr = self.optimizer.param_groups[0]["lr"]
            raise DivergedError(
                f"Training diverged at step {self.updates + 1} (epoch {epoch} of {self.recipe.schedule.epochs}, "
                f"learning rate {lr:.3g}): {what} is {value}. Nothing was saved; "
                f"try a lower optim.lr (now {self.recipe.optim.lr:.3g}), a longer warm-up or optim.clip_grad=1."
            )


def _to_format(model: nn.Module, name: str) -> None:
    model.to(memory_format=_FORMATS[name])  # type: ignore[call-overload]


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    optim = recipe.optim
    return create_optimizer_v2(model, opt=optim.optimizer, lr=optim.lr, weight_decay=optim.weight_decay, **optim.kwargs)


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Scheduler:
    plan = recipe.schedule
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=plan.schedule,
        num_epochs=plan.epochs,
        warmup_epochs=plan.warmup_epochs,
        warmup_lr=plan.warmup_lr,
        min_lr=plan.min_lr,
        warmup_prefix=False,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return scheduler
