"""What a finished run leaves behind: weights as safetensors, everything else in train.json."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor, nn

from ..blocks.elastic import without_statistics
from ..zoo.errors import CheckpointError
from ..zoo.files import atomic_dir
from ..zoo.machine import versions
from ..zoo.trained import RECORD, find_run, what_there_is
from .logs import storing
from .models import WEIGHTS, build_model
from .recipe import parse_recipe
from .schema import Recipe

STATISTICS = "statistics.safetensors"
_PACKAGES = ("mixzoo", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "scikit-learn")


@dataclass(frozen=True)
class Trained:
    """A model as a run left it (eval mode), with its recipe and the record of the run (train.json)."""

    model: nn.Module
    recipe: Recipe
    record: dict[str, Any]


def load_run(folder: str | Path) -> Trained:
    """The model that a run left in ``folder``, or that comes with the package under this name, in eval mode.

    Raises:
        CheckpointError: a file is missing, unreadable, or does not belong to the other.
    """
    folder = find_run(folder)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        weights = (folder / WEIGHTS).read_bytes()
        recipe, classes = parse_recipe(record["recipe"], str(folder / RECORD)), len(record["classes"])
        expected = record["weights"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} does not hold a finished training run ({type(error).__name__}: {error}): train again, or name "
            f"another ({what_there_is()})."
        ) from error
    if hashlib.sha256(weights).hexdigest() != expected:
        raise CheckpointError(f"{folder / WEIGHTS} is not the file that {RECORD} describes: train again.")
    model = build_model(recipe, classes, start=False)
    model.load_state_dict(load(weights))
    model.pretrained_cfg = {  # type: ignore[assignment]
        **model.pretrained_cfg,  # type: ignore[dict-item]
        "label_names": [str(name) for name in record["classes"]],
    }
    return Trained(model.eval(), recipe, record)


def save_run(out: Path, tensors: Mapping[str, Tensor], recipe: Recipe, facts: Mapping[str, Any]) -> None:
    """Write the weights and the record, ``facts`` among it, into ``out``; neither is seen half-written.

    Statistics that the norms of a model with nested widths have for the narrower ones are a file of their own.

    Raises:
        StorageError: they cannot be written.
    """
    plain, narrow = without_statistics(tensors)
    files = {"weights": (WEIGHTS, _packed(plain)), **({"statistics": (STATISTICS, _packed(narrow))} if narrow else {})}
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        **facts,
        **{what: {"file": name, "sha256": hashlib.sha256(data).hexdigest()} for what, (name, data) in files.items()},
        "versions": {"python": platform.python_version(), **versions(_PACKAGES)},
        "git": git_state(),
    }
    with storing("The result", out), atomic_dir(out) as folder:
        for name, data in files.values():
            (folder / name).write_bytes(data)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})


def load_statistics(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the norms of the run in ``folder`` have for its narrower widths; empty where it has no such norms.

    Raises:
        CheckpointError: the file is missing, or not the one that the record describes.
    """
    if "statistics" not in record:
        return {}
    path = folder / STATISTICS
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != record["statistics"]["sha256"]:
        raise CheckpointError(f"{path} is not the file that {RECORD} describes: train again.")
    return load(data)


def git_state() -> dict[str, Any] | None:
    """Commit of mixzoo's own source tree, and whether files differ from it; None where it is not in a repository."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return None
