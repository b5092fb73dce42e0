"""Folders of real images, to calibrate with and to measure accuracy on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes

from ..zoo.pictures import folder_name, preparation
from .errors import ExportError
from .prepare import Prepared
from .shapes import Size

CALIBRATED = 64  # images: ranges of activations hardly move with more


class FolderError(ExportError, ValueError):
    """A folder of images that cannot be used."""


@dataclass(frozen=True)
class ImageSet:
    """Image files of a folder.

    Attributes:
        folder: where they are.
        paths: the files.
        config: how timm prepares them for the model, but for their size.
        labels: class of each file; None where they are not known.
    """

    folder: Path
    paths: tuple[Path, ...]
    config: Mapping[str, Any]
    labels: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def images(self, size: Size) -> Iterator[Tensor]:
        """Every image as the model takes it at ``size``: float32 (1, C, H, W).

        Raises:
            ImageError: a file that is no image.
        """
        prepare = preparation({**self.config, "input_size": (self.config["input_size"][0], *size)})
        yield from (prepare(path)[None] for path in self.paths)

    def batches(self, size: Size, batch: int) -> Iterator[Tensor]:
        """The same, ``batch`` at a time (B, C, H, W); the last one may have fewer."""
        images = self.images(size)
        while some := list(islice(images, batch)):
            yield torch.cat(some)

    def spread(self, count: int) -> ImageSet:
        """At most ``count`` of them, evenly spread over the folder, so that every class has its share."""
        if len(self) <= count:
            return self
        picked = [len(self) * i // count for i in range(count)]
        labels = None if self.labels is None else tuple(self.labels[i] for i in picked)
        return ImageSet(self.folder, tuple(self.paths[i] for i in picked), self.config, labels)


def calibration_set(folder: str | Path, prepared: Prepared) -> ImageSet:
    """Images anywhere in ``folder``, `CALIBRATED` at most.

    Raises:
        FolderError: there is no such folder, or it holds fewer than two images.
    """
    folder = _existing(folder, "calibration")
    paths = tuple(sorted(path for path in folder.rglob("*") if _is_image(path)))
    if len(paths) < 2:
        raise FolderError(
            f"--calibration {folder} holds {len(paths)} images: give a folder with some dozens ({_KINDS})."
        )
    return ImageSet(folder, paths, data_config(prepared)).spread(CALIBRATED)


def labelled_set(folder: str | Path, prepared: Prepared, num_classes: int) -> ImageSet:
    """Images of ``folder``, which has a folder for each class.

    Classes are in the order of the model's own labels where it has them under the same names, else of their names, by
    number where all are whole numbers.

    Args:
        folder: of folders.
        prepared: the model.
        num_classes: that it tells apart.

    Raises:
        FolderError: there is no such folder, it has other classes than the model, or a class without images.
    """
    folder = _existing(folder, "labelled")
    names = _classes(folder, num_classes, prepared.config.get("label_names"))
    found = [(path, index) for index, name in enumerate(names) for path in _images_of(folder / name)]
    paths, labels = zip(*found, strict=True)
    return ImageSet(folder, paths, data_config(prepared), labels)


def _classes(folder: Path, num_classes: int, known: Any) -> list[str]:
    try:
        names = find_classes(folder)[0]
    except FileNotFoundError:
        raise FolderError(
            f"--labelled {folder} has no folders: put the images of each class in one of its own."
        ) from None
    if len(names) != num_classes:
        raise FolderError(
            f"--labelled {folder} has {len(names)} classes ({_some(names)}), but the model tells {num_classes} apart: "
            "give a folder for each of its classes, and no others."
        )
    known = [folder_name(str(name)) for name in known or ()]
    if known and set(known) != set(names):
        odd = sorted(set(names) - set(known))
        raise FolderError(f"--labelled {folder} has classes that the model was not trained on: {_some(odd)}.")
    return known if known else sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def _images_of(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if _is_image(path))
    if not paths:
        raise FolderError(f"{folder} holds no images ({_KINDS}): every class needs some.")
    return paths


_KINDS = ", ".join(extension.removeprefix(".") for extension in IMG_EXTENSIONS)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMG_EXTENSIONS and path.is_file()


def _existing(folder: str | Path, option: str) -> Path:
    if not Path(folder).is_dir():
        raise FolderError(f"--{option} {folder} is no folder: check the path.")
    return Path(folder)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def data_config(prepared: Prepared) -> dict[str, Any]:
    """How timm prepares images for the model; without normalisation where that is in the graph."""
    channels = prepared.in_chans
    mean, std = ((0.0,) * channels, (1.0,) * channels) if prepared.preprocess else (prepared.mean, prepared.std)
    config = resolve_data_config(pretrained_cfg=dict(prepared.config) or {"input_size": (channels, *prepared.native)})
    return {**config, "input_size": (channels, *prepared.native), "mean": mean, "std": std}
