"""Which layers lose most in eight bits, and how many of them must stay in float.

Layers are ranked once, by simulation: one at a time has its weights rounded to 8 bits per output channel and its input
to 8 bits over the range it has on calibration images of every size, and the outputs of the model, at the size where it
hurts most, say how much. What rounding its output does counts half: of two layers that share a tensor, the one that is
given it goes back first. The ranking is that of the model, not of a runtime; how many layers a runtime's own file must
keep is found by writing and judging.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
import torch
from torch import Tensor, nn

from .errors import ExportError
from .judge import DropError, Judgement
from .numbers import Outputs, outputs_of
from .ranges import Range, by_size, ranges_of

_SIMULATED = 16  # images
_LEVELS = 127
_STEPS = 2 * _LEVELS + 1


@torch.no_grad()
def rank_layers(module: nn.Module, images: Sequence[Tensor]) -> list[str]:
    """Paths of the layers that have weights, the one that loses most in eight bits first.

    Args:
        module: in evaluation mode; it is not changed.
        images: float32 (1, C, H, W) each, of one size or several.
    """
    module = copy.deepcopy(module)
    batches = [batch[:: max(1, len(batch) // _SIMULATED)][:_SIMULATED] for batch in by_size(images).values()]
    found = layers(module)
    wanted = [(batch, outputs_of(module, batch), ranges_of(module, found, batch)) for batch in batches]
    losses = {}
    for path, layer in found.items():
        ranges = reduce(or_, (of_size[path] for _, _, of_size in wanted))
        takes = max(_loss(module, rounded(layer, ranges.given), x, y) for x, y, _ in wanted)
        gives = max(_loss(module, _rounded_output(layer, ranges.gives), x, y) for x, y, _ in wanted)
        losses[path] = max(takes, gives / 2)
    return sorted(losses, key=lambda path: -losses[path])


def _distance(got: Outputs, wanted: Outputs) -> float:
    """Relative, of all outputs together: the root of the mean square, since one image more or less proves little."""
    squares = [(float(np.square(a - b).sum()), float(np.square(b).sum())) for a, b in zip(got, wanted, strict=True)]
    return max(above / max(below, 1e-30) for above, below in squares) ** 0.5


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that have a matrix or kernel of their own, by path."""
    return {path: layer for path, layer in module.named_modules() if _matrices(layer)}


def _matrices(layer: nn.Module) -> list[str]:
    """Names of the layer's own weights that are no vectors, whatever their number of axes."""
    weight = layer._parameters.get("weight")
    return ["weight"] if weight is not None and weight.ndim >= 2 and weight.numel() > max(weight.shape) else []


def _loss(module: nn.Module, change: AbstractContextManager[None], batch: Tensor, wanted: Outputs) -> float:
    """What a change to one of the module's layers does to its outputs."""
    with change:
        return _distance(outputs_of(module, batch), wanted)


@contextmanager
def rounded(layer: nn.Module, given: Range | None = None) -> Iterator[None]:
    """Let ``layer`` compute with what 8 bits leave of its weights and of its input.

    Args:
        layer: changed for the while.
        given: the range of its input; by default what it is, whatever it is given.
    """
    before = {name: layer._parameters[name] for name in _matrices(layer)}
    for name, weight in before.items():
        assert weight is not None
        layer._parameters[name] = nn.Parameter(_round(weight, weight.flatten(1).abs().amax(1)), requires_grad=False)
    hook = layer.register_forward_pre_hook(lambda _, x: (_round_all(x[0], given), *x[1:]))
    try:
        yield
    finally:
        hook.remove()
        layer._parameters.update(before)


@contextmanager
def _rounded_output(layer: nn.Module, gives: Range) -> Iterator[None]:
    """Let ``layer`` give what 8 bits leave of its output."""
    hook = layer.register_forward_hook(lambda _, x, y: gives.round(y, _STEPS))
    try:
        yield
    finally:
        hook.remove()


def _round_all(x: Tensor, given: Range | None) -> Tensor:
    if given is not None:
        return given.round(x, _STEPS)
    step = (x.amax().clamp_min(0) - x.amin().clamp_max(0)).clamp_min(1e-12) / _STEPS
    return (x / step).round() * step


def _round(weight: Tensor, greatest: Tensor) -> Tensor:
    step = (greatest.clamp_min(1e-12) / _LEVELS).reshape(-1, *(1,) * (weight.ndim - 1))
    return (weight / step).round() * step


@dataclass(frozen=True)
class Fit:
    """A file that is good enough: which layers stay in float, of how many, and what it was judged by."""

    keep: tuple[str, ...]
    layers: int
    judgement: Judgement


def put_back(
    count: int,
    ranked: Callable[[], Sequence[str]],
    attempt: Callable[[frozenset[str]], Judgement],
    max_drop: float,
    most: int | None = None,
) -> Fit:
    """Write files with ever more layers in float, worst first, until one is good enough; the last one written is it.

    The number of layers is doubled until the file passes, then halved towards the least that passes: what is written
    costs minutes, and a model has a hundred layers.

    Args:
        count: layers that there are.
        ranked: gives them, worst first; it is asked only if the file in which none is in float does not pass.
        attempt: writes a file with such layers in float, and judges it.
        max_drop: points of accuracy that may be lost.
        most: layers that may stay in float; all but one by default.

    Raises:
        DropError: even with so many layers in float too much is lost.
    """
    judgement = attempt(frozenset())
    reason = judgement.refusal(max_drop)
    if reason is None:
        return Fit((), count, judgement)
    most = count - 1 if most is None else most
    order, failed, kept = ranked(), 0, 0
    while reason is not None:
        failed, kept = kept, min(2 * kept or 1, most)
        if kept <= failed:
            raise DropError(f"with {failed} of {count} layers in float {reason}. Take fp16, or allow more: --max-drop.")
        judgement = attempt(frozenset(order[:kept]))
        reason = judgement.refusal(max_drop)
    return _fewest(order, attempt, max_drop, failed, Fit(tuple(order[:kept]), count, judgement))


def _fewest(
    order: Sequence[str], attempt: Callable[[frozenset[str]], Judgement], max_drop: float, failed: int, fit: Fit
) -> Fit:
    """The fit with the fewest layers in float between ``failed``, which are too few, and those of ``fit``."""
    written = len(fit.keep)
    while len(fit.keep) - failed > 1:
        written = (failed + len(fit.keep)) // 2
        judgement = attempt(frozenset(order[:written]))
        if judgement.refusal(max_drop) is None:
            fit = Fit(tuple(order[:written]), len(order), judgement)
        else:
            failed = written
    if written != len(fit.keep):
        again = attempt(frozenset(fit.keep))
        if reason := again.refusal(max_drop):
            raise ExportError(f"the quantiser does not give the same file twice: {reason}")
        fit = Fit(fit.keep, fit.layers, again)
    return fit
