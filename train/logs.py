"""What a run writes while it goes on: a row for each step and for each epoch, and the same for TensorBoard."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..zoo.errors import MixzooError
from ..zoo.extras import available
from ..zoo.files import atomic_write

EPOCHS, STEPS, NESTED, TENSORBOARD = "log.csv", "steps.csv", "nested.csv", "tensorboard"


class StorageError(MixzooError):
    """Something cannot be written."""


@dataclass(frozen=True)
class Step:
    """One step: its number in the run, its epoch, the learning rate it was made with, and the loss before it."""

    step: int
    epoch: int
    lr: float
    loss: float


@dataclass(frozen=True)
class Epoch:
    """What one epoch did.

    Attributes:
        number: from 1.
        lr: learning rate after it.
        loss: mean over its steps.
        accuracy: share of the test images that are right; of the averaged weights where there are such.
        test_loss: mean cross-entropy of the test images.
        images_per_s: in training.
        seconds: with the test.
        raw_accuracy: of the weights themselves, where others are tested.
    """

    number: int
    lr: float
    loss: float
    accuracy: float
    test_loss: float
    images_per_s: float
    seconds: float
    raw_accuracy: float | None = None


@dataclass(frozen=True)
class Nested:
    """What one of the nested widths of a model does after an epoch.

    Attributes:
        number: of the epoch, from 1.
        width: share of the hidden channels.
        accuracy: share of the test images that are right.
        test_loss: mean cross-entropy of the test images.
    """

    number: int
    width: float
    accuracy: float
    test_loss: float


@contextmanager
def storing(what: str, path: Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be written into one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{what} cannot be written to {path} ({reason}): make room or give another --out, then go on with --resume."
        ) from error


class CsvLog:
    """A CSV file that is complete after every row; the columns are the fields of ``row``, the first of them a number.

    Args:
        path: the file.
        row: a dataclass.
        keep: rows up to this number stay, later ones and a half-written one are removed; 0 begins anew.
    """

    def __init__(self, path: Path, row: type, keep: int = 0) -> None:
        self.path, names = path, [f.name for f in fields(row)]
        with storing("The log", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = _rows(path, names, keep) if keep else []
            atomic_write(path, "".join(",".join(cells) + "\r\n" for cells in (names, *rows)))
            self.file = path.open("a", newline="", encoding="utf-8")
        self.writer = csv.DictWriter(self.file, names)

    def write(self, row: Any) -> None:
        with storing("The log", self.path):
            self.writer.writerow(asdict(row))
            self.file.flush()

    def sync(self) -> None:
        """Wait until the rows are on the disk."""
        with storing("The log", self.path):
            os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def _rows(path: Path, names: list[str], keep: int) -> list[list[str]]:
    """Rows of ``path`` whose number is at most ``keep``."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) == len(names) and row[0].isdigit()]
    return [row for row in rows if int(row[0]) <= keep]


def read_log(path: Path, row: type) -> list[dict[str, float]]:
    """The rows of a log that `CsvLog` wrote, as numbers; empty cells are left out."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in line.items() if v} for line in csv.DictReader(file)]


class RunLogs:
    """All logs of one run; only the main process has any.

    Args:
        out: folder of the run.
        steps, epochs: how many of each stay from before.
        tensorboard: whether to write for TensorBoard too, where it is installed.
        nested: whether the model has several widths.
    """

    def __init__(self, out: Path, steps: int, epochs: int, tensorboard: bool, nested: bool = False) -> None:
        self.steps, self.epochs = CsvLog(out / STEPS, Step, steps), CsvLog(out / EPOCHS, Epoch, epochs)
        self.nested = CsvLog(out / NESTED, Nested, epochs) if nested else None
        self.board = _board(out / TENSORBOARD, steps) if tensorboard and available("tensorboard") else None

    def step(self, row: Step) -> None:
        self.steps.write(row)
        self._scalars({"train/loss": row.loss, "train/lr": row.lr}, row.step)

    def epoch(self, row: Epoch, step: int, nested: Sequence[Nested] = ()) -> None:
        if self.nested is not None:
            for width in nested:
                self.nested.write(width)
            self._scalars({f"test/accuracy at width {n.width:g}": n.accuracy for n in nested}, step)
        self.epochs.write(row)
        scores = {"test/accuracy": row.accuracy, "test/loss": row.test_loss, "train/images_per_s": row.images_per_s}
        self._scalars(scores, step)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def sync(self) -> None:
        for log in (self.steps, self.epochs, self.nested):
            if log is not None:
                log.sync()

    def close(self) -> None:
        for log in (self.steps, self.epochs, self.nested, self.board):
            if log is not None:
                log.close()


def _board(folder: Path, steps: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=steps + 1 if steps else None)
