"""Image files as tensors, prepared the way a model's weights expect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from timm.data import create_transform
from torch import Tensor

from .errors import MixzooError


class ImageError(MixzooError, ValueError):
    """An image file that cannot be read."""


def folder_name(label: str) -> str:
    """What the folder with the images of a class is called: its name, without what cannot be in one of a folder."""
    return label.replace("/", "_")


def preparation(config: Mapping[str, Any]) -> Callable[[Path], Tensor]:
    """What reads an image file and gives float32 (C, H, W): resized, cropped and normalised for evaluation.

    Args:
        config: timm's data configuration (`timm.data.resolve_model_data_config`): input_size (C, H, W), mean, std,
            interpolation, crop_pct and crop_mode. One channel means grey.

    The function raises `ImageError` for a file that is missing or no image.
    """
    transform: Any = create_transform(**config, is_training=False)
    mode = "L" if config["input_size"][0] == 1 else "RGB"
    return lambda path: transform(_read(path, mode))


def _read(path: Path, mode: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except FileNotFoundError:
        raise ImageError(f"No image at {path}: check the path.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ImageError(f"{path} is not an image that can be read ({error}): save it as PNG or JPEG.") from None
