"""FFNs by their hidden channels: which layers hold them, and how an FFN with fewer of them is cut out.

The first h hidden channels of an FFN are an FFN of their own: the first h rows of the layer that makes them, the same
channels of what acts on each channel alone (depthwise convolutions, batch norms), and the first h columns of the layer
that reads them. A width w in (0, 1] stands for h = round(w * hidden), at least one.

What makes an FFN marks it with `with_hidden`; timm's plain MLPs are known by their type.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import TypeVar

from timm.layers import ConvMlp, Mlp
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_KNOWN: dict[type[nn.Module], tuple[str, str]] = {Mlp: ("fc1", "fc2"), ConvMlp: ("fc1", "fc2")}


class Role(Enum):
    """What a layer has to do with hidden channels: it makes them, acts on each alone, or reads them."""

    ROWS, CHANNELS, COLUMNS = range(3)


def with_hidden(ffn: ModuleT, first: str, last: str) -> ModuleT:
    """``ffn``, marked as one whose hidden channels are made by its layer ``first`` and read by ``last``."""
    ffn.hidden_between = (first, last)  # type: ignore[assignment]
    return ffn


def hidden_ends(module: nn.Module) -> tuple[str, str] | None:
    """Names of the layers that make and read the hidden channels of ``module``; None where it is no FFN."""
    return _KNOWN.get(type(module)) or getattr(module, "hidden_between", None)


def ffns(module: nn.Module) -> dict[str, nn.Module]:
    """Every FFN in ``module``, by its name in it."""
    return {name: child for name, child in module.named_modules() if hidden_ends(child)}


def hidden_layers(ffn: nn.Module) -> dict[str, Role]:
    """The layers that hold hidden channels, in order.

    Raises:
        ValueError: one of them mixes hidden channels, as a LayerNorm does: fewer of them are another function.
    """
    first, last = hidden_ends(ffn) or ("", "")
    roles = {first: Role.ROWS}
    names = [name for name, _ in ffn.named_modules()]
    hidden = hidden_size(ffn)
    for name in names[names.index(first) + 1 : names.index(last)]:
        layer = ffn.get_submodule(name)
        if not any(tensor.numel() > 1 for tensor in _own_tensors(layer).values()):
            continue
        if not _acts_per_channel(layer, hidden):
            raise ValueError(f"{name} ({type(layer).__name__}) mixes the hidden channels")
        roles[name] = Role.CHANNELS
    return {**roles, last: Role.COLUMNS}


def hidden_size(ffn: nn.Module) -> int:
    """Hidden channels of an FFN."""
    first, _ = hidden_ends(ffn) or ("", "")
    return ffn.get_parameter(f"{first}.weight").shape[0]


def nested_size(width: float, hidden: int) -> int:
    """How many of ``hidden`` channels the width stands for."""
    return max(1, round(width * hidden))


def _own_tensors(layer: nn.Module) -> dict[str, Tensor]:
    return {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}


def _acts_per_channel(layer: nn.Module, hidden: int) -> bool:
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels == hidden
    return depthwise or isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)


# cutting


def narrow(ffn: nn.Module, width: float) -> None:
    """Leave of an FFN the hidden channels that ``width`` stands for, in place.

    Raises:
        ValueError: it cannot be nested.
    """
    count, roles = nested_size(width, hidden_size(ffn)), hidden_layers(ffn)
    for name, role in roles.items():
        layer = ffn.get_submodule(name)
        for leaf, tensor in _first(layer, role, count):
            if isinstance(getattr(layer, leaf), nn.Parameter):
                setattr(layer, leaf, nn.Parameter(tensor, requires_grad=getattr(layer, leaf).requires_grad))
            else:
                setattr(layer, leaf, tensor)
        _resize(layer, role, count)


def _first(layer: nn.Module, role: Role, count: int) -> Iterator[tuple[str, Tensor]]:
    """Copies of the tensors that are smaller with ``count`` hidden channels."""
    for leaf, tensor in _own_tensors(layer).items():
        axis = 1 if role is Role.COLUMNS else 0
        if tensor.ndim > axis:
            yield leaf, tensor.detach().narrow(axis, 0, count).clone()


def _resize(layer: nn.Module, role: Role, count: int) -> None:
    makes, reads = role is not Role.COLUMNS, role is not Role.ROWS
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = count if makes else layer.out_channels
        layer.in_channels = count if reads else layer.in_channels
        layer.groups = count if makes and reads else layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features = count if makes else layer.out_features
        layer.in_features = count if reads else layer.in_features
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        layer.num_features = count
