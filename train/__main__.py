"""``python -m mixzoo.train RECIPE [key=value ...] --out DIR`` trains what a recipe describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..zoo.errors import MixzooError
from .engine import train


def main(
    recipe: Annotated[str, typer.Argument(help="a recipe's name, or the path of a YAML file")],
    overrides: Annotated[list[str] | None, typer.Argument(help="changes to it, such as optim.lr=1e-3")] = None,
    out: Annotated[Path, typer.Option(help="folder for checkpoint, record and log")] = Path("runs/latest"),
) -> None:
    """Train a model from a recipe."""
    try:
        result = train(recipe, overrides or (), out)
    except MixzooError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]Error:[/] {escape(str(error))}")
        raise typer.Exit(1) from error
    typer.echo(f"test accuracy {result.accuracy:.2%} after {result.seconds:.0f} s: {result.checkpoint}")


if __name__ == "__main__":
    typer.run(main)
