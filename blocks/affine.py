"""Per-channel affine maps folded into the linear layer before or after them.

Every function here changes modules in place and is called on private copies only (see `deploy.py`).
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from timm.layers import Conv2dSame, Linear
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
Affine = nn.Conv2d | nn.Linear


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether ``module`` computes what one of ``kinds`` does with the tensors that it holds, and nothing else.

    A subclass that has a forward pass of its own does not (timm's batch norms with an activation, convolutions that
    standardise their weights or pad their input), nor one whose weights are made anew by a hook or a parametrization.
    """
    changed = module._forward_hooks or module._forward_pre_hooks or is_parametrized(module) or "forward" in vars(module)
    return not changed and any(isinstance(module, k) and type(module).forward is k.forward for k in kinds)


def is_batch_norm(module: nn.Module) -> TypeGuard[BatchNorm]:
    """Whether ``module`` is a plain batch norm with running statistics."""
    return is_plain(module, nn.BatchNorm1d, nn.BatchNorm2d) and isinstance(module.running_var, Tensor)


def gives_affine(module: nn.Module) -> TypeGuard[Affine]:
    """Whether an affine map of the output channels can be folded into ``module``: a linear or a convolution."""
    return is_plain(module, nn.Conv2d, nn.Linear, Conv2dSame, Linear)


def batch_norm_affine(bn: BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a batch norm in evaluation mode."""
    assert bn.running_var is not None and bn.running_mean is not None
    inverse = torch.rsqrt(bn.running_var + bn.eps)
    scale = inverse if bn.weight is None else bn.weight * inverse
    shift = -bn.running_mean * scale
    return scale, shift if bn.bias is None else shift + bn.bias


def affine_after(module: Affine, scale: Tensor, shift: Tensor | None = None) -> Affine:
    """``scale * module(x) + shift`` per output channel, in place."""
    module.weight.data = module.weight * scale.reshape(-1, *[1] * (module.weight.ndim - 1))
    bias = None if module.bias is None else module.bias * scale
    _set_bias(module, bias if shift is None else (shift if bias is None else bias + shift))
    return module


def affine_before(module: Affine, scale: Tensor, shift: Tensor) -> Affine:
    """``module(scale * x + shift)`` per input channel, in place; only where `takes_input_affine`: no padding enters."""
    kernel = module.weight.flatten(2) if module.weight.ndim > 2 else module.weight[..., None]  # (O, I, positions)
    added = kernel.sum(2) @ shift
    _set_bias(module, added if module.bias is None else module.bias + added)
    module.weight.data = (kernel * scale[:, None]).reshape(module.weight.shape)
    return module


def takes_input_affine(module: nn.Module) -> TypeGuard[Affine]:
    """Whether an affine map of the input channels can be folded into ``module``: a linear or unpadded convolution."""
    if isinstance(module, nn.Conv2d):
        return is_plain(module, nn.Conv2d) and module.groups == 1 and module.padding in ((0, 0), "valid")
    return is_plain(module, nn.Linear, Linear)


def input_layers(module: nn.Module) -> list[Affine] | None:
    """The layers through which all input of ``module`` goes, where each `takes_input_affine`; None elsewhere.

    A linear or convolution is one itself. A mixer names its own in ``input_layers``: it promises that its input reaches
    nothing else, and that it is not padded before them.
    """
    if takes_input_affine(module):
        return [module]
    names = getattr(module, "input_layers", ())
    layers = [layer for name in names if takes_input_affine(layer := module.get_submodule(name))]
    return layers if layers and len(layers) == len(names) else None


def _set_bias(module: Affine, bias: Tensor | None) -> None:
    module.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
