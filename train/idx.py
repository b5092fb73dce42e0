"""Files in the idx format of MNIST, plain or gzipped: a header with the shape, then bytes."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from ..zoo.errors import MixzooError

_SPLITS = {"train": "train", "validation": "t10k", "test": "t10k"}
UNSIGNED_BYTES = 8  # the code of the only kind that these data sets use


class IdxError(MixzooError, ValueError):
    """A file that is not what the idx format asks for."""


def find_idx(root: Path, split: str) -> tuple[Path, Path] | None:
    """The files with images and labels of ``split`` in ``root``; None where they are not there."""
    prefix = _SPLITS.get(split, split)
    images, labels = (_either(root, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    return (images, labels) if images and labels else None


def _either(root: Path, name: str) -> Path | None:
    return next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None)


def read_idx(path: Path) -> np.ndarray:
    """The array that a file holds, uint8.

    Raises:
        IdxError: it is cut short, or no such file.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, axes = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{axes}I", data, 4)
        if zeros or kind != UNSIGNED_BYTES:
            raise ValueError("its first bytes are others")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise IdxError(f"{path} is not a whole idx file of bytes ({error}): fetch it again.") from error
