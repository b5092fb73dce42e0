"""Runs of several processes on this machine, as torchrun starts them, and the settings of a small one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

TINY = (
    "model.name=deit",
    "model.kwargs={depth: 2, dim: 32}",
    "data.size=32",
    "data.batch=256",  # five steps an epoch
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
)


def launch(processes: int, *words: str) -> subprocess.Popen[str]:
    """Begin a program of several processes: ``-m`` and a module, or a file, and what it gets."""
    command = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *command, "--rdzv-endpoint=localhost:0", *words],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def start(
    folder: Path, settings: Iterable[str], processes: int, program: Iterable[str] = ("-m", "mixzoo")
) -> subprocess.Popen[str]:
    """Begin a run in ``folder``, or go on with the one that is there."""
    return launch(processes, *program, "train", "shvit_digits", *settings, "--out", str(folder), "--resume")


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the end of a program that must not fail."""
    _, said = process.communicate()
    assert process.returncode == 0, said
