"""Checkpoints: reading files safely, recognising whose names they use, and fitting them to a model.

A checkpoint may be in one of these forms, each recognised by its tensor names:

- own: as `Backbone.state_dict()` gives it;
- official: as the authors' code saves it;
- timm: as timm's model of the same architecture saves it;
- deploy: as the deploy form of the model gives it (batch norms folded away).

Nothing is dropped in silence: missing, unexpected and mis-shaped tensors are listed in one error. The only tensors that
may differ are those of a classifier with other classes and of a first convolution with other image channels, and only
where a checkpoint is adapted (`load`), which is what ``pretrained=True`` and ``checkpoint_path=`` do.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ..blocks.deploy import deploy_form, redeploy
from ..blocks.geometry import Size, as_table, unflatten_table
from ..blocks.prepbn import ProgressiveRepBN
from ..blocks.tables import GridModule
from .errors import CheckpointError, DeployFormError
from .keys import KeyMap, join_parts, split_parts

if TYPE_CHECKING:
    from .shell import Backbone

StateDict = dict[str, Tensor]
_log = logging.getLogger(__name__)

# where training scripts keep the weights, in timm's order: averaged weights before raw ones
NESTED_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model", "module", "net")
_PREFIXES = ("module.", "_orig_mod.", "ema.")
_COUNTERS = (".num_batches_tracked", *(f".{name}" for name in ProgressiveRepBN.counters))  # a checkpoint may lack them


# reading


def load_checkpoint_file(path: str | os.PathLike[str], prefer: str | None = None) -> StateDict:
    """The tensors of a .safetensors or PyTorch file, without running any code that the file may hold.

    Args:
        path: the file; .safetensors by that suffix, else read by `torch.load` with ``weights_only``.
        prefer: entry to take the weights from where the file has it; else the first of `NESTED_KEYS` that it has.

    Raises:
        CheckpointError: no such file, unreadable, unsafe, or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No checkpoint file at {path}: check checkpoint_path=.")
    content = _read(path)
    tensors = {_strip(k): v for k, v in _weights_of(content, path, prefer).items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: pass a file with a state dict.")
    return tensors


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path} needs pickled code to load, which is refused because it could run anything. If you trust the "
            "file, re-save its state dict: torch.save(torch.load(path, weights_only=False)['model'], new_path)."
        ) from error
    except (SafetensorError, BadZipFile, EOFError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint ({error}): download or save it again.") from error


def _weights_of(content: Any, path: Path, prefer: str | None = None) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict: save model.state_dict().")
    for name in (prefer, *NESTED_KEYS):
        if isinstance(content.get(name), Mapping):
            _log.info("%s: weights taken from %r", path, name)
            return _weights_of(content[name], path)
    return content


def _strip(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


# naming


def to_own_keys(model: Backbone, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """``state_dict`` under the names of ``model``, whatever form it is in.

    Tensors that have no place in the model keep their names, so that `load_state_dict` reports them.

    Raises:
        CheckpointError: the state dict is a deploy form and the model is not.
    """
    form = recognise(model, state_dict)
    if form == "own":
        return state_dict
    if form in ("train", "merged") and deploy_form(model):
        return _through_deploy(model, state_dict, form)
    if form in ("deploy", "merged"):
        raise DeployFormError(
            f"These weights are the deploy form of {_name(model)}, whose batch norms are folded away: load them into "
            "mixzoo.deploy(model), or pass the file as checkpoint_path= to mixzoo.create_model, which returns that "
            "form."
        )
    return _renamed(model, state_dict, model.spec.keys[form])


def recognise(model: Backbone, state_dict: Mapping[str, Any]) -> str:
    """The form of ``state_dict``: 'own', a form of the model's spec ('official', 'timm'), 'deploy', or 'train'.

    'train' is any form of the unfolded model, offered to a model in deploy form, and 'merged' the authors' own deploy
    form. What matches nothing is 'own'.
    """
    own = [k for k in model.state_dict() if not k.endswith(_COUNTERS)]
    merged = 0.0
    if model.spec.merged:
        with torch.device("meta"):
            merged = _form_share(rebuilt(model, merged=True), state_dict)
    if deploy_form(model):
        shares = {"own": _share(own, state_dict), "train": _form_share(rebuilt(model), state_dict), "merged": merged}
        return max(shares, key=lambda name: shares[name])
    shares = {"own": _share(own, state_dict)}
    shares |= {name: _share(map(keys.foreign_tensor, own), state_dict) for name, keys in model.spec.keys.items()}
    best = max(shares, key=lambda name: shares[name])
    if merged > shares[best]:
        return "merged"
    return "deploy" if shares[best] < 1 and _is_deployed(model, state_dict, shares[best]) else best


def _form_share(model: Backbone, state_dict: Mapping[str, Any]) -> float:
    """Share of the tensors of ``model`` that ``state_dict`` has, under the best fitting names."""
    own = [k for k in model.state_dict() if not k.endswith(_COUNTERS)]
    return max(_share(map(keys.foreign_tensor, own), state_dict) for keys in (*model.spec.keys.values(), KeyMap()))


def _share(keys: Any, state_dict: Mapping[str, Any]) -> float:
    """Share of ``keys`` that ``state_dict`` has."""
    found = [key in state_dict for key in keys]
    return sum(found) / max(1, len(found))


def _is_deployed(model: Backbone, state_dict: Mapping[str, Any], share: float) -> bool:
    folded = redeploy(model, "folded").state_dict()
    return _share(folded, state_dict) > share


def rebuilt(model: Backbone, img_size: Size | None = None, merged: bool = False) -> Backbone:
    """A fresh model of the same build in training form, or ``merged``, for ``img_size`` where one is given."""
    spec = model.spec.merged if merged else model.spec
    assert spec is not None
    return type(model)(
        spec,
        num_classes=model.num_classes,
        in_chans=model.in_chans,
        global_pool=model.head.global_pool.pool_type,
        img_size=img_size or model.img_size,
    )


def _through_deploy(model: Backbone, state_dict: Mapping[str, Any], form: str) -> Mapping[str, Any]:
    """A train-form or merged ``state_dict`` in the deploy form that ``model`` has."""
    other = rebuilt(model, merged=form == "merged").to(next(model.parameters()).dtype)
    other.load_state_dict(state_dict)
    return redeploy(other, deploy_form(model)).state_dict()


def _renamed(model: Backbone, state_dict: Mapping[str, Any], keys: KeyMap) -> dict[str, Any]:
    own = model.state_dict()
    names = {keys.foreign(key): key for key in own}
    renamed = {}
    for foreign, tensor in split_parts(state_dict, {name: own[key] for name, key in names.items()}).items():
        key = names.get(foreign)
        if key is not None:
            flattened = keys.reshapes(foreign) and _is_table(model, key)
            renamed[key] = _shaped(keys.from_foreign(foreign, tensor), own[key], flattened)
        elif not keys.ignores(foreign):
            renamed[foreign] = tensor
    return renamed


def _shaped(tensor: Tensor, like: Tensor, flattened: bool = False) -> Tensor:
    """``tensor`` in the shape of ``like`` where they differ only in axes of size one, else as it is.

    A position table with a ``flattened`` grid gets its own grid back, which may be another than that of ``like``.
    """
    same = [n for n in tensor.shape if n != 1] == [n for n in like.shape if n != 1]
    if flattened and not same:
        with suppress(ValueError):  # a count that fits no grid keeps its shape, so that it is reported
            return unflatten_table(tensor, like)
    return tensor.reshape(like.shape) if same else tensor


def _is_table(model: Backbone, key: str) -> bool:
    """Whether ``key`` is a position table, which follows the grid of its module."""
    prefix, _, leaf = key.rpartition(".")
    module = model.get_submodule(prefix)
    return isinstance(module, GridModule) and leaf in module.grid_tables


def to_official(model: Backbone, form: str = "official") -> StateDict:
    """The learned tensors of ``model`` under the names and in the shapes of the official code.

    The counters of batch norms are left out, those of progressive norms are not. The result loads into the authors'
    model once its computed constants (index tables) are added, and back into ours.

    Raises:
        CheckpointError: the model is in deploy form, or its family has no such names.
    """
    if deploy_form(model):
        raise CheckpointError("A deploy form has no official names: convert the model before mixzoo.deploy.")
    if form not in model.spec.keys:
        raise CheckpointError(f"{_name(model)} has no {form!r} names; it has {', '.join(model.spec.keys) or 'none'}.")
    keys = model.spec.keys[form]
    named = {keys.foreign(k): v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    return join_parts({name: keys.to_foreign(name, tensor).clone() for name, tensor in named.items()})


# fitting


def load(model: Backbone, path: str | os.PathLike[str]) -> None:
    """Load a checkpoint file of any form, adapted to the model's classes and image channels.

    A classifier with other classes keeps its fresh weights, and a first convolution with other channels is adapted as
    timm does (summed or repeated); both are logged. Everything else must fit.

    Raises:
        CheckpointError: the file is unreadable, or tensors are missing, unexpected or mis-shaped (all are listed).
    """
    fit(model, load_checkpoint_file(path, model.spec.weights_key), str(path))


def fit(model: Backbone, state_dict: Mapping[str, Any], source: str = "the checkpoint") -> None:
    """Load ``state_dict``, adapted as `load` says. ``source`` names it in errors."""
    own = model.state_dict()
    tensors = dict(to_own_keys(model, state_dict))
    _adapt_input(model, tensors, own, source)
    kept = _adapt_classifier(model, tensors, own, source)
    if model.head_optional:
        kept |= {key for key in own if key.startswith("head.") and key not in tensors}
    problems = _problems(model, tensors, own, kept)
    if problems and _share(own, tensors) < 0.5:
        raise CheckpointError(
            f"{source} is not a checkpoint of {_name(model)}: of its {len(tensors)} tensors ({_first(tensors)}) few "
            f"have a name that the model knows, in the forms {', '.join(['own', *model.spec.keys])} ({_first(own)})."
        )
    if problems:
        raise CheckpointError(f"{source} does not fit {_name(model)}:\n{problems}")
    nn.Module.load_state_dict(model, tensors, strict=False)


def _adapt_input(model: Backbone, tensors: dict[str, Any], own: Mapping[str, Tensor], source: str) -> None:
    key = f"{model.spec.first_conv}.weight"
    chans = tensors[key].shape[1] if key in tensors else model.in_chans
    if chans == model.in_chans or chans not in (1, 3):
        return
    if chans == 1:  # a grey image in every channel gives what the image gave
        tensors[key] = tensors[key].expand(-1, model.in_chans, -1, -1) / model.in_chans
    else:
        tensors[key] = adapt_input_conv(model.in_chans, tensors[key])
    _log.info("%s: first convolution adapted from %d to %d channels", source, chans, model.in_chans)


def _adapt_classifier(model: Backbone, tensors: dict[str, Any], own: Mapping[str, Tensor], source: str) -> set[str]:
    """Remove classifier tensors of other class counts from ``tensors``; returns the keys that keep fresh weights."""
    names = [f"head.{fc}.{leaf}" for fc in ("fc", "fc_dist") for leaf in ("weight", "bias")]
    kept = {n for n in names if n in tensors and (n not in own or tensors[n].shape != own[n].shape)}
    for name in kept:
        classes = tensors.pop(name).shape[0]
        if model.head_optional:
            continue
        _log.warning("%s: %s has %d classes, the model %d: not loaded", source, name, classes, model.num_classes)
    return kept


def _problems(model: Backbone, tensors: Mapping[str, Any], own: Mapping[str, Tensor], kept: set[str]) -> str:
    counters = {k for k in own if k.endswith(_COUNTERS)}
    missing = sorted(own.keys() - tensors.keys() - counters - kept)
    unexpected = sorted(k for k in tensors.keys() - own.keys() if not k.endswith("num_batches_tracked"))
    shapes = [
        f"{k} is {tuple(tensors[k].shape)}, should be {tuple(own[k].shape)}"
        for k in sorted(own.keys() & tensors.keys())
        if tensors[k].shape != own[k].shape and not _resizes(model, k, tensors[k], own[k])
    ]
    parts = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", shapes))
    return "\n".join(f"  {what} ({len(items)}): {', '.join(items)}" for what, items in parts if items)


def _resizes(model: Backbone, key: str, tensor: Tensor, like: Tensor) -> bool:
    """Whether the module that owns ``key`` resizes a tensor of this shape when it loads it."""
    if _is_table(model, key):
        try:
            as_table(tensor, like)
        except ValueError:
            return False
        return True
    prefix, _, leaf = key.rpartition(".")
    accepts = getattr(model.get_submodule(prefix), "accepts_weight", None)
    return bool(leaf == "weight" and accepts is not None and accepts(tensor))


def _first(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:3]) + ", ..."


def _name(model: nn.Module) -> str:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture") or type(model).__name__
