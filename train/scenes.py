"""`mixzoo scenes`: a small data set for detectors and segmenters, made of real items on real photographs.

Items are those of Fashion-MNIST or scikit-learn's handwritten digits, backgrounds scikit-learn's two photographs or
those in a folder. What is trained on and what is tested on has no item in common, and no part of a photograph: the
former gets the left `TRAIN_SHARE` of each, the latter the rest. One folder serves two layouts:

    train/00000.jpg, val/00000.jpg        the pictures
    annotations/instances_train.json      COCO: boxes, areas and masks of what can be seen (uncompressed RLE)
    annotations/instances_val.json
    annotations/train/00000.png, .../val  mmsegmentation: the class of every pixel, 0 for the background
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..blocks.geometry import Size
from ..zoo.errors import MixzooError, UnknownNameError
from ..zoo.extras import require
from ..zoo.files import atomic_folder
from .images import UNREADABLE, ArrayImages, Images
from .placing import Scene, compose
from .schema import DataRecipe
from .sources import open_split

SOURCES = ("fashion_mnist", "digits")
SPLITS = {"train": "train", "val": "validation"}  # ours -> the source's
TRAIN_SHARE = 0.7  # of the width of a photograph
LEAST = 64  # pixels of the shorter side of a picture
QUALITY = 95  # of JPEG
_PHOTOGRAPHS = ("china.jpg", "flower.jpg")
_KINDS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class ScenesError(MixzooError, ValueError):
    """Scenes that cannot be made, or not where they should be."""


@dataclass(frozen=True)
class SceneSettings:
    """What is made.

    Attributes:
        train, val: numbers of pictures.
        size: of a picture, (height, width) in pixels.
        seed: everything that is drawn follows from it; pictures have the same content however many there are.
        source: of `SOURCES`.
        root: folder of Fashion-MNIST's idx files.
        backgrounds: folder of photographs; scikit-learn's by default.
        classes: names of those whose items are taken, numbered in this order; all by default.
        most: greatest number of items in a picture; the least is 2.
    """

    train: int = 400
    val: int = 100
    size: Size = (160, 208)
    seed: int = 0
    source: str = "fashion_mnist"
    root: Path | None = None
    backgrounds: Path | None = None
    classes: tuple[str, ...] = ()
    most: int = 6


def make_scenes(out: str | Path, settings: SceneSettings) -> dict[str, dict[str, int]]:
    """Make the data set in the folder ``out``, which is there as a whole afterwards or not at all.

    Returns:
        Split -> class -> number of items.

    Raises:
        ScenesError: the folder exists, sizes or numbers that cannot be, or backgrounds that cannot be read.
        UnknownNameError: an unknown source or class.
        DataError: items that cannot be had.
        MissingExtraError: scikit-learn is needed, and not installed.
    """
    out = Path(out)
    _check(out, settings)
    photographs = _photographs(settings)
    opened = {split: _items(settings, split) for split in SPLITS}
    classes = opened["train"][1]
    with atomic_folder(out) as folder:
        return {
            split: _write_split(folder, split, images, [_part(p, split) for p in photographs], classes, settings)
            for split, (images, _) in opened.items()
        }


def _check(out: Path, settings: SceneSettings) -> None:
    if settings.source not in SOURCES:
        raise UnknownNameError("source", settings.source, SOURCES, f"There are {' and '.join(SOURCES)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ScenesError(f"{out} exists already: remove it, or give another --out.")
    if min(settings.size) < LEAST:
        size = "x".join(map(str, settings.size))
        raise ScenesError(f"Pictures of {size} are too small for items: give both sides at least {LEAST} pixels.")
    if min(settings.train, settings.val) < 1 or settings.most < 2:
        raise ScenesError("Scenes need a picture to train on, one to test on, and places for two items in each.")


def _items(settings: SceneSettings, split: str) -> tuple[Images, tuple[str, ...]]:
    """Items of the classes that are taken, and the names of these."""
    images, known = open_split(_recipe(settings), SPLITS[split])
    classes = settings.classes or tuple(known or ())
    for name in classes:
        if name not in (known or ()):
            raise UnknownNameError("class", name, known or (), f"There are {', '.join(known or ())}.")
    assert isinstance(images, ArrayImages) and images.labels is not None
    numbers = {list(known or ()).index(name): number for number, name in enumerate(classes)}
    taken = [place for place, label in enumerate(images.labels) if label in numbers]
    return ArrayImages(images.arrays[taken], [numbers[images.labels[place]] for place in taken]), classes


def _recipe(settings: SceneSettings) -> DataRecipe:
    root = None if settings.root is None else str(settings.root)
    if root and settings.source == "fashion_mnist" and not Path(root).expanduser().is_dir():
        raise ScenesError(f"{root} is no folder: give the one with Fashion-MNIST's idx files as --root.")
    return DataRecipe(source=settings.source, root=root, size=32, mean=(0.5,), std=(0.5,))


# backgrounds


def _photographs(settings: SceneSettings) -> list[Image.Image]:
    if settings.backgrounds is None:
        datasets = require("sklearn.datasets", extra="train")
        return [Image.fromarray(datasets.load_sample_image(name)) for name in _PHOTOGRAPHS]
    folder = settings.backgrounds.expanduser()
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _KINDS) if folder.is_dir() else []
    if not files:
        raise ScenesError(f"There are no photographs in {folder}: give a folder of JPEG or PNG files as --backgrounds.")
    return [_photograph(path) for path in files]


def _photograph(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            photograph = image.convert("RGB")
    except UNREADABLE as error:
        raise ScenesError(f"{path} is not an image that can be read ({error}): remove it.") from error
    if min(photograph.size) < LEAST:
        raise ScenesError(f"{path} is smaller than {LEAST}x{LEAST} pixels: remove it.")
    return photograph


def _part(photograph: Image.Image, split: str) -> Image.Image:
    """The part of a photograph that a split may show."""
    edge = round(TRAIN_SHARE * photograph.width)
    return photograph.crop((0, 0, edge, photograph.height) if split == "train" else (edge, 0, *photograph.size))


# writing


def _write_split(
    folder: Path,
    split: str,
    images: Images,
    photographs: list[Image.Image],
    classes: tuple[str, ...],
    settings: SceneSettings,
) -> dict[str, int]:
    """Write the pictures of a split and what is in them; returns class -> number of items."""
    (folder / split).mkdir()
    (folder / "annotations" / split).mkdir(parents=True)
    pictures: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number in range(getattr(settings, split)):
        draw = np.random.default_rng([settings.seed, list(SPLITS).index(split), number])
        scene = compose(images, photographs, settings.size, settings.most, draw)
        name = f"{number:05d}"
        Image.fromarray(scene.picture).save(folder / split / f"{name}.jpg", quality=QUALITY, subsampling=0)
        Image.fromarray(scene.classes()).save(folder / "annotations" / split / f"{name}.png")
        height, width = settings.size
        pictures.append({"id": number + 1, "file_name": f"{name}.jpg", "height": height, "width": width})
        found += _annotations(scene, number + 1, len(found) + 1)
    categories = [{"id": label, "name": name} for label, name in enumerate(classes, 1)]
    record = {"images": pictures, "annotations": found, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(record), encoding="utf-8")
    count = Counter(annotation["category_id"] for annotation in found)
    return {name: count[label] for label, name in enumerate(classes, 1)}


def _annotations(scene: Scene, picture: int, first: int) -> Iterator[dict[str, Any]]:
    """What COCO says of each item: boxes are (x, y, width, height) in pixels, areas those of what can be seen."""
    for number, item in enumerate(scene.items, first):
        rows, columns = (np.flatnonzero(item.mask.any(axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        yield {
            "id": number,
            "image_id": picture,
            "category_id": item.label + 1,
            "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
            "area": int(item.mask.sum()),
            "iscrowd": 0,
            "segmentation": {"size": list(item.mask.shape), "counts": run_lengths(item.mask)},
        }


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE of a mask (H, W): lengths of runs down the columns, the first of pixels outside it."""
    flat = np.concatenate(([False], mask.ravel(order="F")))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate(([0], edges, [mask.size]))).tolist()
