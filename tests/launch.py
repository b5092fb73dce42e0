"""Runs of several processes on this machine, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


def start(folder: Path, settings: Iterable[str], processes: int, recipe: str = "shvit_digits") -> subprocess.Popen[str]:
    """Begin a run in ``folder``, or go on with the one that is there."""
    words = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    words += ["--rdzv-endpoint=localhost:0", "-m", "mixzoo", "train", recipe, *settings]
    words += ["--out", str(folder), "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the end of a run that must not fail."""
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
