"""Re-parameterised batch norms (SLAB, arXiv:2405.11582): they train like a LayerNorm and fold like a batch norm.

RepBN is ``batch_norm(x) + alpha * x`` with one learned scalar. The progressive form starts training as a LayerNorm and
ends it as RepBN, in a straight line: ``share * layer_norm(x) + (1 - share) * rep_bn(x)``, the share being
``ratio * iter / total_step`` while ``iter`` counts down from ``total_step`` to 0. Evaluation is RepBN alone, which
`deploy` turns into a plain batch norm and folds into the layers after it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm2d, register_notrace_module
from torch import Tensor, nn

PUBLISHED_STEPS = 300_000  # over which the LayerNorm goes, where the authors name no other count


class RepBN(nn.Module):
    """``batch_norm(x) + alpha * x``: (B, C, H, W) -> (B, C, H, W), alpha a learned scalar that starts at 1.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x) + self.alpha * x

    def folded(self) -> nn.Module:
        """The batch norm that gives the same: with weight + alpha * std and bias + alpha * mean."""
        bn = copy.deepcopy(self.bn)
        assert bn.running_mean is not None and bn.running_var is not None
        bn.bias.data = bn.bias + self.alpha * bn.running_mean
        bn.weight.data = bn.weight + self.alpha * (bn.running_var + bn.eps).sqrt()
        return bn


@register_notrace_module
class ProgressiveRepBN(nn.Module):
    """A LayerNorm that gives way to a RepBN in the course of training: (B, C, H, W) -> (B, C, H, W).

    Each training step counts, a recomputation of the same step in the backward pass does not. The counters are saved,
    so that a resumed training goes on where it stood; a checkpoint without them leaves them as they are.

    Args:
        dim: channels.
        steps: training steps until the LayerNorm is gone.
        warm: training steps before, which run the LayerNorm alone.
        ratio: share of the LayerNorm in the first step after those.
        eps: of the LayerNorm.
    """

    counters = ("warm", "iter", "total_step")
    warm: Tensor
    iter: Tensor
    total_step: Tensor

    def __init__(
        self, dim: int, steps: int = PUBLISHED_STEPS, warm: int = 0, ratio: float = 1.0, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim, eps=eps)
        self.norm2 = RepBN(dim)
        self.ratio = ratio
        self._share: Tensor | None = None  # of the last step; None in a warm one
        for name, value in zip(self.counters, (warm, steps, steps), strict=True):
            self.register_buffer(name, torch.tensor(value))
        self._may_be_warm = warm > 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.norm2(x)
        share = self._share if _recomputing() else self._step()
        if share is None:
            return self.norm1(x)
        return share * self.norm1(x) + (1 - share) * self.norm2(x)

    def _step(self) -> Tensor | None:
        """The LayerNorm's share in this step, and one step less to go."""
        share = None
        if self._may_be_warm and bool(self.warm > 0):
            self.warm.sub_(1)
        else:
            self._may_be_warm = False
            share = self.ratio * self.iter / self.total_step
            self.iter.sub_(1).clamp_(min=0)
        if not torch.compiler.is_compiling():
            self._share = share
        return share

    def finish(self) -> None:
        """Go to the end of training, where RepBN is all."""
        self.warm.zero_()
        self.iter.zero_()

    def folded(self) -> nn.Module:
        return self.norm2

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self.counters:
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._may_be_warm = not self.warm.is_meta and bool(self.warm > 0)


def _recomputing() -> bool:
    """Whether this runs inside a backward pass, as checkpointed blocks do for the second time."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def prepbn(steps: int = PUBLISHED_STEPS, eps: float = 1e-6) -> Callable[[int], nn.Module]:
    """Factory of a `ProgressiveRepBN` with fixed options."""
    return partial(ProgressiveRepBN, steps=steps, eps=eps)
