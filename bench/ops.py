"""Functional ops side by side: reference, candidates, attention over all tokens, and what the machine allows.

Every implementation of an op is timed at several map sizes and head counts, in interleaved turns, with the greatest
amount of tensor memory that a call holds at once. The floor is the time that the machine needs at least: to move inputs
and outputs once, or to do the arithmetic, whichever is longer, by the bandwidth and rate measured on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from ..kernels import OPS, Op
from ..zoo.errors import MixzooError, UnknownNameError
from ..zoo.machine import check_device
from ..zoo.timing import geometric_mean, measure, torch_threads, waiting
from .macs import MISSED_BY_TORCH
from .memory import peak_tensor_memory

REFERENCE, ALL_TOKENS = "reference", "sdpa, all tokens"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Step = Callable[[str], object]
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class OpSettings:
    """What to measure.

    Attributes:
        sides: maps of side x side tokens.
        heads: head counts.
        dim: channels of all heads together.
        batch: maps a call.
        device: as torch names it: cpu, cuda, cuda:1, mps.
        dtype: of the floating-point operands: float32, bfloat16, float16.
        threads: of torch.
        rounds: interleaved turns of every implementation.
        max_seconds: an implementation that would take longer for a call is left out at that size.
        max_gib: the same for memory.
    """

    sides: tuple[int, ...] = (14, 28, 56, 112, 128)
    heads: tuple[int, ...] = (2, 4)
    dim: int = 64
    batch: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 2
    rounds: int = 5
    max_seconds: float = 10.0
    max_gib: float = 4.0

    def __post_init__(self) -> None:
        if min((0, *self.sides)) < 0 or not self.sides or not self.heads or min(self.heads) < 1 or self.rounds < 1:
            raise MixzooError("An op is measured at one side and one head count or more: --sides 14,28 --heads 2,4.")
        for heads in self.heads:
            if self.dim % heads:
                raise MixzooError(f"{self.dim} channels do not divide into {heads} heads: give --heads that do.")
        if self.dtype not in DTYPES:
            raise UnknownNameError("type", self.dtype, DTYPES, f"Types: {', '.join(DTYPES)}.")
        check_device(self.device)


@dataclass(frozen=True)
class OpRow:
    """One implementation at one size. Figures are None where ``reason`` says why there are none.

    Attributes:
        op, implementation: names.
        side, heads, dim, threads, batch, device, dtype: as measured.
        median_ms: milliseconds a call.
        peak_mb: MiB of tensors that a call holds at once, its inputs not counted.
        floor_ms: least time that this machine could take.
        speedup: how many times faster than the reference, by medians.
        memory_ratio: peak relative to the reference's.
        reason: why it was not measured.
    """

    op: str
    implementation: str
    side: int
    heads: int
    dim: int
    threads: int
    batch: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    median_ms: float | None = None
    peak_mb: float | None = None
    floor_ms: float | None = None
    speedup: float | None = None
    memory_ratio: float | None = None
    reason: str | None = None


def get_op(name: str) -> Op:
    """The op called ``name``.

    Raises:
        UnknownNameError: no such op; the message has near names.
    """
    if name not in OPS:
        raise UnknownNameError("op", name, OPS, f"Ops: {', '.join(OPS)}.")
    return OPS[name]


def count_steps(settings: OpSettings) -> int:
    """How often `bench_op` calls ``on_step`` at most."""
    return len(settings.sides) * len(settings.heads)


@torch.no_grad()
def bench_op(name: str, settings: OpSettings, on_step: Step = lambda text: None) -> Iterator[list[OpRow]]:
    """Measure an op and yield the rows of each size as soon as they are there, sizes from small to large.

    Raises:
        UnknownNameError: no such op.
    """
    op = get_op(name)
    with torch_threads(settings.threads):
        machine = Machine.measured(settings.device, DTYPES[settings.dtype])
        for heads in settings.heads:
            before: dict[str, list[OpRow]] = {}
            for side in sorted(settings.sides):
                on_step(f"{name}: {side} x {side}, {heads} heads")
                rows = _bench_size(op, side, heads, settings, machine, before)
                for row in rows:
                    if row.median_ms is not None:
                        before.setdefault(row.implementation, []).append(row)
                yield rows


def _bench_size(
    op: Op, side: int, heads: int, settings: OpSettings, machine: Machine, before: dict[str, list[OpRow]]
) -> list[OpRow]:
    shared = {field: getattr(settings, field) for field in ("dim", "threads", "batch", "device", "dtype")}
    blank = OpRow(op=op.name, implementation="", side=side, heads=heads, **shared)
    args, kwargs = placed(op.sample(side, heads, settings.dim, settings.batch), settings)
    rows: dict[str, OpRow] = {}
    runs: dict[str, Run] = {}
    for name, call, reason in _implementations(op, side, heads, settings, args, kwargs):
        run = waiting(call, settings.device)
        reason = reason or _too_much(before.get(name, []), side, settings)
        rows[name] = replace(blank, implementation=name, reason=reason)
        if reason is None:
            runs[name] = run
            rows[name] = replace(rows[name], peak_mb=peak_tensor_memory(run, settings.device) / 2**20)
    timings = measure(runs, rounds=settings.rounds)
    floor = machine.floor_ms([run for name, run in runs.items() if name != ALL_TOKENS], [*args, *kwargs.values()])
    for name, timing in timings.items():
        rows[name] = replace(rows[name], median_ms=timing.median, floor_ms=None if name == ALL_TOKENS else floor)
    return [_relative(row, rows[REFERENCE]) for row in rows.values()]


def _implementations(
    op: Op, side: int, heads: int, settings: OpSettings, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[str, Run, str | None]]:
    """(name, call, reason why it cannot run here) of everything that computes the op, and of full attention."""
    yield REFERENCE, partial(op.reference, *args, **kwargs), None
    for candidate in op.candidates:
        yield candidate.name, partial(candidate.run, *args, **kwargs), candidate.unsupported(*args, **kwargs)
    q, k, v = placed(torch.randn(3, settings.batch, heads, side * side, settings.dim // heads), settings)
    yield ALL_TOKENS, partial(F.scaled_dot_product_attention, q, k, v), None


def placed(values: Any, settings: OpSettings) -> Any:
    """Floating-point tensors among ``values`` in the settings' type, and all on their device; memory order stays."""

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.to(settings.device)
        return value.to(DTYPES[settings.dtype]) if value.is_floating_point() else value

    return tree_map(there, values)


