"""How long a written file takes, beside PyTorch's deploy form of the model and a float32 file, on one machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch

from ..zoo.timing import Run, measure, paired_speedup
from .numbers import outputs_of
from .protocol import Runner
from .shapes import Case
from .verify import Reference

_ROUNDS = 8


@dataclass(frozen=True)
class Latency:
    """Medians of interleaved calls.

    Attributes:
        case: the shape they were called with.
        threads: that both were given; a runtime that does not let one choose takes its own.
        device: what both were computed on; images are on the processor before and outputs after, and TF32 is not used.
        file_ms, torch_ms: milliseconds a call, of the file in its runtime and of the deploy form in PyTorch.
        ratio: how many times faster the file is, by the median over pairs of turns taken side by side.
        before_ms: of the float32 file in the same runtime; None where the file is that itself.
        before_ratio: how many times faster than that the file is.
        load: what else the machine was doing: processes ready to run, averaged over the last minute.
    """

    case: Case
    threads: int
    file_ms: float
    torch_ms: float
    ratio: float
    load: float
    device: str = "cpu"
    before_ms: float | None = None
    before_ratio: float | None = None


def time(reference: Reference, runner: Runner, case: Case, before: Runner | None = None) -> Latency:
    """Time ``runner`` at ``case``, against the deploy form of the model and, if given, its float32 file ``before``."""
    images = torch.cat([reference.image(case.size, i) for i in range(case.batch)])
    array: np.ndarray = images.numpy()
    deployed, load = reference.deployed_on(runner.device), os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

    def torch_call() -> object:
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            return outputs_of(deployed, images.to(runner.device))

    candidates: dict[str, Run] = {"file": lambda: runner.outputs(array), "torch": torch_call}
    if before is not None:
        candidates["before"] = lambda: before.outputs(array)
    timings = measure(candidates, rounds=_ROUNDS)
    file, ours, float_file = timings["file"], timings["torch"], timings.get("before")
    return Latency(
        case=case,
        threads=torch.get_num_threads(),
        file_ms=file.median,
        torch_ms=ours.median,
        ratio=paired_speedup(ours, file),
        load=load,
        device=runner.device,
        before_ms=float_file.median if float_file else None,
        before_ratio=paired_speedup(float_file, file) if float_file else None,
    )
