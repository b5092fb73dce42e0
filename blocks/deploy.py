"""The inference form of a model: a pure walk that folds and fuses what each block says can be folded.

`fold` computes the same function with fewer operations and is neutral to layout and runtime; exporters start from it.
`deploy` goes on to arrange it for PyTorch: channels-last memory, and convolutions with packed weights that apply the
activation after them and add the shortcut around them.

What folds: batch norms into the convolution or linear before or after them, layer scales into what precedes them, the
constants of StarReLU into what follows, identity shortcuts and scaled shortcuts, position biases, a classifier's norm,
and the pair of classifiers of a distilled head. Dropout and drop path go. A module takes part by having a method
``folded() -> nn.Module``, called on a private copy in evaluation mode after its children were folded. Of timm's models,
those that have an inference form of their own (RepViT, FastViT, MobileOne, LeViT and others) get that one.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from timm.layers import BatchNormAct2d, ConvMlp, DropPath
from timm.utils import reparameterize_model
from torch import nn

from .affine import is_plain
from .fuse import fuse_chain
from .packed import named_within, pack

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_DROPPED = (nn.Dropout, nn.Dropout2d, DropPath, nn.Identity)
_ACT = " activation"  # at the end of the path of the second half of a module; no name has a blank


@torch.no_grad()
def fold(model: ModuleT) -> ModuleT:
    """A folded copy of ``model`` in evaluation mode, equal to 1e-5 relative in float32 and 1e-9 in float64.

    The model itself is not touched, whatever mode it is in; a model that is folded already is copied. Any nn.Module is
    accepted: what neither mixzoo nor timm knows how to fold stays as it is.
    """
    result = copy.deepcopy(model).eval()
    if deploy_form(model) is None:
        result = _walk(_unshare(_reparameterized(result)))  # type: ignore[assignment]
        result.deploy_form = "folded"  # type: ignore[assignment]
    return result.requires_grad_(False)


@torch.no_grad()
def deploy(model: ModuleT, compile: bool = False) -> ModuleT:
    """`fold`, arranged for fast inference in PyTorch. Calling it on its own result gives a copy.

    Args:
        model: any module; a mixzoo backbone folds most.
        compile: wrap the result in `torch.compile`.
    """
    result = fold(model)
    if deploy_form(result) != "deployed":
        result = pack(result)  # type: ignore[assignment]
        for tensor in (*result.parameters(), *result.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.contiguous(memory_format=torch.channels_last)
        result.deploy_form = "deployed"  # type: ignore[assignment]
    return torch.compile(result) if compile else result  # type: ignore[return-value]


def deploy_form(model: nn.Module) -> str | None:
    """'folded', 'deployed', or None for a model in its training form."""
    return getattr(model, "deploy_form", None)


def redeploy(model: ModuleT, form: str | None) -> ModuleT:
    """``model`` in the named deploy form, or itself for None."""
    return model if form is None else (fold(model) if form == "folded" else deploy(model))


def _reparameterized(model: nn.Module) -> nn.Module:
    """``model`` changed to the inference form that timm has for it; its new layers are of the default type there."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(next((p.dtype for p in model.parameters() if p.is_floating_point()), before))
    try:
        return reparameterize_model(model, inplace=True)
    finally:
        torch.set_default_dtype(before)


def _unshare(model: nn.Module) -> nn.Module:
    """``model`` with a copy for every further use of a module: what folds into one use is not for another."""
    seen: set[int] = set()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if id(child) in seen:
                setattr(module, name, copy.deepcopy(child))
            seen.add(id(child))
    return model


def _walk(module: nn.Module, names: bool = False) -> nn.Module:
    """``module`` folded, in place where it can; with ``names``, everything in a Sequential is found where it was."""
    inner = named_within(module, names)
    for name, child in module.named_children():
        setattr(module, name, _walk(child, inner))
    if is_plain(module, ConvMlp):
        parts = ("fc1", "norm", "act", "drop", "fc2")
        module = nn.Sequential(OrderedDict((part, getattr(module, part)) for part in parts))
    if is_plain(module, *_DROPPED):
        return nn.Identity()
    folded: Callable[[], nn.Module] | None = getattr(module, "folded", None)
    if folded is not None:
        module = folded()
    if type(module) is not nn.Sequential:
        return module
    return _refill(module, fuse_chain(_flat(module))) if names else _chain(module)


def _chain(sequence: nn.Sequential) -> nn.Module:
    """``sequence`` flattened and fused; a single module stands for itself."""
    fused = fuse_chain(_flat(sequence))
    if len(fused) == 1:
        return next(iter(fused.values()))
    return nn.Sequential(OrderedDict((path.replace(".", "_"), module) for path, module in fused.items()))


def _flat(sequence: nn.Sequential, prefix: str = "") -> OrderedDict[str, nn.Module]:
    """What ``sequence`` and those within it run, by paths; batch norms with an activation are two."""
    flat: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in sequence.named_children():
        path = prefix + name
        if type(module) is nn.Sequential:
            flat.update(_flat(module, f"{path}."))
        elif is_plain(module, BatchNormAct2d):
            flat[path], flat[path + _ACT] = _parts(module)
        else:
            flat[path] = module
    return OrderedDict((path, module) for path, module in flat.items() if not is_plain(module, nn.Identity))


def _refill(sequence: nn.Sequential, fused: Mapping[str, nn.Module], prefix: str = "") -> nn.Sequential:
    """``sequence`` with ``fused`` in the places of their paths, and identities where nothing is left."""
    for name, module in sequence.named_children():
        path = prefix + name
        if type(module) is nn.Sequential:
            _refill(module, fused, f"{path}.")
            continue
        parts = [fused[key] for key in (path, path + _ACT) if key in fused]
        setattr(sequence, name, nn.Sequential(*parts) if len(parts) > 1 else (parts or [nn.Identity()])[0])
    return sequence


def _parts(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The batch norm and the activation of timm's module of both; its dropout is none in evaluation mode."""
    assert isinstance(module, BatchNormAct2d)
    norm = nn.BatchNorm2d(module.num_features, module.eps, affine=False).to(module.running_mean)
    norm.weight, norm.bias = module.weight, module.bias
    norm.running_mean, norm.running_var = module.running_mean, module.running_var
    return norm.eval(), module.act
