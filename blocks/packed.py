"""Convolutions of the deploy form: fused with the activation after them and the shortcut around them."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from timm.layers import SqueezeExcite
from torch import Tensor, nn

from ..kernels.packed_conv import ConvPlan, ConvShape, conv_act
from .act import ShiftedSquaredReLU, SquaredReLU
from .affine import is_plain
from .residual import FoldedResidual

_ACTS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.GELU: "gelu"}
_ASKED = (  # of a convolution by code that is not ours
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
)  # fmt: skip


class PackedConv2d(nn.Module):
    """``act(conv(x))``, or with a residual ``act(conv(x)) + residual``; see `mixzoo.kernels.packed_conv`.

    Args:
        conv: the convolution, with zero padding.
        act: 'none', 'relu' or 'gelu'.
    """

    def __init__(self, conv: nn.Conv2d, act: str = "none") -> None:
        super().__init__()
        for name in _ASKED:
            setattr(self, name, getattr(conv, name))
        self.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)
        padding, stride, dilation = (tuple(int(n) for n in p) for p in (conv.padding, conv.stride, conv.dilation))
        self.shape = ConvShape(padding, stride, dilation, conv.groups, act)  # type: ignore[arg-type]
        self.plan = ConvPlan()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return conv_act(x, self.weight, self.bias, self.shape, self.plan, residual)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, {self.shape}"


class FusedResidual(nn.Module):
    """``x + fn(x)`` whose last convolution adds x itself."""

    def __init__(self, fn: nn.Sequential) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        *body, last = self.fn
        out = x
        for module in body:
            out = module(out)
        return last(out, x)


class Square(nn.Module):
    """``x ** 2 + shift`` in the memory of x: for the fresh result of a convolution that has applied the ReLU.

    Args:
        shift: scalar tensor, or None.
    """

    def __init__(self, shift: Tensor | None = None) -> None:
        super().__init__()
        self.shift = None if shift is None else nn.Parameter(shift.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return x * x if self.shift is None else x * x + self.shift
        return x.mul_(x) if self.shift is None else x.mul_(x).add_(self.shift)


class PooledExcite(nn.Module):
    """Squeeze-excitation whose mean runs as a pooling, which is fast on channels-last maps.

    Args:
        source: timm's module, folded; its convolutions and activations are used.
    """

    def __init__(self, source: SqueezeExcite) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2, self.gate = source.fc1, source.act, source.fc2, source.gate

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.fc1(F.adaptive_avg_pool2d(x, 1))
        return x * self.gate(self.fc2(self.act(squeezed)))


def named_within(module: nn.Module, names: bool) -> bool:
    """Whether what a Sequential in ``module`` holds has to stay where it is: code that is not ours may ask for it.

    Args:
        names: the same of the module that holds ``module``; what is in a Sequential of a Sequential goes with it.
    """
    if type(module) is nn.Sequential:
        return names
    return type(module).__module__.partition(".")[0] != __name__.partition(".")[0]


def pack(module: nn.Module, names: bool = False) -> nn.Module:
    """``module`` with its convolutions packed and fused with their neighbours, in place where it can.

    With ``names``, everything in a Sequential is found where it was, see `named_within`.
    """
    if isinstance(module, nn.Conv2d) and is_plain(module, nn.Conv2d) and module.padding_mode == "zeros":
        return module if isinstance(module.padding, str) else PackedConv2d(module)
    inner = named_within(module, names)
    for name, child in module.named_children():
        setattr(module, name, pack(child, inner))
    if type(module) is nn.Sequential:
        return _fuse_acts(module, names)
    if type(module) is SqueezeExcite and not module.add_maxpool and isinstance(module.bn, nn.Identity):
        return PooledExcite(module)
    if type(module) is FoldedResidual and _ends_in_conv(module.fn):
        return FusedResidual(module.fn if isinstance(module.fn, nn.Sequential) else nn.Sequential(module.fn))
    return module


def _ends_in_conv(fn: nn.Module) -> bool:
    last = ([nn.Identity(), *fn] if isinstance(fn, nn.Sequential) else [fn])[-1]  # a branch may be empty
    return isinstance(last, PackedConv2d) and last.shape.act == "none"


def _fuse_acts(sequence: nn.Sequential, names: bool) -> nn.Sequential:
    """``sequence`` with each activation that follows a convolution moved into it; ``names`` as in `pack`."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    previous: nn.Module | None = None
    for name, module in sequence.named_children():
        if names and is_plain(module, nn.Identity):
            modules[name] = module
            continue
        if isinstance(previous, PackedConv2d) and previous.shape.act == "none":
            act = _ACTS.get(type(module)) if getattr(module, "approximate", "none") == "none" else None
            if act:
                _set_act(previous, act)
                if names:
                    modules[name] = nn.Identity()
                continue
            if isinstance(module, SquaredReLU | ShiftedSquaredReLU):
                _set_act(previous, "relu")
                module = Square(getattr(module, "shift", None))
        modules[name] = previous = module
    return nn.Sequential(modules)


def _set_act(conv: PackedConv2d, act: str) -> None:
    conv.shape = ConvShape(conv.shape.padding, conv.shape.stride, conv.shape.dilation, conv.shape.groups, act)
