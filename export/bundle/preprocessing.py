"""From a picture to the numbers that a file takes: said exactly, as timm does it for evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import ExportError
from ..shapes import Size

COLOURS = {1: "grey", 3: "RGB"}
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def preprocessing(config: Mapping[str, Any], size: Size, in_graph: bool) -> dict[str, Any]:
    """The content of preprocess.json.

    Args:
        config: timm's data configuration of the model: input_size, mean, std, interpolation, crop_pct, crop_mode.
        size: (height, width) that the file is given, pixels.
        in_graph: whether the file itself subtracts the mean and divides by the standard deviation.

    Raises:
        ExportError: images are prepared in a way that examples do not know.
    """
    channels, mode = config["input_size"][0], config.get("crop_mode") or "center"
    if channels not in COLOURS:
        raise ExportError(f"--bundle knows images of 1 or 3 channels, and the model takes {channels}: leave it out.")
    if mode not in ("center", "squash") or config["interpolation"] not in _INTERPOLATIONS:
        how = f"crop mode {mode!r}, interpolation {config['interpolation']!r}"
        raise ExportError(f"--bundle does not know how images are prepared here ({how}): leave it out.")
    scaled = [math.floor(side / config["crop_pct"]) for side in size]
    keeps_ratio = mode == "center"
    resize: dict[str, Any] = {"interpolation": config["interpolation"], "antialias": True, "keeps_ratio": keeps_ratio}
    if keeps_ratio and scaled[0] == scaled[1]:
        resize |= {"shorter_side": scaled[0], "longer_side": "rounded down"}
    elif keeps_ratio:
        resize |= {"covers": {"height": scaled[0], "width": scaled[1]}, "sides": "rounded to the nearest"}
    else:
        resize |= {"height": scaled[0], "width": scaled[1]}
    return {
        "colour": COLOURS[channels],
        "resize": resize,
        "crop": {"from": "center", "height": size[0], "width": size[1]},
        "scale": "values 0 to 255 divided by 255",
        "normalise": "in the file" if in_graph else "(x - mean) / std, per channel",
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "layout": "NCHW",
        "dtype": "float32",
    }
