"""Runs that come with the package: small models trained on real images, each with the card that says how.

A run's name stands for its folder wherever a folder of a run is taken: in `--checkpoint`, `mixzoo eval`, a recipe's
``model.checkpoint`` and `mixzoo.train.load_run`. A folder of that name in the working directory comes first.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from .. import configs

RECORD, CARD = "train.json", "README.md"


def trained_runs() -> dict[str, Path]:
    """Name -> folder of every run that comes with the package."""
    home = Path(str(resources.files(configs) / "trained"))
    return {path.parent.name: path.parent for path in sorted(home.glob(f"*/{RECORD}"))}


def find_run(path: str | Path) -> Path:
    """The folder of the run that comes with the package under this name; any other path as it is."""
    path = Path(path)
    return path if path.exists() else trained_runs().get(str(path), path)


def what_there_is() -> str:
    """The names of these runs, for the error that a wrong one is."""
    return f"the package comes with {', '.join(trained_runs())}"
