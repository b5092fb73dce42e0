"""Reference outputs of the official implementations, and the tolerances that tests compare with."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mixzoo.zoo.fill import fill_array

GOLDEN = Path(__file__).parent / "golden"
PARITY = 1e-9  # float64, against the official implementations: summation order only
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}  # relative, between two forms of one model


@cache
def golden(family: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Descriptions and arrays ('<fixture>/<output>') of a family's fixtures."""
    with np.load(GOLDEN / f"{family}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(arrays.pop("index").tobytes()), arrays


def official_state(meta: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The official state dict of a fixture, filled by its rule, float64."""
    return {key: torch.from_numpy(np.asarray(fill_array(key, tuple(shape)))) for key, shape in meta["state"]}


def image(shape: tuple[int, ...] | list[int], seed: int = 0) -> torch.Tensor:
    """Standard normal images, float64; the fixtures' inputs where shape and seed are theirs."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)))


def rel_err(out: torch.Tensor, ref: torch.Tensor | np.ndarray) -> float:
    """max |out - ref| / max |ref|; infinite where anything is not finite."""
    reference = torch.as_tensor(ref).double()
    error = ((out.double() - reference).abs().max() / reference.abs().max()).item()
    return error if np.isfinite(error) else float("inf")
