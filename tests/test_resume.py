"""Runs that are killed, and what they go on from: nothing is lost, and the numbers are those of a run that was not."""

from __future__ import annotations

import csv
import errno
import io
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import finish, start
from mixzoo.train import LostError, RecipeError, StorageError, load_run, train
from mixzoo.train.images import ArrayImages
from mixzoo.train.logs import STEPS
from mixzoo.train.recipe import load_recipe
from mixzoo.train.snapshots import FOLDER, latest_snapshot, prune, saved_steps, write_snapshot
from mixzoo.train.sources import load_data
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
SHORT = (*MUCH, "data.batch=256", "schedule.epochs=2")  # five steps an epoch
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to, with checkpoints of every third step and every epoch."""
    folder = tmp_path_factory.mktemp("whole")
    train("shvit_digits", SHORT, folder, quiet())
    return folder


def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int, after: int) -> None:
    """Let a function of the system fail with error ``number`` from the ``after``-th call on."""
    module, _, function = name.rpartition(".")
    real, calls = getattr(sys.modules[module], function), [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(name, call)


@pytest.mark.parametrize(
    ("name", "number", "says"),
    [
        ("os.fsync", errno.ENOSPC, "No space left on device"),
        ("tempfile.mkdtemp", errno.EROFS, "Read-only file system"),
        ("os.replace", errno.EACCES, "Permission denied"),
    ],
)
def test_a_disk_that_fails_ends_the_run_and_leaves_the_last_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, says: str
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, name, number, {"os.fsync": 14, "tempfile.mkdtemp": 1, "os.replace": 3}[name])
        with pytest.raises(StorageError, match=rf"step \d+ cannot be written to .*{says}.*--resume"):
            train("shvit_digits", SHORT, tmp_path, quiet())
    snapshot = latest_snapshot(tmp_path, pytest.fail)
    assert snapshot is not None and snapshot.facts["step"] == 3 < written(tmp_path) - 1
    assert not list((tmp_path / FOLDER).glob(".*")) and not (tmp_path / "train.json").exists()
    train("shvit_digits", SHORT, tmp_path, quiet(), resume=True)
    assert steps(tmp_path) == steps(whole) and scores(tmp_path) == scores(whole)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        train("shvit_digits", SHORT, tmp_path / "file" / "run", quiet())


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "checkpoint.json", "ema.safetensors"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole / FOLDER, tmp_path / FOLDER)
    newest, before = saved_steps(tmp_path)[:2]
    (newest / name).write_bytes((newest / name).read_bytes()[:-7])
    said: list[str] = []
    snapshot = latest_snapshot(tmp_path, said.append)
    assert snapshot is not None and snapshot.path == before
    assert len(said) == 1 and f"{newest} is damaged and left out" in said[0]


def test_the_last_checkpoints_and_the_best_stay(tmp_path: Path) -> None:
    for step, score in enumerate([0.5, 0.9, 0.6, None, 0.7], 1):
        write_snapshot(tmp_path, step, {}, {}, {"score": score})
        prune(tmp_path, 2, float.__gt__)
    assert [p.name for p in saved_steps(tmp_path)] == ["step-00000005", "step-00000004", "step-00000002"]
    prune(tmp_path, 1, None)
    assert [p.name for p in saved_steps(tmp_path)] == ["step-00000005"]


def unfinished(whole: Path, folder: Path) -> Path:
    for name in (FOLDER,):
        shutil.copytree(whole / name, folder / name)
    for name in ("log.csv", STEPS):
        shutil.copy(whole / name, folder / name)
    shutil.rmtree(saved_steps(folder)[0])
    return folder


def test_another_recipe_is_refused_and_the_difference_named(whole: Path, tmp_path: Path) -> None:
    folder = unfinished(whole, tmp_path)
    with pytest.raises(RecipeError, match=r"optim\.lr was 0\.003 and is 0\.1; seed was 0 and is 1"):
        train("shvit_digits", [*SHORT, "optim.lr=0.1", "seed=1"], folder, quiet(), resume=True)
    with pytest.raises(RecipeError, match=r"not finished: go on with --resume"):
        train("shvit_digits", SHORT, folder, quiet())


def test_what_decides_no_number_may_differ(whole: Path, tmp_path: Path) -> None:
    folder = unfinished(whole, tmp_path)
    train("shvit_digits", [*SHORT, "data.workers=1", "saving.keep=1"], folder, quiet(), resume=True)
    assert steps(folder) == steps(whole) and scores(folder) == scores(whole)


def test_a_finished_run_is_given_back(whole: Path) -> None:
    before = (whole / "train.json").stat().st_mtime_ns
    result = train("shvit_digits", SHORT, whole, quiet(), resume=True)
    assert (whole / "train.json").stat().st_mtime_ns == before
    assert result.accuracy == load_run(whole).record["test_accuracy"] and len(result.epochs) == 2


class Deadly(ArrayImages):
    """Its tenth image ends the worker that reads it."""

    def read(self, index: int) -> tuple[Any, int]:
        if index == 10 and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


def test_a_lost_worker_ends_the_run_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(load_recipe("shvit_digits").data)
    assert isinstance(data.train, ArrayImages) and data.train.labels is not None
    deadly = Deadly(data.train.arrays, data.train.labels)
    monkeypatch.setattr("mixzoo.train.engine.load_data", lambda recipe: replace(data, train=deadly))
    with pytest.raises(LostError, match=r"DataLoader worker .* (killed by signal|exited unexpectedly)"):
        train("shvit_digits", [*SHORT, "data.workers=1"], tmp_path, quiet())


# more than one process

DEIT = (
    "model.name=deit",
    "model.kwargs={depth: 2, dim: 64}",
    "data.size=32",
    "data.batch=128",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
    "optim.lr=1e-3",
    "augment.mixup=0.8",
    "augment.cutmix=1.0",
    "augment.random_erasing=0.25",
    "compute.memory_format=contiguous",
    "saving.every_epochs=1",
    "saving.every_steps=3",
)


def worker_pids(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children if b"mixzoo" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_two_processes_give_what_one_gives_also_when_one_of_them_is_killed(tmp_path: Path) -> None:
    one, two, broken = (tmp_path / name for name in ("one", "two", "broken"))
    train("shvit_digits", DEIT, one, quiet())
    finish(start(two, DEIT, 2))
    losses = [[float(line.split(",")[3]) for line in steps(folder)[1:]] for folder in (one, two)]
    assert len(losses[0]) == 20 and losses[1] == pytest.approx(losses[0], rel=1e-4)  # sums in another order
    process = start(broken, DEIT, 2)
    while written(broken) < 9:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(worker_pids(process.pid)[-1], signal.SIGKILL)
    assert process.wait(600) != 0
    latest_snapshot(broken, pytest.fail)
    finish(start(broken, DEIT, 2))
    assert steps(broken) == steps(two) and scores(broken) == scores(two)
