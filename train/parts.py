"""timm's parts of a training, put together as a recipe says: parameter groups, optimizer, schedule, loss."""

from __future__ import annotations

import fnmatch
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from .imitation import READERS, Imitator, Reader, distance
from .randomness import MIX, seed_cpu
from .recipe import RecipeError
from .resolutions import Resolutions
from .schema import DistillationRecipe, Recipe
from .sigma import plain_name


def lr_factor(recipe: Recipe) -> float:
    """What the learning rate is multiplied with because the batch is not the one that it is for."""
    return recipe.data.batch / recipe.optim.lr_batch if recipe.optim.lr_batch else 1.0


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """timm's groups of parameters: with and without weight decay, and by depth where the rate decays with it.

    A projection beside the model has groups of its own, at the full rate.
    """
    if isinstance(model, Imitator):
        beside = param_groups_weight_decay(model.projection, recipe.optim.weight_decay)
        return [*parameter_groups(model.student, recipe), *beside]
    optim = recipe.optim
    names = {*_no_decay(model), *_matching(model, optim.no_decay)}
    names.update(name for name, _ in model.named_parameters() if plain_name(name) in names)
    if optim.layer_decay is not None:
        return param_groups_layer_decay(
            model, optim.weight_decay, no_weight_decay_list=names, layer_decay=optim.layer_decay
        )
    return param_groups_weight_decay(model, optim.weight_decay, no_weight_decay_list=names)


def _no_decay(model: nn.Module) -> set[str]:
    return set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]


def _matching(model: nn.Module, patterns: tuple[str, ...]) -> set[str]:
    names = [plain_name(name) for name, _ in model.named_parameters()]
    found: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise RecipeError(f"'optim.no_decay': no parameter of the model is called {pattern!r}: use globs of names.")
        found.update(matches)
    return found


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimizer over the groups, at the learning rate for the recipe's batch."""
    optim = recipe.optim
    return create_optimizer_v2(
        model,
        opt=optim.optimizer,
        lr=optim.lr * lr_factor(recipe),
        weight_decay=optim.weight_decay,
        param_group_fn=lambda m: parameter_groups(m, recipe),
        **optim.kwargs,
    )


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Scheduler:
    """timm's schedule; ``steps`` are those of an epoch."""
    plan = recipe.schedule
    factor = lr_factor(recipe) if plan.scale_ends else 1.0
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=plan.schedule,
        num_epochs=plan.epochs,
        decay_epochs=plan.decay_epochs,
        decay_rate=plan.decay_rate,
        cooldown_epochs=plan.cooldown_epochs,
        warmup_epochs=plan.warmup_epochs,
        warmup_prefix=plan.warmup_prefix,
        warmup_lr=plan.warmup_lr * factor,
        min_lr=plan.min_lr * factor,
        step_on_epochs=plan.per == "epoch",
        updates_per_epoch=steps,
    )
    return scheduler


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate now, without the factors of single groups."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) / float(group.get("lr_scale", 1.0))


class Objective:
    """Images and labels -> the loss that is minimised, with what mixes images and what a teacher says.

    Args:
        recipe: of the run.
        num_classes: of the data.
        teacher: a model in eval mode, or None.
        model: that is trained, not wrapped; needed where the recipe names resolutions.
    """

    def __init__(
        self, recipe: Recipe, num_classes: int, teacher: nn.Module | None = None, model: nn.Module | None = None
    ) -> None:
        augment, smoothing = recipe.augment, recipe.regularisation.label_smoothing
        self.recipe, self.mixup = recipe, None
        if augment.mixup or augment.cutmix:
            self.mixup = Mixup(
                augment.mixup,
                augment.cutmix,
                prob=augment.mix_prob,
                switch_prob=augment.switch_prob,
                label_smoothing=smoothing,
                num_classes=num_classes,
            )
        self.loss = _criterion(recipe.regularisation.bce, smoothing, mixed=self.mixup is not None)
        self.distillation = Distillation(recipe, teacher) if teacher is not None else None
        self.resolutions = None
        if model is not None and recipe.resolutions.sizes:
            self.resolutions = Resolutions(recipe.resolutions, model)

    def called(self, model: nn.Module) -> nn.Module:
        """What is called with images in training: the model, or the model beside what is trained with it."""
        teacher = self.distillation.features if self.distillation else None
        called = model if teacher is None else Imitator(model, teacher, self.recipe)
        if self.recipe.compute.compile:
            called.compile()
        return called

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, epoch: int, step: int) -> Tensor:
        """The mean loss of images (B, C, H, W), which are changed, with labels (B,) in step ``step`` of the run."""
        images, target = self.mixed(images, labels, epoch, step)
        if self.resolutions is None:
            return self._loss_of(model, images, target)
        return self.resolutions(lambda resized: self._loss_of(model, resized, target), images)

    def _loss_of(self, model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        outputs = model(images)
        if self.distillation is None:
            return self.loss(outputs, target)
        logits, imitation = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        return self.distillation(self.loss(logits, target), imitation, images)

    def mixed(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """What the model gets and what it should say, alike in all processes and parts of a step."""
        if self.mixup is None:
            return images, labels
        off = self.recipe.augment.off_epoch
        self.mixup.mixup_enabled = off is None or epoch < off
        seed_cpu(self.recipe.seed, MIX, step)
        return self.mixup(images, labels)


def _criterion(bce: bool, smoothing: float, mixed: bool) -> nn.Module:
    if bce:
        return BinaryCrossEntropy(smoothing=0.0 if mixed else smoothing)
    return SoftTargetCrossEntropy() if mixed else LabelSmoothingCrossEntropy(smoothing)


class Distillation:
    """(1 - alpha) of the loss on labels, and alpha of the distance from a teacher (DeiT, arXiv:2012.12877)."""

    def __init__(self, recipe: Recipe, teacher: nn.Module) -> None:
        self.settings: DistillationRecipe = recipe.distillation
        self.teacher = teacher
        self.features: Reader | None = None
        if self.settings.kind == "feature":
            self.features = READERS[self.settings.features](teacher)
        device = next(teacher.parameters()).device
        cfg: Any = teacher.pretrained_cfg
        self.ours, self.theirs = (
            tuple(torch.tensor(v, device=device).view(1, -1, 1, 1) for v in pair)
            for pair in ((recipe.data.mean, recipe.data.std), (cfg["mean"], cfg["std"]))
        )

    def __call__(self, base: Tensor, imitation: Tensor, images: Tensor) -> Tensor:
        """``imitation``: what the student says in the teacher's place, (B, classes) or features."""
        (mean, std), (their_mean, their_std) = self.ours, self.theirs
        with torch.no_grad():
            theirs = (images * std + mean - their_mean) / their_std
            said = self.features(theirs)[1] if self.features else self.teacher(theirs)
        alpha = self.settings.alpha
        return (1 - alpha) * base + alpha * self._distance(imitation, said.float())

    def _distance(self, imitation: Tensor, said: Tensor) -> Tensor:
        if self.features:
            return distance(imitation, said)
        if self.settings.kind == "hard":
            return F.cross_entropy(imitation, said.argmax(1))
        tau = self.settings.tau
        pair = (F.log_softmax(imitation / tau, 1), F.log_softmax(said / tau, 1))
        return F.kl_div(*pair, reduction="batchmean", log_target=True) * tau**2
