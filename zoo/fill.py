"""Deterministic, non-degenerate weights: what a comparison uses when no trained checkpoint is at hand.

Default initialisation proves nothing (logits near 1e-4, zero branch scales), so every numeric check in mixzoo runs on
trained weights or on these. The values depend only on the name and shape of each tensor, never on global random state.
"""

from __future__ import annotations

import zlib
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from ..blocks.prepbn import ProgressiveRepBN

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def fill_array(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 values for the tensor called ``key``.

    Matrices and kernels get unit gain over their fan-in, biases and running means are small, norm weights and running
    variances lie in [0.5, 1.5], as do scales of shortcuts, and branch scales (layer scale, gamma) in [0.01, 0.03], so
    that deep models stay finite and remember their input.
    """
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return rng.uniform(0.5, 1.5, shape)
    if leaf == "running_mean":
        return 0.1 * rng.standard_normal(shape)
    if len(shape) >= 2 and int(np.prod(shape)) != max(shape):
        return rng.standard_normal(shape) / np.sqrt(int(np.prod(shape[1:])))
    if "bias" in leaf:
        return 0.1 * rng.standard_normal(shape)
    if ("layer_scale" in key or "gamma" in leaf) and "shortcut" not in key:
        return rng.uniform(0.01, 0.03, shape)
    return rng.uniform(0.5, 1.5, shape)


@torch.no_grad()
def fill_(model: ModuleT) -> ModuleT:
    """Fill every parameter and floating-point buffer of ``model`` in place by its name, and return the model."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = fill_array(key, tuple(tensor.shape))
            tensor.copy_(torch.as_tensor(values, dtype=tensor.dtype).reshape(tensor.shape))
    return model


@torch.no_grad()
def calibrate_(model: ModuleT, size: tuple[int, int], in_chans: int = 3, batch: int = 8) -> ModuleT:
    """Set the running statistics of every batch norm in place to those of standard normal images, as training would.

    Filled weights let activations grow until softmaxes saturate, where float32 says little; normalised activations keep
    a model as well conditioned as a trained one. Progressive norms are taken to the end of their training. Models
    without batch norms are left as they are.

    Args:
        size: (H, W) of the images, pixels.
        in_chans: channels of the images.
        batch: number of images; the statistics are those of this batch.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return model
    for module in model.modules():
        if isinstance(module, ProgressiveRepBN):
            module.finish()
    like, training = next(model.parameters()), model.training
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average over all batches seen: one
    images = np.random.RandomState(0).standard_normal((batch, in_chans, *size))
    model.train()(torch.as_tensor(images, dtype=like.dtype, device=like.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.train(training)
