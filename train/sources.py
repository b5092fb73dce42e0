"""Where images come from, by the name in a recipe's ``data.source``; whatever it is, `Data` comes out.

Before the first step the labels are looked at: a class without images, a label that no class has, and parts that do not
have the same classes are errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..zoo.errors import MixzooError
from ..zoo.extras import require
from .idx import find_idx, read_idx
from .images import ArrayImages, Data, DatasetImages, Images, ReaderImages
from .pixels import Split, digits
from .schema import READERS, TORCHVISION, DataRecipe
from .shards import ShardImages, find_shards

Part = tuple[Images, Sequence[str] | None]  # images, and the names of the classes where the source tells them
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_SYNONYMS = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "eval", "test")}


class DataError(MixzooError, ValueError):
    """Images that cannot be had, or labels that do not fit together."""


def load_data(recipe: DataRecipe) -> Data:
    """The images of a recipe's source, read later, with labels that were checked.

    Raises:
        DataError: they are not there, or their labels do not fit together.
        MissingExtraError: the package that brings the source is not installed.
    """
    train, names = open_split(recipe, recipe.train)
    test, test_names = open_split(recipe, recipe.test)
    classes = tuple(names or _numbered(train, recipe))
    if test_names and tuple(test_names) != classes:
        raise DataError(_unlike(recipe, classes, tuple(test_names)))
    check_labels(train, classes, f"{recipe.source} ({recipe.train})", all_classes=True)
    check_labels(test, classes, f"{recipe.source} ({recipe.test})")
    return Data(train, test, classes)


def open_split(recipe: DataRecipe, split: str) -> Part:
    """The images of one split, and the names of the classes where the source tells them; not checked."""
    prefix = next((p for p in READERS if recipe.source.startswith(p)), None)
    make = _TORCHVISION if recipe.source in TORCHVISION else _MAKERS[prefix or recipe.source]
    try:
        return make(recipe, split)
    except MixzooError:
        raise
    except (OSError, RuntimeError, AssertionError, ValueError, KeyError) as error:
        raise DataError(
            f"Cannot get the split {split!r} of {recipe.source!r} ({type(error).__name__}: {str(error).strip()}): "
            f"set data.root to a folder that holds it (now {recipe.root})."
        ) from error


def check_labels(images: Images, classes: Sequence[str], where: str, all_classes: bool = False) -> None:
    """Raise DataError where a label has no class, or, with ``all_classes``, a class no image."""
    if not len(images):
        raise DataError(f"There are no images in {where}: check data.root and the names of the splits.")
    if images.labels is None:
        return
    count = Counter(images.labels)
    for label in count:
        check_label(label, classes, f"an image of {where}")
    empty = [classes[label] for label in range(len(classes)) if not count[label]]
    if all_classes and empty:
        raise DataError(f"{where} has no images of {_some(empty)}: remove the class, or add images.")


def check_label(label: int, classes: Sequence[str], what: str) -> None:
    """Raise DataError where ``label`` is no class's."""
    if not 0 <= label < len(classes):
        raise DataError(
            f"The label of {what} is {label}, but there are {len(classes)} classes, from 0: correct the labels."
        )


def _numbered(train: Images, recipe: DataRecipe) -> list[str]:
    if train.labels is None:
        raise DataError(f"{recipe.source!r} does not tell its classes: use a source that does, such as folder.")
    return [str(number) for number in range(max(train.labels) + 1)]


def _unlike(recipe: DataRecipe, train: tuple[str, ...], test: tuple[str, ...]) -> str:
    only = {"train": sorted(set(train) - set(test)), "test": sorted(set(test) - set(train))}
    what = "; ".join(f"only in data.{part}: {_some(names)}" for part, names in only.items() if names)
    return (
        f"The splits {recipe.train!r} and {recipe.test!r} of {recipe.source!r} have other classes "
        f"({len(train)} and {len(test)}; {what or 'in another order'}): give both the same."
    )


