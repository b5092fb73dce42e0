"""Models that somebody means to use: built for the weights that they are given, and never without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from . import weights
from .errors import MixzooError
from .registry import create_model, get_variant


class NoWeightsError(MixzooError, ValueError):
    """A job that means nothing without weights was asked for without them, or with two sorts at once."""


def load_model(name: str, checkpoint: Path | None = None, pretrained: bool = False) -> nn.Module:
    """The model ``name`` in eval mode with the checkpoint's or the published weights.

    A checkpoint decides the number of classes and image channels.

    Raises:
        NoWeightsError: neither or both of ``checkpoint`` and ``pretrained``.
        UnknownModelError: no such model.
        CheckpointError: weights that cannot be had or do not fit.
    """
    get_variant(name)
    if bool(checkpoint) == pretrained:
        what = "both: pass only one" if pretrained else "no weights: pass --checkpoint FILE or --pretrained"
        raise NoWeightsError(f"{name} was given {what}.")
    if checkpoint is None:
        return create_model(name, pretrained=True).eval()
    return create_model(name, False, checkpoint, **checkpoint_options(name, checkpoint)).eval()


def checkpoint_options(name: str, checkpoint: Path) -> dict[str, Any]:
    """num_classes and in_chans of the model that ``checkpoint`` was saved from, where its names tell.

    Raises:
        CheckpointError: the file cannot be read.
    """
    model: Any = create_model(name)
    tensors = weights.load_checkpoint_file(checkpoint, model.spec.weights_key)
    found = {
        "num_classes": _axis(model, tensors, "head.fc.weight", 0),
        "in_chans": _axis(model, tensors, f"{model.spec.first_conv}.weight", 1),
    }
    return {option: size for option, size in found.items() if size is not None}


def _axis(model: Any, tensors: dict[str, Any], key: str, axis: int) -> int | None:
    """Length of ``axis`` of the tensor that our ``key`` is called in any of the forms a checkpoint can have."""
    for name in (key, *(keys.foreign(key) for keys in model.spec.keys.values())):
        if name in tensors:
            return int(tensors[name].shape[axis])
    return None
