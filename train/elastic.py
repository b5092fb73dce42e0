"""Nested FFN widths in training: one is drawn for each step, and each is tested after each epoch (arXiv:2310.07707)."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from torch import nn

from ..blocks.elastic import Elastic, make_elastic
from .evaluate import Scores
from .logs import Nested
from .models import ModelError
from .randomness import WIDTH, share
from .schema import Recipe


def prepare_elastic(model: nn.Module, recipe: Recipe) -> None:
    """Let the model run at the recipe's widths.

    Raises:
        ModelError: it has no FFN that can be nested, or a layer that cannot run so.
    """
    try:
        make_elastic(model, recipe.elastic.widths)
    except ValueError as error:
        raise ModelError(
            f"{recipe.model.name} cannot be trained with elastic.widths ({error}): leave them out, or take "
            "another model."
        ) from error


def drawn_width(recipe: Recipe, step: int) -> int:
    """The number of the width that step ``step`` (from 0) trains: alike in all processes, and in a resumed run."""
    count = len(recipe.elastic.widths)
    chances = recipe.elastic.probabilities or (1 / count,) * count
    return bisect([*accumulate(chances)][:-1], share(recipe.seed, WIDTH, step))


def draw_width(model: nn.Module, recipe: Recipe, step: int) -> None:
    """Let the model run at the width of this step; nothing where the recipe has none."""
    if recipe.elastic.widths:
        _of(model).choose(drawn_width(recipe, step))


def use_full_width(model: nn.Module, recipe: Recipe) -> None:
    """Let the model run at its full width again."""
    if recipe.elastic.widths:
        _of(model).choose(_of(model).full)


def judge_widths(
    model: nn.Module, recipe: Recipe, epoch: int, full: Scores, judge: Callable[[nn.Module], Scores]
) -> list[Nested]:
    """How good each width is after ``epoch``; ``full`` are the scores of the full one, ``judge`` gives the others."""
    found = []
    for index, width in enumerate(recipe.elastic.widths):
        _of(model).choose(index)
        scores = judge(model) if index < _of(model).full else full
        found.append(Nested(epoch, width, scores.top1, scores.loss))
    return found


def _of(model: nn.Module) -> Elastic:
    elastic: Any = model.elastic
    return elastic
