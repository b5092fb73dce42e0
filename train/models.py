"""The models of a run: the one that is trained, freshly made or from weights, and a teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_pretrained
from torch import Tensor, nn

from ..blocks.nested import Widths, narrow_model
from ..blocks.prepbn import ProgressiveRepBN
from ..zoo import registry
from ..zoo.errors import CheckpointError, MixzooError, UnknownModelError
from ..zoo.trained import RECORD, find_run, what_there_is
from .data import eval_interpolation
from .schema import DistillationRecipe, Recipe

WEIGHTS = "model.safetensors"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_PREFIX = "timm/"


class ModelError(MixzooError, ValueError):
    """A model that cannot be built as the recipe says."""


def build_model(recipe: Recipe, num_classes: int, start: bool = True) -> nn.Module:
    """The recipe's backbone; its ``pretrained_cfg`` says how images must be prepared.

    Args:
        recipe: names the model, and the weights that it starts from.
        num_classes: of the classifier.
        start: load those weights; else they are random.

    Raises:
        MixzooError: no such model, an option that it does not take, or weights that cannot be had.
    """
    options = _options(recipe, num_classes)
    checkpoint = recipe.model.checkpoint if start else None
    model = create(recipe.model.name, options, recipe.model.pretrained and start, checkpoint)
    data = recipe.data
    model.pretrained_cfg = {  # type: ignore[assignment]
        **model.pretrained_cfg,  # type: ignore[dict-item]
        "input_size": (len(data.mean), data.size, data.size),
        "interpolation": eval_interpolation(data),
        "crop_pct": data.crop_pct,
        "crop_mode": data.crop_mode,
        "mean": data.mean,
        "std": data.std,
        "num_classes": num_classes,
    }
    _set_prepbn_steps(model, recipe.schedule.prepbn_steps)
    return model


def _options(recipe: Recipe, num_classes: int) -> dict[str, Any]:
    kwargs, rates = recipe.model.kwargs, recipe.regularisation
    if kwargs.get("num_classes", num_classes) != num_classes:
        raise ModelError(
            f"model.kwargs.num_classes is {kwargs['num_classes']}, but the data has {num_classes} classes: drop it."
        )
    named = {"drop_path_rate": rates.drop_path, "drop_rate": rates.dropout}
    options = {"in_chans": len(recipe.data.mean), "num_classes": num_classes}
    if takes_size(recipe.model.name):
        options["img_size"] = recipe.data.size
    return {**options, **{k: v for k, v in named.items() if v is not None}, **kwargs}


def is_ours(name: str) -> bool:
    """Whether the zoo has a model or a family of this name."""
    base = name.split(".", 1)[0]
    return not name.startswith(_PREFIX) and (base.removeprefix("mz_") in registry.VARIANTS or base in registry.FAMILIES)


def takes_size(name: str) -> bool:
    """Whether a model must be told the size of its images: ours, and those of timm that have a fixed one."""
    if is_ours(name):
        return True
    cfg = timm.models.get_pretrained_cfg(name.removeprefix(_PREFIX), allow_unregistered=True)
    return bool(cfg and cfg.fixed_input_size)


def create(name: str, options: dict[str, Any], pretrained: bool = False, checkpoint: str | None = None) -> nn.Module:
    """A model of the zoo, or else of timm, with random, published or given weights.

    A checkpoint is a file, the folder of a run, or the name of one that comes with the package. A classifier of other
    classes starts anew. ``ffn_width`` of the options is the zoo's, and serves for timm's models too; weights
    are then those of the narrower model.
    """
    file = None if checkpoint is None else _weights_file(Path(checkpoint))
    if is_ours(name):
        return registry.create_model(name, pretrained, file, **options)
    base = name.removeprefix(_PREFIX)
    if not timm.is_model(base.split(".", 1)[0]):
        raise UnknownModelError(name, [*registry.VARIANTS, *registry.FAMILIES, *timm.list_models()])
    if file is not None:
        overlay = {"file": str(file), **_classes_of(file)}
        options = {**options, "pretrained_cfg_overlay": overlay}
    weights = pretrained or file is not None
    try:
        if "ffn_width" in options:
            return _timm_narrow(base, weights, **options)
        return timm.create_model(base, pretrained=weights, **options)
    except TypeError as error:
        raise ModelError(f"timm's {base} does not take model.kwargs as they are ({error}): correct them.") from error
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"The weights of {name} cannot be had, or do not fit ({error}).") from error


def _timm_narrow(name: str, weights: bool, ffn_width: Widths, **options: Any) -> nn.Module:
    """timm's model with narrower FFNs: one width for all, or one for each FFN in their order."""
    model: Any = timm.create_model(name, **options)
    try:
        narrow_model(model, ffn_width)
    except (ValueError, TypeError) as error:
        raise ModelError(f"model.kwargs.ffn_width does not fit {name} ({error}): correct it.") from error
    if weights:
        load_pretrained(model, num_classes=model.num_classes, in_chans=options.get("in_chans", 3))
    return model