def _some(names: Sequence[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(repr(n) for n in names[:count]) + more


# the sources


def _digits(recipe: DataRecipe, split: str) -> Part:
    data = digits()
    return _from_tensors(data.train if split == "train" else data.test), data.classes


def _from_tensors(split: Split) -> Images:
    arrays = (split.images[:, 0] * 255).round().to(torch.uint8).numpy()  # (N, H, W)
    return ArrayImages(np.ascontiguousarray(arrays), split.labels.tolist())


def _folder(recipe: DataRecipe, split: str) -> Part:
    from timm.data.readers import create_reader

    root = split_folder(_root(recipe), split)
    if root.is_dir():
        empty = [p.name for p in sorted(root.iterdir()) if p.is_dir() and not any(p.rglob("*.*"))]
        if empty:
            raise DataError(f"{root} has no images of {_some(empty)}: remove the folder, or add images.")
    reader = create_reader("", str(root))
    names = [name for name, _ in sorted(reader.class_to_idx.items(), key=lambda item: item[1])]
    return ReaderImages(
        reader, [int(label) for _, label in reader.samples] if hasattr(reader, "samples") else None
    ), names


def split_folder(root: Path, split: str) -> Path:
    """The folder or tar file of a split in ``root``, under its name or what it is often called instead."""
    names = next((names for names in _SYNONYMS.values() if split in names), (split,))
    for name in dict.fromkeys((split, *names)):
        for path in (root / name, root / f"{name}.tar"):
            if path.exists():
                return path
    raise DataError(f"{root} has no folder {split!r}: make one with a folder of images for each class.")


def _root(recipe: DataRecipe) -> Path:
    if recipe.root is None:
        raise DataError(
            f"{recipe.source!r} needs data.root: the folder that holds {recipe.train!r} and {recipe.test!r}."
        )
    root = Path(recipe.root).expanduser()
    if not root.exists():
        raise DataError(f"data.root is {recipe.root}, but there is no such folder.")
    return root


def _torchvision(recipe: DataRecipe, split: str) -> Part:
    if recipe.root and (files := find_idx(Path(recipe.root).expanduser(), split)):
        images, labels = (read_idx(path) for path in files)
        names = _FASHION if recipe.source == "fashion_mnist" else tuple("0123456789")
        return ArrayImages(images, labels.tolist()), names
    return _torch(recipe, split, recipe.source)


def _torch(recipe: DataRecipe, split: str, name: str = "") -> Part:
    from timm.data import create_dataset

    root = Path(recipe.root).expanduser() if recipe.root else Path(torch.hub.get_dir()) / "datasets"
    root.mkdir(parents=True, exist_ok=True)
    name = name or recipe.source.partition("/")[2]
    dataset: Any = create_dataset(f"torch/{name}", root=str(root), split=split, download=True)
    labels = getattr(dataset, "targets", None)
    return DatasetImages(dataset, None if labels is None else [int(label) for label in labels]), dataset.classes


def _hub(recipe: DataRecipe, split: str) -> Part:
    require("datasets", extra="hub")
    from timm.data.readers import create_reader

    reader = create_reader(recipe.source, recipe.root, split)
    names = [name for name, _ in sorted(reader.class_to_idx.items(), key=lambda item: item[1])]
    return ReaderImages(reader, list(reader.dataset[reader.label_key])), names or None


def _shards(recipe: DataRecipe, split: str) -> Part:
    root = _root(recipe)
    named = root / recipe.source.partition("/")[2]
    return ShardImages(find_shards(named if named.is_dir() else root, split)), None


def _tensorflow(recipe: DataRecipe, split: str) -> Part:
    tfds: Any = require("tensorflow_datasets", extra="tfds")
    name = recipe.source.partition("/")[2]
    source = tfds.data_source(name, split=split, data_dir=recipe.root, download=True)
    return DatasetImages(_Examples(source)), tuple(
        tfds.builder(name, data_dir=recipe.root).info.features["label"].names
    )


class _Examples:
    """A random-access source of TFDS as (PIL image, label)."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        example = self.source[index]
        array = example["image"]
        return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array), int(example["label"])


_TORCHVISION = _torchvision
_MAKERS: dict[str, Callable[[DataRecipe, str], Part]] = {
    "digits": _digits,
    "folder": _folder,
    "torch/": _torch,
    "hfds/": _hub,
    "wds/": _shards,
    "tfds/": _tensorflow,
}
