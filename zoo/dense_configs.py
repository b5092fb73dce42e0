"""Finds the package's configs for mmdetection and mmsegmentation, without either of them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from ..configs import dense_configs, scene_configs
from .errors import UnknownNameError

_MODEL = re.compile(r"\bmodel=\"(\w+)\"")  # of a backbone; every config names its own


def find_config(name: str) -> Path:
    """The file of a config by its name, for ``mmengine.Config.fromfile`` and the scripts of both packages.

    Raises:
        UnknownNameError: no config has this name; the message has near ones.
    """
    files = dense_configs() | scene_configs()
    stem = name.removesuffix(".py")
    if stem not in files:
        raise UnknownNameError("config", name, files, "`mixzoo info MODEL` lists those of a model.")
    return files[stem]


def configs_for(model: str) -> list[str]:
    """Names of the configs whose backbone is ``model``."""
    return [name for name, backbone in _backbones().items() if backbone == model]


@cache
def _backbones() -> dict[str, str]:
    """The model of each config's backbone."""
    found = ((name, _MODEL.search(file.read_text(encoding="utf-8"))) for name, file in dense_configs().items())
    return {name: match[1] for name, match in found if match}
