"""What an example is made of, all of it from a manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any


@dataclass(frozen=True)
class Facts:
    """Of one file.

    Attributes:
        target: whose file it is.
        file: its name.
        input, output: names of its first tensors.
        batch, channels, height, width: of what it is given.
        num_classes: length of its output.
        preprocess: the content of preprocess.json.
        in_graph: whether the file normalises for itself.
        classes: name of the file with the classes; None where they are not known.
    """

    target: str
    file: str
    input: str
    output: str
    batch: int
    channels: int
    height: int
    width: int
    num_classes: int
    preprocess: Mapping[str, Any]
    in_graph: bool
    classes: str | None

    @property
    def weights(self) -> str:
        """Of ncnn: the file beside it."""
        return PurePath(self.file).with_suffix(".bin").name

    @property
    def model(self) -> str:
        """The file's name without its suffix."""
        return PurePath(self.file).stem

    def filled(self, text: str) -> str:
        """``text`` with this file's names and numbers in it."""
        mean, std = self.preprocess["mean"], self.preprocess["std"]
        zero, one = [0.0] * self.channels, [1.0] * self.channels
        words = {
            "FILE": self.file,
            "MODEL": self.model,
            "WEIGHTS": self.weights,
            "INPUT": self.input,
            "OUTPUT": self.output,
            "CHANNELS": str(self.channels),
            "HEIGHT": str(self.height),
            "WIDTH": str(self.width),
            "PIXELS": str(self.height * self.width),
            "CLASSES": str(self.num_classes),
            "MEAN_F": _list(zero if self.in_graph else mean, "f"),
            "STD_F": _list(one if self.in_graph else std, "f"),
            "MEAN": _list(zero if self.in_graph else mean),
            "STD": _list(one if self.in_graph else std),
        }
        return re.sub(rf"\b({'|'.join(words)})\b", lambda found: words[found[0]], text)


def _list(values: list[float], suffix: str = "") -> str:
    return ", ".join(f"{float(value):.8g}" + _point(value) + suffix for value in values)


def _point(value: float) -> str:
    """What makes a whole number one with a point, which C++, Swift and Kotlin mind."""
    return ".0" if float(value).is_integer() else ""


def facts_of(content: Mapping[str, Any], preprocess: Mapping[str, Any], classes: str | None) -> Facts:
    """Of the first file in a manifest that takes one image, or else of the first."""
    items = content["artifacts"]
    item = next((i for i in items if i["inputs"][0]["shape"][0] in (1, "batch")), items[0])
    image, output, check = item["inputs"][0], item["outputs"][0], item["checks"][0]
    batch, channels, height, width = image["shape"]
    return Facts(
        target=content["target"],
        file=item["file"],
        input=image["name"],
        output=output["name"],
        batch=batch if isinstance(batch, int) else 1,
        channels=channels,
        height=height if isinstance(height, int) else check["height"],
        width=width if isinstance(width, int) else check["width"],
        num_classes=output["shape"][-1],
        preprocess=preprocess,
        in_graph=bool(content["preprocess"]["in_graph"]),
        classes=classes,
    )
