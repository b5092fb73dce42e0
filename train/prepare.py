"""What a recipe asks of a model and of a batch, before the first step."""

from __future__ import annotations

import torch
from torch import nn

from .elastic import prepare_elastic
from .models import classifier_parameters, freeze_below_head, to_format
from .recipe import RecipeError
from .schema import Recipe
from .sigma import reparametrise


def check_batch(recipe: Recipe, images: int, processes: int) -> None:
    """Raise RecipeError where the recipe's batch cannot be made of the images, or shared by the processes."""
    batch, parts = recipe.data.batch, recipe.compute.accumulate
    if images < batch:
        raise RecipeError(f"'data.batch' is {batch}, but there are only {images} training images.")
    if batch % (processes * parts):
        raise RecipeError(
            f"'data.batch' is {batch}, which {processes} processes cannot compute in {parts} equal parts each: "
            f"make it a multiple of {processes * parts}."
        )
    if (recipe.augment.mixup or recipe.augment.cutmix) and batch // (processes * parts) % 2:
        raise RecipeError(f"Mixup and cutmix need an even batch, but a part has {batch // (processes * parts)} images.")


def prepare_model(model: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Everything that a recipe changes in a model before its parameters are given to an optimizer."""
    compute = recipe.compute
    to_format(model.to(device), compute.memory_format)
    if recipe.regularisation.sigma_reparam:
        reparametrise(model, keep=recipe.model.pretrained or recipe.model.checkpoint is not None)
    if recipe.tuning.train == "head":
        freeze_below_head(model)
    if recipe.elastic.widths:
        prepare_elastic(model, recipe)
    if compute.checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    second_head = recipe.distillation.teacher and recipe.distillation.kind != "feature"
    if second_head and hasattr(model, "set_distilled_training"):
        model.set_distilled_training(True)  # type: ignore[operator]


def set_training_mode(model: nn.Module, recipe: Recipe) -> None:
    """Training mode; below a head that is trained alone, everything does what it does in use."""
    model.train()
    if recipe.tuning.train == "head":
        trained = {id(p) for p in classifier_parameters(model)}
        for module in model.modules():
            if not any(id(p) in trained for p in module.parameters()):
                module.eval()
