"""Images a second of the training engine against timm's own ``train.py``: same model, images and settings, in turns.

    python -m mixzoo.bench.training train.py images --model resnet18 --size 96 --batch 64 --rounds 5 --out training.json

``train.py`` is the script of timm's repository, which its wheel does not hold. ``images`` has ``train`` and ``val``,
with a folder for each class. Every turn is one epoch in a process of its own; what counts is what each says of its
training, reading and augmenting images included, testing not. The first round warms the disk's cache and is left out.
"""

from __future__ import annotations

import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

from ..zoo.console import show
from ..zoo.errors import MixzooError
from ..zoo.files import atomic_write
from ..zoo.machine import describe_machine
from ..zoo.tables import new_table
from .report import describe

SETTINGS = {"lr": 1e-3, "weight_decay": 0.05, "smoothing": 0.1, "flip": 0.5, "scale": (0.5, 1.0), "ratio": (0.75, 1.33)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Job:
    """What both train.

    Attributes:
        script: timm's ``train.py``.
        images: folder with ``train`` and ``val``.
        model: a name of timm.
        size, batch: pixels per side, images a step.
        workers: processes that read images.
        threads: of torch.
    """

    script: Path
    images: Path
    model: str
    size: int
    batch: int
    workers: int
    threads: int


@dataclass(frozen=True)
class Comparison:
    """Images a second of each turn; ``ratios`` are ours over timm's, round by round."""

    job: Job
    ours: tuple[float, ...]
    timm: tuple[float, ...]
    ratios: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", tuple(a / b for a, b in zip(self.ours, self.timm, strict=True)))

    @property
    def ratio(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.ratios)


def compare_engines(job: Job, rounds: int, console: Console) -> Comparison:
    """Train one epoch with each engine in turn, ``rounds`` times and once more before.

    Raises:
        MixzooError: an engine fails, or says nothing of its speed; the message has its last line.
    """
    ours, theirs = [], []
    for turn in range(rounds + 1):
        first, second = (_ours, _timm) if turn % 2 else (_timm, _ours)
        speeds = {engine: engine(job) for engine in (first, second)}
        console.print(f"round {turn} of {rounds}: ours {speeds[_ours]:.1f}, timm {speeds[_timm]:.1f} images/s")
        if turn:
            ours.append(speeds[_ours])
            theirs.append(speeds[_timm])
    return Comparison(job, tuple(ours), tuple(theirs))


def _ours(job: Job) -> float:
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(_recipe(job)), encoding="utf-8")
        _run(job, ["-m", "mixzoo", "train", str(recipe), "--out", f"{folder}/run"])
        with (Path(folder) / "run" / "log.csv").open(encoding="utf-8") as log:
            return float(next(csv.DictReader(log))["images_per_s"])


def _recipe(job: Job) -> dict[str, object]:
    s = SETTINGS
    return {
        "model": {"name": f"timm/{job.model}"},
        "data": {
            "source": "folder",
            "root": str(job.images.resolve()),
            "test": "val",
            "size": job.size,
            "batch": job.batch,
            "workers": job.workers,
            "interpolation": "bicubic",
            "mean": list(MEAN),
            "std": list(STD),
        },
        "augment": {"flip": s["flip"], "crop_scale": list(s["scale"]), "crop_ratio": list(s["ratio"])},  # type: ignore[call-overload]
        "optim": {"optimizer": "adamw", "lr": s["lr"], "weight_decay": s["weight_decay"]},
        "schedule": {"schedule": "cosine", "epochs": 1},
        "regularisation": {"label_smoothing": s["smoothing"]},
        "compute": {"threads": job.threads},
        "saving": {"every_epochs": None, "tensorboard": False},
    }


def _timm(job: Job) -> float:
    with tempfile.TemporaryDirectory() as folder:
        text = _run(job, [str(job.script.resolve()), *_arguments(job, folder)])
    found = re.findall(r"Train: 0 .*\(([\d.]+)s,", text)
    if not found:
        raise MixzooError(f"timm's train.py said nothing of its speed; its last line: {text.strip().splitlines()[-1]}")
    return job.batch / float(found[-1])


def _arguments(job: Job, folder: str) -> list[str]:
    s = SETTINGS
    options = {
        "data-dir": job.images.resolve(), "model": job.model, "num-classes": _classes(job), "output": folder,
        "device": "cpu", "epochs": 1, "batch-size": job.batch, "workers": job.workers, "opt": "adamw", "lr": s["lr"],
        "weight-decay": s["weight_decay"], "smoothing": s["smoothing"], "hflip": s["flip"], "color-jitter": 0.0,
        "train-interpolation": "bicubic", "warmup-epochs": 0, "log-interval": 1000, "train-split": "train",
        "val-split": "val",
    }  # fmt: skip
    lists = {"input-size": (3, job.size, job.size), "scale": s["scale"], "ratio": s["ratio"], "mean": MEAN, "std": STD}
    single = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return single + [part for name, values in lists.items() for part in (f"--{name}", *map(str, values))]  # type: ignore[call-overload]


def _classes(job: Job) -> int:
    return sum(path.is_dir() for path in (job.images / "train").iterdir())


def _run(job: Job, command: Sequence[str]) -> str:
    """All that a Python command says, with the job's threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise MixzooError(f"{' '.join(command[:4])} ended with {done.returncode}: {''.join(last)}")
    return done.stdout + done.stderr


def table(found: Comparison) -> Table:
    """Both engines, and how they compare."""
    job = found.job
    title = f"{job.model}, {job.size} pixels, batch {job.batch}, {job.threads} threads, {job.workers} workers"
    caption = "\n".join(describe(describe_machine()))
    grid = new_table(("engine",), ("median images/s", "least", "greatest", "of timm's"), title=title, caption=caption)
    for name, speeds, ratio in (("mixzoo train", found.ours, found.ratio), ("timm's train.py", found.timm, 1.0)):
        cells = (statistics.median(speeds), min(speeds), max(speeds))
        grid.add_row(name, *(f"{cell:.1f}" for cell in cells), f"{ratio:.3f}")
    return grid


app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def main(
    script: Annotated[Path, typer.Argument(help="timm's train.py")],
    images: Annotated[Path, typer.Argument(help="folder with train and val")],
    model: Annotated[str, typer.Option(help="a model of timm")] = "resnet18",
    size: Annotated[int, typer.Option(help="pixels per side")] = 96,
    batch: Annotated[int, typer.Option(help="images a step")] = 64,
    workers: Annotated[int, typer.Option(help="processes that read images")] = 1,
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each that count")] = 5,
    out: Annotated[Path | None, typer.Option(help="write JSON here")] = None,
) -> None:
    """Time the training engine against timm's own script, in turns."""
    console = Console(stderr=True, highlight=False)
    try:
        found = compare_engines(Job(script, images, model, size, batch, workers, threads), rounds, console)
    except MixzooError as error:
        console.print(f"[red]Error:[/] {error}")
        raise typer.Exit(1) from error
    show(table(found))
    if out:
        record = {"record": "training", **asdict(found), "ratio": found.ratio, "machine": describe_machine()}
        atomic_write(out, json.dumps(record, default=str) + "\n")


if __name__ == "__main__":
    app()
