"""Linear layers whose spectral norm is a number that is learned: sigmaReparam (arXiv:2303.06296).

    W' = gamma / sigma(W) W        sigma(W) = u^T W v, the largest singular value, u and v its vectors

gamma begins at 1, as the paper has it, so that every layer begins with the spectral norm 1. The authors' code for
images (github.com/apple/ml-sigma-reparam at fea4e35) begins at sigma(W) instead, as is done here where a run begins
from weights: the model is then the one that was loaded. u and v are exact at first, and follow W by one step of the
power method after each update, which counts them as fixed; the gradient goes through W in sigma(W). They are float32
under autocast too. Evaluation takes them as they are. What a run leaves behind holds W' as an ordinary weight.

The paper means all linear layers. Here these are torch's `Linear` and convolutions that are the same: over single
pixels, or over patches that do not overlap. Others, with groups or with overlap, are as they were; so are layers that
begin as zeros, and weights that are no layer's own, such as those of `MultiheadAttention`. After a batch norm gamma is
without effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .recipe import RecipeError

_PART = "parametrizations.weight."
_WEIGHT = f"{_PART}original"


class SigmaReparam(nn.Module):
    """W (out, ...) -> W', for a weight whose axes after the first are one.

    Args:
        weight: W; not all zeros.
        keep: begin with gamma at sigma(W), so that W' is W; else at 1.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, keep: bool) -> None:
        super().__init__()
        left, values, right = torch.linalg.svd(weight.detach().flatten(1), full_matrices=False)
        self.register_buffer("u", left[:, 0].clone())
        self.register_buffer("v", right[0].clone())
        self.gamma = nn.Parameter(values[0].clone() if keep else torch.ones_like(values[0]))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            sigma = torch.dot(self.u, weight.flatten(1) @ self.v)
            return weight * (self.gamma / sigma)

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        """One step of the power method: W is another now."""
        matrix = weight.flatten(1)
        self.u.copy_(F.normalize(matrix @ self.v, dim=0))
        self.v.copy_(F.normalize(self.u @ matrix, dim=0))


def reparametrise(model: nn.Module, keep: bool) -> None:
    """Give every linear layer of ``model`` a gamma; with ``keep`` the model stays what it is.

    Raises:
        RecipeError: it has no such layer.
    """
    layers: list[Any] = [module for module in model.modules() if _linear(module)]
    if not layers:
        raise RecipeError("'regularisation.sigma_reparam' is set, but the model has no linear layer: leave it out.")
    for layer in layers:
        if layer.weight.any():
            parametrize.register_parametrization(layer, "weight", SigmaReparam(layer.weight, keep))


def _linear(module: nn.Module) -> bool:
    """Whether a module multiplies by one matrix at each place, and places share nothing."""
    if isinstance(module, nn.Conv2d):
        alone = module.kernel_size in ((1, 1), module.stride) and module.padding in ((0, 0), 0, "valid")
        return alone and module.groups == 1
    return isinstance(module, nn.Linear)


def follow(model: nn.Module) -> None:
    """Let the singular vectors follow the weights, after an update."""
    for _, layer in _layers(model):
        made = layer.parametrizations.weight
        made[0].follow(made.original)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if parametrize.is_parametrized(module, "weight"))


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of the same model with ordinary weights."""
    state = {name: value for name, value in model.state_dict().items() if _PART not in name}
    state.update((f"{name}.weight".lstrip("."), layer.weight.detach()) for name, layer in _layers(model))
    return state


def plain_name(name: str) -> str:
    """The ordinary name of a parameter: of W where it is that."""
    return name.replace(_WEIGHT, "weight")
