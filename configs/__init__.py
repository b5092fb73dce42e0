"""Settings that come with the package: recipes of its own training, and configs for mmdetection and mmsegmentation."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def dense_configs() -> dict[str, Path]:
    """Files of the configs with published settings for mmdetection and mmsegmentation, by their names.

    What several share lies in folders called ``_base_`` and is left out.
    """
    return {name: file for name, file in _configs().items() if file.parent.name != _SCENES}


def scene_configs() -> dict[str, Path]:
    """Files of the configs for what `mixzoo scenes` makes, by their names."""
    return {name: file for name, file in _configs().items() if file.parent.name == _SCENES}


_SCENES = "scenes"


def _configs() -> dict[str, Path]:
    files = (f for kind in ("mmdet", "mmseg") for f in _HERE.glob(f"{kind}/[a-z]*/*.py"))
    return {file.stem: file for file in sorted(files)}
