"""How long a written file takes, beside PyTorch's deploy form of the same model on the same machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch

from ..zoo.timing import measure, paired_speedup
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
        file_ms, torch_ms: milliseconds a call, of the file in its runtime and of the deploy form in PyTorch.
        ratio: how many times faster the file is, by the median over pairs of turns taken side by side.
        load: what else the machine was doing: processes ready to run, averaged over the last minute.
    """

    case: Case
    threads: int
    file_ms: float
    torch_ms: float
    ratio: float
    load: float


def time(reference: Reference, runner: Runner, case: Case) -> Latency:
    """Time ``runner`` at ``case``, against the deploy form of the model that it was written from."""
    images = torch.cat([reference.image(case.size, i) for i in range(case.batch)])
    array: np.ndarray = images.numpy()
    deployed, load = reference.deployed, os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

    def torch_call() -> object:
        with torch.inference_mode():
            return deployed(images)

    timings = measure({"file": lambda: runner.outputs(array), "torch": torch_call}, rounds=_ROUNDS)
    file, ours = timings["file"], timings["torch"]
    return Latency(case, torch.get_num_threads(), file.median, ours.median, paired_speedup(ours, file), load)
