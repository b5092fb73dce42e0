"""Reads and builds the configs for mmdetection and mmsegmentation, as fast as tests want it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from mixzoo.configs import dense_configs
from mixzoo.zoo.openmmlab import ALL_MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

FILES = dense_configs()
NAMES = sorted(FILES, key=lambda name: str(FILES[name]))
PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "golden" / "dense_configs.json").read_text()
)
_resolved = cache(Config._get_cfg_path)  # MMEngine searches its packages for every base of every file
_DRAWS = ("trunc_normal_", "normal_", "kaiming_uniform_", "uniform_")


def read(file: Path | str) -> Config:
    """A config with what it inherits."""
    found = Config.__dict__["_get_cfg_path"]
    Config._get_cfg_path = staticmethod(lambda path, own: _resolved(path, own) if "::" in path else found(path, own))
    try:
        return Config.fromfile(file)
    finally:
        Config._get_cfg_path = found


def scope(name: str) -> str:
    """The package that a config is for."""
    return FILES[name].parent.parent.name


def build(config: Config, name: str, device: str = "cpu") -> Any:
    """The detector or segmenter of a config, with the weights that it starts from or, on "meta", with none."""
    warnings.filterwarnings("ignore", category=UserWarning)
    init_default_scope(scope(name))
    with torch.device(device), undrawn() if device == "meta" else nullcontext():
        return ALL_MODELS.build(config.model)


@contextmanager
def undrawn() -> Iterator[None]:
    """Leaves out the initial weights, which take more time on "meta" than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        for draw in _DRAWS:
            patch.setattr(nn.init, draw, lambda tensor, *_, **__: tensor)
        yield


def families() -> list[str]:
    """The configs that hold a family's settings; the others name another model of the family."""
    return [name for name in NAMES if '_base_ = "./' not in FILES[name].read_text()]
