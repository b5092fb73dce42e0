"""Folding of chains: what two neighbours can become together.

Every function here changes modules in place and is called on private copies only (see `deploy.py`).
"""

from __future__ import annotations

from collections import OrderedDict

from timm.layers import GroupNorm1, LayerNorm2d, LayerScale2d
from torch import Tensor, nn

from .act import ShiftedSquaredReLU, SquaredReLU, StarReLU
from .affine import (
    affine_after,
    affine_before,
    batch_norm_affine,
    gives_affine,
    input_layers,
    is_batch_norm,
    is_plain,
    takes_input_affine,
)
from .mixers.pool import PoolMixer

MIN_SCALE = 1e-3  # a StarReLU scale below this is not divided by


def fuse_chain(chain: OrderedDict[str, nn.Module]) -> OrderedDict[str, nn.Module]:
    """``chain`` with neighbours that can be one module, or two cheaper ones, replaced until none is left."""
    items = list(chain.items())
    index = 0
    while index + 1 < len(items):
        names = {id(module): name for name, module in items[index : index + 2]}
        fused = fuse_pair(items[index][1], items[index + 1][1])
        if fused is None:
            index += 1
            continue
        items[index : index + 2] = [(names.get(id(m), items[index][0]), m) for m in fused]
        index = max(0, index - 1)
    return OrderedDict(items)


def fuse_pair(first: nn.Module, second: nn.Module) -> list[nn.Module] | None:
    """What replaces two neighbours: one module, or two that are cheaper; None where nothing can be gained."""
    if gives_affine(first) and is_batch_norm(second):
        scale, shift = batch_norm_affine(second)
        return [affine_after(first, scale, shift)]
    if is_batch_norm(first) and (layers := input_layers(second)):
        scale, shift = batch_norm_affine(first)
        for layer in layers:
            affine_before(layer, scale, shift)
        return [second]
    if isinstance(second, LayerScale2d) and scale_output(first, second.gamma):
        return [first]
    if isinstance(first, PoolMixer) and isinstance(second, LayerScale2d):
        return [second, first]  # pooling acts on each channel alone: the scale moves on to the norm before it
    if isinstance(first, StarReLU):
        return fuse_star_relu(first, second)
    return None


def fuse_star_relu(act: StarReLU, following: nn.Module) -> list[nn.Module] | None:
    """``following(scale * r + bias)`` with the scale, and where no padding enters the bias, taken by ``following``."""
    if takes_input_affine(following):
        width = following.weight.shape[1]
        return [SquaredReLU(), affine_before(following, act.scale.expand(width), act.bias.expand(width))]
    if isinstance(following, nn.Conv2d) and is_plain(following, nn.Conv2d) and act.scale.abs().item() > MIN_SCALE:
        following.weight.data = following.weight * act.scale
        return [ShiftedSquaredReLU(act.bias / act.scale), following]
    return None


def scale_output(module: nn.Module, scale: Tensor) -> bool:
    """Multiply the output channels of ``module`` by ``scale`` in place; False, and no change, where it cannot."""
    if gives_affine(module):
        affine_after(module, scale)
        return True
    if isinstance(module, LayerNorm2d | GroupNorm1) and module.weight is not None:
        module.weight.data = module.weight * scale
        if module.bias is not None:
            module.bias.data = module.bias * scale
        return True
    last = getattr(module, "output_layer", None)  # a mixer names the layer that its output comes from
    return last is not None and scale_output(getattr(module, last), scale)
