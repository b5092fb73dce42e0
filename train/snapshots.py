"""What a run is resumed from: a folder for each saved step, complete or not there at all.

``checkpoints/step-00000120`` holds ``model.safetensors``, with averaged weights ``ema.safetensors``, ``state.pt`` (the
optimizer and the scaler of the gradients) and ``checkpoint.json``: the position in the run, and the SHA-256 of every
file. It is written under another name, brought to the disk, and then renamed. One that is damaged all the same is told
by its checksums, and the one before is used.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..zoo.files import atomic_folder, remove
from .logs import storing

FOLDER, MANIFEST, STATE = "checkpoints", "checkpoint.json", "state.pt"
Weights = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Snapshot:
    """One saved step: ``facts`` from its JSON, ``weights`` by name ("model", "ema"), ``state`` of the optimizer."""

    path: Path
    facts: dict[str, Any]
    weights: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class DamagedError(Exception):
    """A saved step that is not whole."""


def write_snapshot(out: Path, step: int, weights: Weights, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Save step ``step`` of the run in ``out``; when this returns it is on the disk.

    Raises:
        StorageError: it cannot be written. What was there before is as it was.
    """
    target = out / FOLDER / f"step-{step:08d}"
    contents = {f"{name}.safetensors": _packed(tensors) for name, tensors in weights.items()}
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    contents[STATE] = buffer.getvalue()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents[MANIFEST] = (json.dumps({**facts, "files": hashes}, indent=1) + "\n").encode()
    with storing(f"The checkpoint of step {step}", target), atomic_folder(target) as folder:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    return target


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})


def saved_steps(out: Path) -> list[Path]:
    """Folders of saved steps, newest first."""
    return sorted((out / FOLDER).glob("step-*"), reverse=True)


def latest_snapshot(out: Path, say: Callable[[str], object]) -> Snapshot | None:
    """The newest saved step that is whole, with a word through ``say`` on those that are not; None without any."""
    for path in saved_steps(out):
        try:
            return read_snapshot(path)
        except DamagedError as error:
            say(f"{path} is damaged and left out: {error}")
    return None


def read_snapshot(path: Path) -> Snapshot:
    """Read and check one saved step.

    Raises:
        DamagedError: a file is missing or not the one that was written.
    """
    try:
        facts = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        contents = {name: (path / name).read_bytes() for name in facts["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from error
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != facts["files"][name]:
            raise DamagedError(f"{name} is not what was written")
    weights = {name[: -len(".safetensors")]: load(c) for name, c in contents.items() if name.endswith(".safetensors")}
    state = torch.load(io.BytesIO(contents[STATE]), map_location="cpu", weights_only=True)
    return Snapshot(path, facts, weights, state)


def prune(out: Path, keep: int, better: Callable[[float, float], bool] | None) -> None:
    """Remove all saved steps but the newest ``keep`` and, where ``better`` compares two values, the best."""
    paths = saved_steps(out)
    kept = set(paths[:keep])
    scores = {path: score for path in paths if (score := _score(path)) is not None} if better else {}
    best: Path | None = None
    for path in scores:  # newest first: the newest of equals stays
        if best is None or (better and better(scores[path], scores[best])):
            best = path
    for path in paths:
        if path not in kept and path != best:
            remove(path)


def _score(path: Path) -> float | None:
    try:
        score = json.loads((path / MANIFEST).read_text(encoding="utf-8")).get("score")
        return None if score is None else float(score)
    except (OSError, ValueError):
        return None


def sweep(out: Path) -> None:
    """Remove what a run that was killed while it wrote has left."""
    for path in (out / FOLDER).glob(".step-*"):
        remove(path)


def discard(out: Path) -> None:
    """Remove every saved step of the run in ``out``."""
    remove(out / FOLDER)
