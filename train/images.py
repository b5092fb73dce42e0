"""What a source of images is to the rest: numbered images with labels, read when they are asked for."""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

# what Pillow raises on files that are no images, or not whole
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class Images(ABC):
    """Images with labels, by number.

    Attributes:
        labels: of all images where they are known without reading them, else None.
    """

    labels: Sequence[int] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image, which may not be decoded yet, and its label; raises one of `UNREADABLE` where there is none."""

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        return f"image {index}"


@dataclass(frozen=True)
class Data:
    """What is trained on and what is tested with; ``classes`` names label 0, 1, ..."""

    train: Images
    test: Images
    classes: tuple[str, ...]


class ArrayImages(Images):
    """Images in memory: uint8 (N, H, W) or (N, H, W, 3), labels (N,)."""

    def __init__(self, arrays: np.ndarray, labels: Sequence[int]) -> None:
        self.arrays, self.labels = arrays, [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self.arrays)

    def read(self, index: int) -> tuple[Image.Image, int]:
        assert self.labels is not None
        return Image.fromarray(self.arrays[index]), self.labels[index]


class RenumberedImages(Images):
    """Images whose labels are another's: label i there is ``numbers[i]`` here."""

    def __init__(self, images: Images, numbers: Sequence[int]) -> None:
        self.images, self.numbers = images, numbers
        self.labels = None if images.labels is None else [numbers[label] for label in images.labels]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.images.read(index)
        return image, self.numbers[label]

    def name(self, index: int) -> str:
        return self.images.name(index)


class ReaderImages(Images):
    """Images through a reader of timm: a folder, a tar file, or a data set of the Hugging Face hub."""

    def __init__(self, reader: Any, labels: Sequence[int] | None = None) -> None:
        self.reader, self.labels = reader, labels

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int) -> tuple[Image.Image, int]:
        file, label = self.reader[index]
        with file:
            image = Image.open(file)
            image.load()
        return image, int(label)

    def name(self, index: int) -> str:
        return str(self.reader.filename(index, absolute=True))


class DatasetImages(Images):
    """Images of any map-style data set whose items are (PIL image, label), such as torchvision's."""

    def __init__(self, dataset: Any, labels: Sequence[int] | None = None) -> None:
        self.dataset, self.labels = dataset, labels

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.dataset[index]
        return image, int(label)
