"""One model on its way through one recipe: steps, tests, and saved positions to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timm.models import model_parameters
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from ..zoo.errors import MixzooError
from .checkpoint import save_run
from .data import (
    Batch,
    Examples,
    Finish,
    TrainBatches,
    check_unreadable,
    eval_batches,
    eval_transform,
    make_loader,
    train_transform,
)
from .diagnose import first_not_finite
from .elastic import draw_width, judge_widths, use_full_width
from .evaluate import Scores, evaluate
from .images import Data
from .imitation import Imitator
from .logs import Epoch, Nested, RunLogs, Step
from .models import build_model, build_teacher
from .parts import Objective, current_lr, make_optimizer, make_scheduler
from .prepare import check_batch, prepare_model, set_training_mode
from .processes import Processes, later
from .progress import TrainProgress
from .randomness import FORWARD, seed_all
from .schema import Recipe
from .sigma import follow, plain_state
from .snapshots import Snapshot, prune, write_snapshot
from .sources import check_label


class DivergedError(MixzooError):
    """The loss or the outputs stopped being finite; the result was not saved."""


@dataclass
class Position:
    """How far a run is: steps in all, steps and loss of the epoch that it is in, time, and what was tested so far."""

    step: int = 0
    done: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    nested: list[Nested] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        return len(self.epochs) + 1


class Loop:
    """A run from its beginning, or from a saved step, to its end.

    Args:
        recipe: what to do.
        data: images.
        out: folder for what is left behind.
        console: where progress goes.
        processes: devices.
        snapshot: the saved step; None begins.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        out: Path,
        console: Console,
        processes: Processes,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.recipe, self.data, self.out = recipe, data, out
        self.console, self.processes, self.snapshot = console, processes, snapshot
        self._build_loaders()
        self._build_model()
        self.position = Position()
        if snapshot is not None:
            self._restore(snapshot)

    # what it is made of

    def _build_loaders(self) -> None:
        recipe, at = self.recipe, self.processes
        check_batch(recipe, len(self.data.train), at.count)
        pin = at.device.type == "cuda"
        transform = train_transform(recipe.data, recipe.augment)
        self.examples = Examples(self.data.train, transform, recipe.data, recipe.seed)
        self.batches = TrainBatches(
            len(self.data.train), recipe.data, recipe.seed, at.rank, at.count, recipe.compute.accumulate
        )
        self.loader = make_loader(self.examples, self.batches, recipe.data.workers, pin)
        self.test_examples = Examples(self.data.test, eval_transform(recipe.data), recipe.data, None)
        size = max(1, recipe.data.batch // at.count)
        places = eval_batches(len(self.data.test), size, at.rank, at.count)
        self.test_loader = make_loader(self.test_examples, places, recipe.data.workers, pin)
        last = recipe.compute.memory_format == "channels_last"
        self.finish = Finish(recipe.data, at.device, recipe.augment, recipe.seed, last)
        self.test_finish = Finish(recipe.data, at.device, channels_last=last)
        self.steps = self.batches.steps

    def _build_model(self) -> None:
        recipe, at, classes = self.recipe, self.processes, len(self.data.classes)
        torch.manual_seed(recipe.seed)
        model = build_model(recipe, classes, start=self.snapshot is None)
        teacher = build_teacher(recipe.distillation, recipe, classes) if recipe.distillation.teacher else None
        model = at.joined_norms(model) if recipe.compute.sync_bn else model
        prepare_model(model, recipe, at.device)
        if at.sharded:
            from .sharding import check_sharding

            check_sharding(recipe, model)
        self.model, self.ema = model, self._average(model)
        teacher = teacher.to(at.device) if teacher is not None else None
        self.objective = Objective(recipe, classes, teacher, model)
        called = self.objective.called(model)
        self.projection = called.projection if isinstance(called, Imitator) else None
        at.shard(called, *([] if self.ema is None else [self.ema.module]))
        optimizer = make_optimizer(called, recipe)
        self.scheduler = make_scheduler(optimizer, recipe, self.steps)
        self.called, self.optimizer = at.prepare(called, optimizer)

    def _average(self, model: nn.Module) -> ModelEmaV3 | None:
        ema = self.recipe.ema
        if not ema.decay:
            return None
        return ModelEmaV3(model, ema.decay, use_warmup=ema.warmup, foreach=not self.processes.sharded)

    def _weighted(self) -> dict[str, nn.Module]:
        """What has weights to be saved, by the name of their file."""
        modules = {"model": self.model, "ema": self.ema and self.ema.module, "projection": self.projection}
        return {name: module for name, module in modules.items() if module is not None}

    def _restore(self, snapshot: Snapshot) -> None:
        facts, at = snapshot.facts, self.processes
        for name, module in self._weighted().items():
            at.load(module, snapshot.weights[name])
        at.load_optimizer(self.optimizer, snapshot.state["optimizer"])
        if self.processes.accelerator.scaler is not None:
            self.processes.accelerator.scaler.load_state_dict(snapshot.state["scaler"])
        self.examples.unreadable = {int(k): v for k, v in facts["unreadable"].items()}
        epochs = [Epoch(**row) for row in facts["epochs"]]
        nested = [Nested(**row) for row in facts.get("nested", ())]
        self.position = Position(facts["step"], facts["done"], facts["loss"], facts["seconds"], epochs, nested)

    # what it does

    def run(self) -> tuple[tuple[Epoch, ...], float]:
        """Train to the end and save the result; gives the epochs, and the seconds that they took."""
        at, total = self.position, self.recipe.schedule.total_epochs
        with TrainProgress(self.console, total, self.steps, at.step) as self.progress, self._logs() as self.logs:
            while at.epoch <= total:
                epoch = self._epoch()
                self._tell(epoch, total)
                self._save(epoch)
        self._result()
        return tuple(at.epochs), at.seconds

    def _logs(self) -> Any:
        from contextlib import closing, nullcontext

        if not self.processes.main:
            return nullcontext()
        at, nested = self.position, bool(self.recipe.elastic.widths)
        return closing(RunLogs(self.out, at.step, len(at.epochs), self.recipe.saving.tensorboard, nested))

    def _epoch(self) -> Epoch:
        """Train what is left of the epoch, and test."""
        at, start, first = self.position, time.perf_counter(), self.position.done
        set_training_mode(self.model, self.recipe)
        for parts in self._parts():
            self._step(parts)
            size = self.recipe.data.batch
            self.progress.step(at.epoch, at.loss / at.done, (at.done - first) * size / (time.perf_counter() - start))
            self._save_step()
        trained = time.perf_counter() - start
        if self.recipe.schedule.per == "epoch":
            self.scheduler.step(at.epoch)
        use_full_width(self.model, self.recipe)
        scores, raw = self._test()
        at.nested += judge_widths(self.tested, self.recipe, at.epoch, scores, self._judge)
        speed = (at.done - first) * self.recipe.data.batch / max(trained, 1e-9)
        loss, lr = at.loss / max(at.done, 1), current_lr(self.optimizer)
        seconds = time.perf_counter() - start
        epoch = Epoch(at.epoch, lr, loss, scores.top1, scores.loss, speed, seconds, raw.top1 if raw else None)
        at.epochs.append(epoch)
        at.done, at.loss, at.seconds = 0, 0.0, at.seconds + seconds
        return epoch

    def _parts(self) -> Iterator[list[Batch]]:
        """The batches of each step that is left of this epoch, one for each part that it is computed in."""
        self.batches.seek(self.position.epoch, self.position.done)
        batches, count = iter(self.loader), self.recipe.compute.accumulate
        for _ in range(self.position.done, self.steps):
            yield [self._checked(next(batches)) for _ in range(count)]

    def _checked(self, batch: Batch) -> Batch:
        self.examples.unreadable.update(batch.unreadable)
        if self.data.train.labels is None:
            for label, place in zip(batch.labels.tolist(), batch.places, strict=True):
                check_label(label, self.data.classes, self.data.train.name(place[0]))
        return batch

    def _step(self, parts: list[Batch]) -> None:
        """One update, with the loss before it in the log."""
        at, lr = self.position, current_lr(self.optimizer)
        self.optimizer.zero_grad()
        read, seen = self._backward(parts)
        loss = read()
        if not math.isfinite(loss):
            self._diverged(f"the loss is {loss}", seen)
        self._clip()
        self.optimizer.step()
        at.step, at.done, at.loss = at.step + 1, at.done + 1, at.loss + loss
        self._follow()
        self.scheduler.step_update(at.step)
        if self.processes.main:
            self.logs.step(Step(at.step, at.epoch, lr, loss))

    def _follow(self) -> None:
        """Let what depends on the weights follow them: singular vectors, the average, and those of the average."""
        vectors = self.recipe.regularisation.sigma_reparam
        if vectors:
            follow(self.model)
        if self.ema is not None:
            self.ema.update(self.model, step=self.position.step)
            if vectors:
                follow(self.ema.module)

    def _backward(self, parts: list[Batch]) -> tuple[Any, list[Tensor]]:
        """Gradients of the step: (what reads its loss, the images that the model got)."""
        at, seen, total = self.position, [], torch.zeros((), device=self.processes.device)
        draw_width(self.model, self.recipe, at.step)
        for index, batch in enumerate(parts):
            images, labels = self.finish(batch)
            seen.append(images)
            last = index == len(parts) - 1
            seed_all(self.recipe.seed, FORWARD, at.step, self.batches.shards[index])
            with self.processes.apart(self.called, not last):
                loss = self.objective(self.called, images, labels, at.epoch, at.step) / len(parts)
                total = total + loss.detach()
                read = later(self.processes.mean(total)) if last else None
                self.processes.backward(loss)
        return read, seen

    def _clip(self) -> None:
        optim = self.recipe.optim
        if optim.clip_grad is not None:
            self.processes.accelerator.unscale_gradients(self.optimizer)
            parameters = model_parameters(self.model, exclude_head=optim.clip_mode == "agc")
            beside = [] if self.projection is None else self.projection.parameters()
            dispatch_clip_grad([*parameters, *beside], optim.clip_grad, optim.clip_mode)

    def _test(self) -> tuple[Scores, Scores | None]:
        """Scores of the result as it is now, and of the weights themselves where that is another."""
        models = [(self.model, self.called)]
        if self.ema is not None:
            models.insert(0, (self.ema.module, self.ema.module))
        scores = []
        for model, called in models:
            self.processes.agree(model.buffers())
            with self.processes.gathered(called):
                scores.append(self._judge(model))
        if not math.isfinite(scores[-1].loss):
            self._diverged(f"the loss of the test images is {scores[-1].loss}", [])
        return scores[0], scores[1] if len(scores) > 1 else None

    def _judge(self, model: nn.Module) -> Scores:
        return evaluate(model.eval(), self.test_loader, self.test_finish, self.processes)

    @property
    def tested(self) -> nn.Module:
        """What becomes the result: the model, or its average."""
        return self.model if self.ema is None else self.ema.module

    def _diverged(self, what: str, seen: list[Tensor]) -> None:
        """Stop, and say where it began."""
        at, optim = self.position, self.recipe.optim
        with self.processes.gathered(self.called):
            where = [first_not_finite(self.model, images, self.processes.autocast()) for images in seen]
        told = [text for part in self.processes.gather(where) for text in part]
        cause = next((text for text in told if "alone" not in text), told[0] if told else "")
        raise DivergedError(
            f"Training diverged at step {at.step + 1} (epoch {at.epoch} of {self.recipe.schedule.total_epochs}, "
            f"learning rate {current_lr(self.optimizer):.3g}): {what}{'; ' + cause if cause else ''}. The result was "
            f"not saved; try a lower optim.lr (now {optim.lr:.3g}), a longer warm-up or optim.clip_grad=1."
        )

    # what it leaves

    def _tell(self, epoch: Epoch, total: int) -> None:
        at = self.position
        left = (total - epoch.number) * at.seconds / epoch.number
        nested = [n for n in at.nested if n.number == epoch.number]
        narrower = "".join(f", at width {n.width:g} {n.accuracy:.2%}" for n in nested[:-1])
        self.progress.epoch(epoch.number, epoch.loss, epoch.accuracy, epoch.images_per_s, left, narrower)
        if self.processes.main:
            self.logs.epoch(epoch, at.step, nested)
        unreadable = self.examples.unreadable
        for found in self.processes.gather(dict(unreadable)):
            unreadable.update(found)
        check_unreadable(unreadable, self.examples.allowed, len(self.examples))
        if unreadable and epoch.number == total:
            text = f"{len(unreadable)} images could not be read and were replaced: {'; '.join(unreadable.values())}"
            self.console.print(text, markup=False)

    def _save_step(self) -> None:
        every = self.recipe.saving.every_steps
        if every and self.position.step % every == 0 and self.position.done < self.steps:
            self._snapshot(None)

    def _save(self, epoch: Epoch) -> None:
        saving = self.recipe.saving
        if saving.every_epochs and epoch.number % saving.every_epochs == 0:
            self._snapshot({"accuracy": epoch.accuracy, "loss": epoch.test_loss}.get(saving.monitor or ""))

    def _snapshot(self, score: float | None) -> None:
        """Save the position; the other processes wait, so that none is ahead of what is on the disk."""
        weights = {name: self.processes.whole(module.state_dict()) for name, module in self._weighted().items()}
        optimizer = self.processes.whole(self.optimizer.state_dict())
        if self.processes.main:
            at, scaler = self.position, self.processes.accelerator.scaler
            self.logs.sync()
            state = {"optimizer": optimizer, "scaler": scaler.state_dict() if scaler else None}
            facts = {
                "step": at.step,
                "done": at.done,
                "loss": at.loss,
                "seconds": at.seconds,
                "score": score,
                "epochs": [asdict(e) for e in at.epochs],
                "nested": [asdict(n) for n in at.nested],
                "unreadable": self.examples.unreadable,
                "processes": self.processes.count,
                "recipe": self.recipe.model_dump(mode="json"),
            }
            write_snapshot(self.out, at.step, weights, state, facts)
            prune(self.out, self.recipe.saving.keep, _BETTER.get(self.recipe.saving.monitor or ""))
        self.processes.wait()

    def _result(self) -> None:
        weights = self.processes.whole(plain_state(self.tested))
        if self.processes.main:
            at, data = self.position, self.data
            facts = {
                "classes": list(data.classes),
                "in_chans": len(self.recipe.data.mean),
                "train_images": len(data.train),
                "test_images": len(data.test),
                "test_accuracy": at.epochs[-1].accuracy,
                "seconds": at.seconds,
                "epochs": [asdict(e) for e in at.epochs],
                **({"nested": [asdict(n) for n in at.nested]} if at.nested else {}),
                "unreadable": list(self.examples.unreadable.values()),
                "threads": torch.get_num_threads(),
                "processes": self.processes.count,
                "device": str(self.processes.device),
            }
            save_run(self.out, weights, self.recipe, facts)
        self.processes.wait()


_BETTER = {"accuracy": float.__gt__, "loss": float.__lt__}
