"""Weights, gradients and optimizer state split over the processes of a run: torch's `fully_shard` (FSDP2).

Every block of a model, and what is left of it as one, is gathered where it is computed and split again after. What is
saved is whole: a run can be resumed by any number of processes, one alone too, and its result is an ordinary one.

Accelerate has a plugin for this that does nothing without GPUs. So `fully_shard` is called here, alike on every device,
and Accelerate does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .recipe import RecipeError
from .schema import Recipe

OPTIMIZERS = ("adam", "adamw", "momentum", "sgd")  # each number of the state belongs to one of a parameter


def check_sharding(recipe: Recipe, model: nn.Module) -> None:
    """Raise RecipeError where a recipe asks for what cannot be done with split weights."""
    single = next((name for name, parameter in model.named_parameters() if parameter.ndim == 0), None)
    wrong = {
        "compute.compile=true": recipe.compute.compile,
        "compute.precision=fp16": recipe.compute.precision == "fp16",
        "elastic.widths": bool(recipe.elastic.widths),
        "regularisation.sigma_reparam=true": recipe.regularisation.sigma_reparam,
        "optim.clip_mode=agc": recipe.optim.clip_grad is not None and recipe.optim.clip_mode == "agc",
        f"optim.optimizer={recipe.optim.optimizer}": recipe.optim.optimizer not in OPTIMIZERS,
        f"the parameter {single!r}, a single number": single is not None,
    }
    found = [what for what, is_so in wrong.items() if is_so]
    if found:
        raise RecipeError(f"'compute.sharding' does not go with {', '.join(found)}: leave one of them out.")


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split the parameters of ``model``, which is the one that will be called, over the processes of ``mesh``."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "blocks" and isinstance(module, nn.Sequential | nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def in_precision(model: nn.Module, precision: Callable[[], Any]) -> None:
    """Let the forward of ``model`` run in what ``precision`` gives, with outputs in float32, as Accelerate does."""
    from accelerate.utils import convert_outputs_to_fp32

    plain = model.forward

    def forward(*args: Any) -> Any:
        with precision():
            return plain(*args)

    model.forward = convert_outputs_to_fp32(forward)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep the whole of ``model`` in every process: inside, one may call it more often than another does."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not parts[0], recurse=False)


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Keep gradients in their process."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def whole(tree: Any, keep: bool) -> Any:
    """Dicts and lists of tensors with whole tensors in place of split ones, on the CPU; every process must call it.

    Args:
        tree: what holds them.
        keep: whether this process wants the result; else tensors that were split are None.
    """
    if isinstance(tree, DTensor):
        full = tree.full_tensor()
        return full.cpu() if keep else None
    if isinstance(tree, Mapping):
        return {key: whole(value, keep) for key, value in tree.items()}
    return [whole(value, keep) for value in tree] if isinstance(tree, list) else tree


def split_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a whole ``tensor`` that this process has, where ``like`` is split; every process has the whole."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a model that may be split."""
    own = model.state_dict()
    nn.Module.load_state_dict(model, {name: split_like(value, own.get(name, value)) for name, value in state.items()})


def split_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer, saved whole, for one whose parameters may be split."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    split = {
        index: {k: split_like(v, parameters[index]) if isinstance(v, Tensor) else v for k, v in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": split}
