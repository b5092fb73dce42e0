"""Another activation or norm in the place of a model's own, for runtimes on which its own is slow.

A swapped model is another model, and whoever swaps is told so. After an activation near the first one (gelu and
hardswish) weights have some use left, and call for fine-tuning. A norm over other axes does not fit weights that were
trained with the first one: a batch norm has statistics, which only training gives it. Swapping shows what a model would
cost, before it is trained.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from timm.layers import GroupNorm1, LayerNorm2d
from timm.layers import activations as timm_acts
from torch import Tensor, nn

from ..blocks.act import SquaredReLU, StarReLU
from ..blocks.norm import GroupNorm1NoBias
from ..zoo.errors import UnknownNameError
from .errors import ExportError


class SwapError(ExportError, ValueError):
    """A swap that cannot be read, or that finds nothing to change."""


class Swapped(NamedTuple):
    """What was changed.

    Attributes:
        model: a copy with the changes.
        counts: modules changed, by "old=new".
    """

    model: nn.Module
    counts: dict[str, int]


# classes by name; subclasses are other functions, and are not meant
ACTIVATIONS: dict[str, tuple[type[nn.Module], ...]] = {
    "relu": (nn.ReLU,),
    "relu6": (nn.ReLU6,),
    "gelu": (nn.GELU, timm_acts.GELU, timm_acts.GELUTanh, timm_acts.QuickGELU),
    "silu": (nn.SiLU, timm_acts.Swish),
    "mish": (nn.Mish, timm_acts.Mish),
    "hardswish": (nn.Hardswish, timm_acts.HardSwish),
    "hardsigmoid": (nn.Hardsigmoid, timm_acts.HardSigmoid),
    "sigmoid": (nn.Sigmoid, timm_acts.Sigmoid),
    "tanh": (nn.Tanh, timm_acts.Tanh),
    "elu": (nn.ELU,),
    "leaky_relu": (nn.LeakyReLU,),
    "starrelu": (StarReLU,),
    "squared_relu": (SquaredReLU,),
}
# of maps (B, C, H, W); a norm of tokens (B, N, C) has no counterpart that a runtime likes better
NORMS: dict[str, tuple[type[nn.Module], ...]] = {
    "layernorm": (LayerNorm2d,),
    "groupnorm": (GroupNorm1, GroupNorm1NoBias),
    "batchnorm": (nn.BatchNorm2d,),
}


def parse_swaps(text: str) -> dict[str, str]:
    """``"gelu=hardswish,layernorm=batchnorm"`` -> {"gelu": "hardswish", "layernorm": "batchnorm"}.

    Raises:
        SwapError: an item that is no pair.
    """
    pairs = [item.strip().split("=") for item in text.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise SwapError(f"--swap {text!r} has an item that is no pair: give some such as gelu=hardswish.")
    return {old.strip(): new.strip() for old, new in pairs}


def swap(model: nn.Module, swaps: Mapping[str, str] | str) -> nn.Module:
    """A copy of ``model`` with other activations or norms: another model, whose weights call for training.

    Activations may take each other's places, and so may norms of maps: "layernorm" (per position, over channels),
    "groupnorm" (over channels and map) and "batchnorm". A new norm keeps scale and shift of the old one; a new batch
    norm has a mean of 0 and a variance of 1 until it is trained.

    Args:
        model: any module. It is not changed.
        swaps: names by the names that they replace, as a mapping or as "gelu=hardswish,...": of `ACTIVATIONS`, `NORMS`.

    Raises:
        UnknownNameError: a name that is not known; the message has near ones.
        SwapError: an activation for a norm, or a name of which the model has none.
    """
    return swapped(model, swaps).model


def swapped(model: nn.Module, swaps: Mapping[str, str] | str) -> Swapped:
    """As `swap`, with the number of modules that were changed."""
    wanted = parse_swaps(swaps) if isinstance(swaps, str) else dict(swaps)
    makers = {kind: (f"{old}={new}", _maker(old, new)) for old, new in wanted.items() for kind in _kinds(old)}
    result, counts = copy.deepcopy(model), Counter[str]()
    for module in list(result.modules()):
        for name, child in module.named_children():
            if type(child) in makers:
                label, make = makers[type(child)]
                setattr(module, name, make(child).train(child.training))
                counts[label] += 1
    missing = [old for old, new in wanted.items() if not counts[f"{old}={new}"]]
    if missing:
        raise SwapError(
            f"The model has no {' and no '.join(missing)} among its modules: nothing was swapped. It has "
            f"{', '.join(found(model)) or 'none that can be swapped'}."
        )
    return Swapped(result, dict(counts))


def found(model: nn.Module) -> list[str]:
    """Names of the activations and norms among a model's modules."""
    kinds = {type(module) for module in model.modules()}
    return [name for table in (ACTIVATIONS, NORMS) for name, types in table.items() if kinds & set(types)]


@torch.no_grad()
def settle(model: nn.Module, original: nn.Module, images: Sequence[Tensor]) -> None:
    """Give batch norms that ``original`` does not have the statistics of ``images``, each (1, C, H, W), in order.

    That keeps outputs finite, so that a file can be compared; it is no training.
    """
    before = {name for name, module in original.named_modules() if isinstance(module, nn.BatchNorm2d)}
    new = [m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and name not in before]
    for norm in new:
        norm.train().momentum = None  # the plain average
    if new:
        model(torch.cat(list(images)))
    for norm in new:
        norm.eval().momentum = 0.1


def _kinds(name: str) -> tuple[type[nn.Module], ...]:
    known = {**ACTIVATIONS, **NORMS}
    if name not in known:
        raise UnknownNameError("activation or norm", name, known, f"Known: {', '.join(known)}.")
    return known[name]


def _maker(old: str, new: str) -> Callable[[nn.Module], nn.Module]:
    """What makes the new module from the old one."""
    kind = _kinds(new)[0]
    if (old in NORMS) != (new in NORMS):
        raise SwapError(f"{old} cannot be swapped for {new}: one is an activation, the other a norm.")
    if new in NORMS:
        return lambda module: _norm(kind, module)
    return lambda module: kind()


def _norm(kind: type[nn.Module], old: nn.Module) -> nn.Module:
    weight, bias = old.weight, getattr(old, "bias", None)
    assert isinstance(weight, Tensor)
    new = kind(len(weight), eps=old.eps)
    new.load_state_dict({"weight": weight, "bias": torch.zeros_like(weight) if bias is None else bias}, strict=False)
    return new.to(weight)