def _weights_file(path: Path) -> Path:
    path = find_run(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"No checkpoint at {path}: give a file of weights, or a finished run's folder ({what_there_is()})."
        )
    return file


def _classes_of(file: Path) -> dict[str, int]:
    """What timm must be told of weights of a run: for how many classes they are."""
    record = file.parent / RECORD
    return {"num_classes": len(json.loads(record.read_text(encoding="utf-8"))["classes"])} if record.is_file() else {}


def _set_prepbn_steps(model: nn.Module, steps: int | None) -> None:
    found = [m for m in model.modules() if isinstance(m, ProgressiveRepBN)]
    if steps is None:
        return
    if not found:
        raise ModelError("schedule.prepbn_steps is set, but the model has no progressive norms: leave it out.")
    for module in found:
        module.iter.fill_(steps)
        module.total_step.fill_(steps)


def to_format(model: nn.Module, name: str) -> nn.Module:
    """Keep the weights in the memory format ``name``."""
    return model.to(memory_format=FORMATS[name])  # type: ignore[call-overload]


# fine-tuning


def classifier_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the model's classifier, or of both where it has two."""
    heads = model.get_classifier()  # type: ignore[operator]
    return [p for head in (heads if isinstance(heads, tuple) else (heads,)) for p in head.parameters()]


class ClassifierInput:
    """Watches a model: ``features`` (B, D) are what entered its classifier, or the first of two, the last time."""

    def __init__(self, model: nn.Module) -> None:
        self.features: Any = None
        head: Any = model.get_classifier()  # type: ignore[operator]
        first = head[0] if isinstance(head, tuple) else head
        first.register_forward_pre_hook(self._watch)

    def _watch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0]


def freeze_below_head(model: nn.Module) -> None:
    """Leave only the classifier to be trained."""
    model.requires_grad_(False)
    for parameter in classifier_parameters(model):
        parameter.requires_grad_(True)


# teachers


def build_teacher(recipe: DistillationRecipe, student: Recipe, num_classes: int) -> nn.Module:
    """The teacher in eval mode, with fixed weights, for images of the student's size; ``pretrained_cfg`` has its mean.

    Raises:
        ModelError: it has other classes than the student, and is to name them.
    """
    assert recipe.teacher is not None
    options = {"in_chans": len(student.data.mean), **recipe.kwargs}
    if takes_size(recipe.teacher):
        options.setdefault("img_size", student.data.size)
    known = _teacher_classes(recipe)
    if known != num_classes and recipe.kind != "feature":
        raise ModelError(
            f"The teacher {recipe.teacher} knows {known} classes, but the data has {num_classes}: take another teacher."
        )
    model = create(recipe.teacher, {**options, "num_classes": known}, recipe.pretrained, recipe.checkpoint)
    model.pretrained_cfg = {**model.pretrained_cfg, **_statistics(recipe, student, model)}  # type: ignore[assignment, dict-item]
    return model.eval().requires_grad_(False)


def _statistics(recipe: DistillationRecipe, student: Recipe, teacher: nn.Module) -> dict[str, Any]:
    """Mean and std of the images that a teacher wants: of its run, or as published, or else what the student gets."""
    record = _weights_file(Path(recipe.checkpoint)).parent / RECORD if recipe.checkpoint else None
    if record is not None and record.is_file():
        data = json.loads(record.read_text(encoding="utf-8"))["recipe"]["data"]
        return {"mean": tuple(data["mean"]), "std": tuple(data["std"])}
    cfg: Any = teacher.pretrained_cfg
    known = len(cfg["mean"]) == len(student.data.mean)
    return {} if known else {"mean": student.data.mean, "std": student.data.std}


def _teacher_classes(recipe: DistillationRecipe) -> int:
    assert recipe.teacher is not None
    if recipe.checkpoint:
        file = _weights_file(Path(recipe.checkpoint))
        if found := _classes_of(file).get("num_classes"):
            return found
        if is_ours(recipe.teacher):
            from ..zoo.loading import checkpoint_options

            return int(checkpoint_options(recipe.teacher, file)["num_classes"])
    name = registry.timm_name(recipe.teacher) if is_ours(recipe.teacher) else recipe.teacher.removeprefix(_PREFIX)
    cfg = timm.models.get_pretrained_cfg(name)
    return int(cfg.num_classes) if cfg else 0
