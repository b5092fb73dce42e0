"""What a training run shows while it works: a bar on a terminal, one plain line per epoch anywhere else."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class TrainProgress:
    """A context that is told of each step and each finished epoch.

    Args:
        console: where to write; a bar is drawn only if it is a terminal.
        epochs: number of epochs in the run.
        steps: number of steps in an epoch.
        done: steps that were made before.
    """

    def __init__(self, console: Console, epochs: int, steps: int, done: int = 0) -> None:
        self.console = console
        self.epochs = epochs
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  test {task.fields[test]}  {task.fields[speed]:.0f} images/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(
            "train", total=epochs * steps, completed=done, epoch=1, epochs=epochs, loss=0.0, test="-", speed=0.0
        )

    def __enter__(self) -> TrainProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def step(self, epoch: int, loss: float, speed: float) -> None:
        """One step of ``epoch`` (from 1) is done; ``loss`` and ``speed`` (images/s) are of the epoch so far."""
        self.bar.update(self.task, advance=1, epoch=epoch, loss=loss, speed=speed)

    def epoch(
        self, epoch: int, loss: float, accuracy: float, speed: float, seconds_left: float, nested: str = ""
    ) -> None:
        """``epoch`` (from 1) is done; ``accuracy`` is a share, ``nested`` tells those of narrower widths."""
        self.bar.update(self.task, test=f"{accuracy:.2%}")
        if not self.console.is_terminal:
            self.console.print(
                f"epoch {epoch}/{self.epochs}  loss {loss:.4f}  test accuracy {accuracy:.2%}{nested}  "
                f"{speed:.0f} images/s  {seconds_left:.0f} s left",
                highlight=False,
            )
