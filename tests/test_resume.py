"""Runs that are killed, and what they go on from: nothing is lost, and the numbers are those of a run that was not."""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mixzoo.train import train
from mixzoo.train.logs import STEPS
from mixzoo.train.snapshots import FOLDER, latest_snapshot
from rich.console import Console

TINY = (
    "model.kwargs={depths: [1, 1, 1], dims: [16, 24, 32], partial_dims: [null, 8, 8]}",
    "data.size=32",
    "data.batch=128",  # ten steps an epoch
    "schedule.epochs=4",
    "schedule.warmup_epochs=1",
    "saving.every_epochs=1",
)
MUCH = (  # everything that has a state or draws at random
    *TINY,
    "saving.every_steps=3",
    "augment.mixup=0.8",
    "augment.cutmix=1.0",
    "augment.random_erasing=0.25",
    "regularisation.drop_path=0.1",
    "regularisation.dropout=0.1",
    "ema.decay=0.9",
    "optim.clip_grad=1.0",
)
MIXED = multiprocessing.get_context("forkserver")


def quiet() -> Console:
    return Console(file=io.StringIO())


def steps(folder: Path) -> list[str]:
    return (folder / STEPS).read_text().splitlines()


def scores(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "log.csv").open(newline="") as file:
        return [(r["number"], r["lr"], r["loss"], r["accuracy"], r["test_loss"]) for r in csv.DictReader(file)]


def run_on(folder: str) -> None:
    """What a process does until it is killed."""
    train("shvit_digits", MUCH, folder, quiet(), resume=True)


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def until(condition: Callable[[], bool], process: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while process.is_alive() and not condition():
        assert time.monotonic() < end
        time.sleep(0.0002)


def written(folder: Path) -> int:
    """Rows of the log of steps."""
    return len(steps(folder)) if (folder / STEPS).is_file() else 0


@pytest.mark.slow
def test_ten_kills_at_random_change_nothing(tmp_path: Path) -> None:
    """Half of them while a checkpoint is being written."""
    MIXED.set_forkserver_preload(["mixzoo.train.engine", "accelerate", "sklearn.datasets", "sklearn.model_selection"])
    whole, broken, chance = tmp_path / "whole", tmp_path / "broken", random.Random(time.time_ns())
    run_on(str(whole))
    kills = during = 0
    while kills < 10:
        process = MIXED.Process(target=run_on, args=(str(broken),))
        process.start()
        if kills % 2:
            before = set((broken / FOLDER).glob("step-*"))
            until(lambda seen=before: set((broken / FOLDER).glob("step-*")) != seen, process)  # type: ignore[misc]
            until(lambda: any((broken / FOLDER).glob(".step-*")), process)
        else:
            row = written(broken) + chance.randrange(1, 4)
            until(lambda row=row: written(broken) > row, process)  # type: ignore[misc]
            time.sleep(chance.random() * 0.02)
        if not process.is_alive():
            break
        kill(process)
        kills, during = kills + 1, during + any((broken / FOLDER).glob(".step-*"))
        latest_snapshot(broken, pytest.fail)
    assert kills == 10, f"the run was over after {kills} kills"
    assert during >= 2
    run_on(str(broken))
    assert steps(broken) == steps(whole) and len(steps(whole)) == 41
    assert scores(broken) == scores(whole)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not list((broken / FOLDER).glob(".step-*"))
