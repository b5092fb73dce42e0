"""Writing a bundle beside the files of an export."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ExportError
from ..prepare import sha256
from . import native, python
from .facts import facts_of
from .preprocessing import preprocessing

CLASSES, PREPROCESS, PYTHON = "classes.txt", "preprocess.json", "example.py"
_IMAGENET = 1000


@dataclass(frozen=True)
class Bundle:
    """What a bundle needs beside what a manifest says.

    Attributes:
        config: timm's data configuration of the model.
        classes: their names, in the model's order; None where they are not known.
        classes_from: where they are from, or why there are none, in words.
    """

    config: Mapping[str, Any]
    classes: tuple[str, ...] | None
    classes_from: str


def class_names(
    given: str | Path | Sequence[str] | None, known: Sequence[str] | None, num_classes: int
) -> tuple[tuple[str, ...] | None, str]:
    """(names of the classes or None, where they are from or why there are none).

    Args:
        given: a file with a name a line, or names.
        known: those that the weights bring.
        num_classes: that the model tells apart.

    Raises:
        ExportError: a file that cannot be read, or names that are not as many as the model's classes.
    """
    if given is not None:
        names = _read(Path(given)) if isinstance(given, str | Path) else tuple(given)
        if len(names) != num_classes:
            raise ExportError(f"{len(names)} names of classes were given, and the model tells {num_classes} apart.")
        return names, f"file {Path(given).name}" if isinstance(given, str | Path) else "as given"
    if known and len(known) == num_classes:
        return tuple(map(str, known)), "the training of the weights"
    if num_classes == _IMAGENET:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        return tuple(info.index_to_description(i) for i in range(_IMAGENET)), "ImageNet-1k, since there are 1,000"
    return None, f"not known: name the model's {num_classes} classes with --classes FILE, a name a line"


def _read(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"--classes {path} cannot be read: {error}") from error


def write(folder: Path, content: Mapping[str, Any], bundle: Bundle) -> dict[str, Any]:
    """Write the bundle of the export in ``folder``, whose manifest has ``content``; give what the manifest says of it.

    Raises:
        ExportError: images are prepared in a way that examples do not know.
    """
    named = CLASSES if bundle.classes else None
    size = facts_of(content, {}, named)
    prepared = preprocessing(bundle.config, (size.height, size.width), size.in_graph)
    facts = facts_of(content, prepared, named)
    files = {PREPROCESS: json.dumps(prepared, indent=2) + "\n", PYTHON: python.example(facts)}
    files[python.PREPROCESS] = python.preprocess(facts)
    if bundle.classes:
        files[CLASSES] = "\n".join([*bundle.classes, ""])
    files |= dict(native.examples(facts))
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    listed = [
        {"file": name, "bytes": len(text.encode()), "sha256": sha256(folder / name)} for name, text in files.items()
    ]
    return {"example_of": facts.file, "classes_from": bundle.classes_from, "files": listed}
