"""Images in WebDataset's shards: tar files in which ``key.jpg`` and ``key.cls`` are one example.

The shards are indexed once, by their headers alone, and then read at any place. So they are shuffled, resumed and split
among processes exactly as a folder is. They must be files here: streams from a network have no places.
"""

from __future__ import annotations

import glob
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..zoo.errors import MixzooError
from .images import Images

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_LABELS = (".cls",)


class ShardError(MixzooError, ValueError):
    """Shards that are missing, or hold no labelled images."""


@dataclass(frozen=True)
class _Member:
    """Bytes of one image inside a shard."""

    shard: Path
    name: str
    offset: int
    size: int


class ShardImages(Images):
    """The labelled images of tar files, in their order.

    Args:
        shards: the files.

    Raises:
        ShardError: a file is no tar file, or none holds a labelled image.
    """

    def __init__(self, shards: list[Path]) -> None:
        found = [example for shard in shards for example in _examples(shard)]
        if not found:
            raise ShardError(
                f"No image with a .cls file beside it in {len(shards)} shards: {', '.join(map(str, shards))}."
            )
        self.members = [member for member, _ in found]
        self.labels = [label for _, label in found]

    def __len__(self) -> int:
        return len(self.members)

    def read(self, index: int) -> tuple[Image.Image, int]:
        assert self.labels is not None
        member = self.members[index]
        with member.shard.open("rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
        return Image.open(io.BytesIO(data)), self.labels[index]

    def name(self, index: int) -> str:
        member = self.members[index]
        return f"{member.name} in {member.shard}"


def find_shards(root: Path, split: str) -> list[Path]:
    """Tar files of ``split`` in ``root``: in a folder of this name, else with it in their names, else matched by it.

    Braces with numbers are ranges, as in "train-{0000..0009}.tar".

    Raises:
        ShardError: there are none.
    """
    patterns = (f"{split}/*.tar", f"*{split}*.tar", *_expanded(split))
    for pattern in patterns[:2]:
        if found := sorted(root.glob(pattern)):
            return found
    found = sorted(p for pattern in patterns[2:] for n in glob.glob(str(root / pattern)) if (p := Path(n)).is_file())
    if not found:
        raise ShardError(
            f"No shards of the split {split!r} in {root}: there must be tar files with {split!r} in their names."
        )
    return found


def _expanded(pattern: str) -> list[str]:
    """The names that a range in braces stands for."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        return [pattern]
    width, numbers = len(match[1]), range(int(match[1]), int(match[2]) + 1)
    return [
        name for n in numbers for name in _expanded(f"{pattern[: match.start()]}{n:0{width}}{pattern[match.end() :]}")
    ]


def _examples(shard: Path) -> Iterator[tuple[_Member, int]]:
    """Images of one shard with their labels."""
    images, labels = {}, {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for item in tar:
                key, suffix = _key(item.name)
                if suffix in _IMAGES:
                    images[key] = _Member(shard, item.name, item.offset_data, item.size)
                elif suffix in _LABELS and (file := tar.extractfile(item)):
                    labels[key] = int(file.read())
    except (tarfile.TarError, OSError, ValueError) as error:
        raise ShardError(f"{shard} is not a whole shard ({error}): fetch it again.") from error
    yield from ((member, labels[key]) for key, member in images.items() if key in labels)


def _key(name: str) -> tuple[str, str]:
    """(key, suffix): WebDataset cuts at the first dot of the file's name."""
    folder, _, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return f"{folder}/{stem}", (dot + suffix).lower()
