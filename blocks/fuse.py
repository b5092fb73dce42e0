"""Arithmetic of folding: what two neighbours in a chain of modules can become together.

Every function here changes modules in place and is called on private copies only (see `deploy.py`).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from timm.layers import GroupNorm1, LayerNorm2d, LayerScale2d
from torch import Tensor, nn

from .act import SquaredReLU, StarReLU
from .mixers.pool import PoolMixer

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
Affine = nn.Conv2d | nn.Linear


def fuse_chain(chain: OrderedDict[str, nn.Module]) -> OrderedDict[str, nn.Module]:
    """``chain`` with every pair of neighbours that can be one module made one, until none is left."""
    items = list(chain.items())
    index = 0
    while index + 1 < len(items):
        (name, first), (_, second) = items[index], items[index + 1]
        fused = fuse_pair(first, second)
        if fused is None:
            index += 1
        else:
            items[index : index + 2] = [(name, m) for m in fused] if len(fused) == 1 else _named(items, index, fused)
            index = max(0, index - 1) if len(fused) == 1 else index + 1
    return OrderedDict(items)


def _named(items: list[tuple[str, nn.Module]], index: int, modules: list[nn.Module]) -> list[tuple[str, nn.Module]]:
    return [(items[index][0], modules[0]), (items[index + 1][0], modules[1])]


def fuse_pair(first: nn.Module, second: nn.Module) -> list[nn.Module] | None:
    """What replaces two neighbours: one module, or two that are cheaper; None where nothing can be gained."""
    if isinstance(first, nn.Conv2d | nn.Linear) and isinstance(second, nn.BatchNorm1d | nn.BatchNorm2d):
        scale, shift = batch_norm_affine(second)
        return [affine_after(first, scale, shift)]
    if isinstance(first, nn.BatchNorm1d | nn.BatchNorm2d) and takes_input_affine(second):
        scale, shift = batch_norm_affine(first)
        return [affine_before(second, scale, shift)]  # type: ignore[arg-type]
    if isinstance(second, LayerScale2d) and scale_output(first, second.gamma):
        return [first]
    if isinstance(first, StarReLU):
        return fuse_star_relu(first, second)
    return None


def fuse_star_relu(act: StarReLU, following: nn.Module) -> list[nn.Module] | None:
    """``following(scale * r + bias)`` as ``following'(r)`` for a pointwise linear, r = relu(x) ** 2."""
    if not takes_input_affine(following):
        return None
    width = following.in_channels if isinstance(following, nn.Conv2d) else following.in_features  # type: ignore
    scale, shift = act.scale.expand(width), act.bias.expand(width)
    return [SquaredReLU(), affine_before(following, scale, shift)]  # type: ignore[arg-type]


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
    """``module(scale * x + shift)`` per input channel, in place; only where no padding enters (`takes_input_affine`)."""
    matrix = module.weight.flatten(1)  # (O, I)
    added = matrix @ shift
    _set_bias(module, added if module.bias is None else module.bias + added)
    module.weight.data = (matrix * scale).reshape(module.weight.shape)
    return module


def takes_input_affine(module: nn.Module) -> bool:
    """Whether an affine map of the input channels can be folded into ``module``: a linear or a 1x1 convolution."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1 and module.padding in ((0, 0), "valid")
    return isinstance(module, nn.Linear)


def scale_output(module: nn.Module, scale: Tensor) -> bool:
    """Multiply the output channels of ``module`` by ``scale`` in place; False, and no change, where it cannot."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        affine_after(module, scale)
        return True
    if isinstance(module, LayerNorm2d | GroupNorm1) and module.weight is not None:
        module.weight.data = module.weight * scale
        if module.bias is not None:
            module.bias.data = module.bias * scale
        return True
    last = getattr(module, "output_layer", None)  # a mixer names the layer that its output comes from
    return last is not None and scale_output(getattr(module, last), scale)


def commute_scale(norm: nn.Module, mixer: nn.Module, scale: Tensor) -> bool:
    """Move a scale after pooling to the norm before it: pooling acts on each channel alone, and cancels constants."""
    return isinstance(mixer, PoolMixer) and scale_output(norm, scale)


def _set_bias(module: Affine, bias: Tensor | None) -> None:
    module.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
