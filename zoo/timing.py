"""Timing on machines that do other things too: many short interleaved turns, medians, and ratios taken pair by pair.

Every candidate gets one turn in every round, in an order that is shuffled anew each round, so that a slow minute of
the machine falls on all of them alike. A turn starts with one call that is not timed: it brings the candidate's weights
back into the caches and waits out the thread pools that the candidate before it left spinning.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from time import perf_counter
from typing import TypeVar

import torch

Run = Callable[[], object]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    """Latencies of one candidate, in milliseconds a call.

    Attributes:
        calls: every timed call, in the order taken.
        rounds: the median of each round's turn; entry ``i`` of two candidates was measured side by side.
    """

    calls: tuple[float, ...]
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.calls)

    @property
    def p90(self) -> float:
        return percentile(self.calls, 90)


def percentile(values: tuple[float, ...], percent: float) -> float:
    """The value that ``percent`` % of ``values`` do not exceed, interpolated between neighbours."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def speedup(baseline: Timing, timing: Timing) -> float:
    """How many times faster ``timing`` is than ``baseline``: the ratio of their medians."""
    return baseline.median / timing.median


def paired_speedup(baseline: Timing, timing: Timing) -> float:
    """The median over rounds of the ratio within the round, which slow spells of the machine hardly move."""
    return median(b / t for b, t in zip(baseline.rounds, timing.rounds, strict=True))


def geometric_mean(values: list[float]) -> float:
    """The mean that fits ratios. ``values`` are positive and at least one."""
    return float(torch.tensor(values, dtype=torch.float64).log().mean().exp())


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def waiting(run: Callable[[], Result], device: str) -> Callable[[], Result]:
    """``run``, which on a device that works beside the processor returns only once its result is there."""
    if torch.device(device).type == "cpu":
        return run

    def wait() -> Result:
        result = run()
        torch.accelerator.synchronize(device)
        return result

    return wait


_SLOW = 1.0  # seconds: such calls gain nothing from one before them that is not timed


def measure(
    candidates: Mapping[str, Run],
    rounds: int = 30,
    turn_seconds: float = 0.05,
    on_round: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time every candidate in interleaved rounds.

    Args:
        candidates: name -> a call without arguments that does the work once and waits for its result.
        rounds: turns that each candidate gets.
        turn_seconds: about how long the timed calls of one turn take (at least one call, at most ten).
        on_round: called after every round, for a progress bar.

    Returns:
        name -> Timing, in the order of ``candidates``.
    """
    plans = {name: _plan(run, turn_seconds) for name, run in candidates.items()}
    taken: dict[str, list[list[float]]] = {name: [] for name in candidates}
    order = list(candidates)
    shuffler = random.Random(0)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            taken[name].append(_turn(candidates[name], *plans[name]))
        on_round()
    return {name: _timing(turns) for name, turns in taken.items()}


def _plan(run: Run, turn_seconds: float) -> tuple[int, int]:
    """Warm ``run`` up, then see how many calls fill a turn, and how many go before that are not timed."""
    if _turn(run, 1, 0)[0] > 1000 * _SLOW:
        return 1, 0
    _turn(run, 1)
    estimate = fmean(_turn(run, 2)) / 1000
    return max(1, min(10, round(turn_seconds / max(estimate, 1e-6)))), 1


def _turn(run: Run, calls: int, untimed: int = 1) -> list[float]:
    """Milliseconds of ``calls`` calls, after some that are not timed."""
    for _ in range(untimed):
        run()
    marks = [perf_counter()]
    for _ in range(calls):
        run()
        marks.append(perf_counter())
    return [1000 * (after - before) for before, after in pairwise(marks)]


def _timing(turns: list[list[float]]) -> Timing:
    return Timing(calls=tuple(ms for turn in turns for ms in turn), rounds=tuple(median(turn) for turn in turns))