def _too_much(smaller: Sequence[OpRow], side: int, settings: OpSettings) -> str | None:
    """Why a size is left out: what the sizes before took, grown as they did from one to the next, or quadratically."""
    if not smaller:
        return None
    seconds = _extrapolated([(row.side, (row.median_ms or 0.0) / 1000) for row in smaller], side)
    gib = _extrapolated([(row.side, (row.peak_mb or 0.0) / 1024) for row in smaller], side)
    if gib > settings.max_gib:
        return f"may need {gib:.0f} GiB"
    return f"may take {seconds:.0f} s a call" if seconds > settings.max_seconds else None


def _extrapolated(known: Sequence[tuple[int, float]], side: int) -> float:
    """Value at ``side`` of what is known at smaller sides, by the power law of the last two (tokens^2 for one)."""
    last, value = known[-1]
    power = slope(*zip(*known[-2:], strict=True)) if len(known) > 1 and min(v for _, v in known[-2:]) > 0 else 4.0
    return value * (side / last) ** power


def _relative(row: OpRow, reference: OpRow) -> OpRow:
    if row.median_ms is None or reference.median_ms is None or not reference.peak_mb or row.peak_mb is None:
        return row
    return replace(row, speedup=reference.median_ms / row.median_ms, memory_ratio=row.peak_mb / reference.peak_mb)


@dataclass(frozen=True)
class Machine:
    """What this machine can do at most.

    Attributes:
        bytes_per_ms: copied, read and written bytes together.
        flops_per_ms: of a large matrix product in the type that is measured.
    """

    bytes_per_ms: float
    flops_per_ms: float

    @classmethod
    def measured(cls, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Machine:
        """Measure a copy of 64 MiB and a product of 1024 x 1024 matrices, of 8192 x 8192 on a GPU; best of a few."""
        source, target = torch.ones(2**24, device=device), torch.empty(2**24, device=device)
        side = 1024 if device == "cpu" else 8192
        a, b = torch.randn(2, side, side, device=device, dtype=dtype)
        runs: dict[str, Run] = {"copy": lambda: target.copy_(source), "product": lambda: a @ b}
        taken = measure({name: waiting(run, device) for name, run in runs.items()}, rounds=3)
        return cls(2 * 4 * 2**24 / min(taken["copy"].calls), 2 * side**3 / min(taken["product"].calls))

    def floor_ms(self, runs: Sequence[Run], inputs: Sequence[Any]) -> float | None:
        """The longer of moving inputs and output once, and of the arithmetic of the most frugal of ``runs``."""
        if not runs:
            return None
        moved = sum(t.numel() * t.element_size() for t in (*inputs, runs[0]()) if isinstance(t, Tensor))
        return max(moved / self.bytes_per_ms, min(map(_flops, runs)) / self.flops_per_ms)


def _flops(run: Run) -> int:
    with FlopCounterMode(display=False, custom_mapping=MISSED_BY_TORCH) as counter:
        run()
    return int(counter.get_total_flops())


def exponents(rows: Sequence[OpRow]) -> dict[str, dict[str, float]]:
    """How time and memory grow with the number of tokens, per implementation: least squares on logarithms.

    Returns:
        implementation -> {"time", "memory"}: 1 is linear, 2 quadratic. Only sizes of 28 x 28 and more count, where a
        call is more than its overhead; implementations with fewer than two of them are left out.
    """
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row.implementation for row in rows):
        known = [r for r in rows if r.implementation == name and r.median_ms and r.peak_mb and r.side >= 28]
        if len({row.side for row in known}) >= 2:
            tokens = [float(row.side**2) for row in known]
            found[name] = {
                "time": slope(tokens, [row.median_ms or 0.0 for row in known]),
                "memory": slope(tokens, [row.peak_mb or 0.0 for row in known]),
            }
    return found


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent p of the power law y = c x^p that fits best in logarithms."""
    u, w = [math.log(value) for value in x], [math.log(value) for value in y]
    mu, mw = sum(u) / len(u), sum(w) / len(w)
    return sum((a - mu) * (b - mw) for a, b in zip(u, w, strict=True)) / sum((a - mu) ** 2 for a in u)


def speedups(rows: Sequence[OpRow]) -> dict[str, tuple[float, float]]:
    """implementation -> (geometric mean, median) over sizes of how many times faster than the reference."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.speedup and row.implementation not in (REFERENCE, ALL_TOKENS):
            found.setdefault(row.implementation, []).append(row.speedup)
    return {name: (geometric_mean(values), median(values)) for name, values in found.items()}
