"""What every command of `mixzoo` shares: errors as one sentence, output for people and for programs, common options."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from typer.core import TyperGroup

from .errors import MixzooError

FAILED, BAD_USAGE = 1, 2
PLAIN_WIDTH = 200  # columns of a table that goes to a file or a pipe
STEPS = "MIXZOO_STEPS"  # environment variable: a file that gets a line for each step, for whoever started this process


class Commands(TyperGroup):
    """The group that turns what goes wrong in a command into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MixzooError as error:
            if ctx.params.get("debug"):
                raise
            fail(str(error), BAD_USAGE if isinstance(error, LookupError | ValueError) else FAILED)
        except Exception as error:
            if ctx.params.get("debug") or _handled_by_typer(error):
                raise
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            fail(f"{what}\nThis is not an error that mixzoo foresaw: mixzoo --debug shows where it came from.", FAILED)


def _handled_by_typer(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, BrokenPipeError) or bool(names & {"ClickException", "Exit", "Abort"})


def fail(message: str, code: int) -> NoReturn:
    """Print ``message`` to standard error and end with ``code``."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]Error:[/] {escape(message)}")
    raise typer.Exit(code)


def show(what: RenderableType) -> None:
    """Print a table or a text to standard output, plain where that is no terminal."""
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False).print(what)


def show_json(value: Any) -> None:
    """Print ``value`` as JSON to standard output."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


@contextmanager
def progress(total: int | None = None) -> Iterator[Callable[[str], None]]:
    """Yield a function that tells what is being done next; nothing is drawn where standard error is no terminal."""
    console, told = Console(stderr=True), os.environ.get(STEPS)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=total)

        def step(text: str) -> None:
            bar.update(task, description=escape(text), advance=1)
            if told:
                with open(told, "a") as file:
                    file.write(f"{text}\n")

        yield step


def split(text: str) -> tuple[str, ...]:
    """The items of a list with commas, without spaces around them, none of them empty."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def numbers(text: str, option: str) -> tuple[int, ...]:
    """The whole numbers of a list with commas.

    Raises:
        BadParameter: an item is none; it names ``option``.
    """
    try:
        return tuple(int(item) for item in split(text))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of whole numbers, such as 14,28.", param_hint=option) from None


def _found(checkpoint: Path | None) -> Path | None:
    """The folder of a run that comes with the package, where its name is given."""
    from .trained import find_run

    return find_run(checkpoint) if checkpoint else None


def shares(text: str, option: str) -> tuple[float, ...]:
    """The numbers of a list with commas.

    Raises:
        BadParameter: an item is none, or there is no item; it names ``option``.
    """
    try:
        found = tuple(float(item) for item in split(text))
    except ValueError:
        found = ()
    if not found:
        raise typer.BadParameter(f"{text!r} is no list of numbers, such as 0.5 or 0.25,0.5,1.", param_hint=option)
    return found


Model = Annotated[str, typer.Argument(help="A model's name, as its paper has it.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        callback=_found,
        help="Weights: a file in official, timm or mixzoo form, a training run's folder, or one of the package's runs.",
    ),
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Use the published weights, downloading them once.")]
