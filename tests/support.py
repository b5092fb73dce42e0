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
# relative, between two forms of one model
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
ONE_OP = {torch.float64: 1e-3, torch.float32: 0.2}  # share of it for a single op, which has fewer sums in a row
LARGE_LOGITS = {"bfloat16": 3.0, "float16": 1.5}  # factors where plain operators round logits of ten before a softmax


def tolerances(**factors: float) -> dict[torch.dtype, float]:
    """Relative tolerances of an op by type, against float64 on the same rounded inputs.

    Args:
        factors: name of a type -> how many times more than others this op needs; say at the call why.
    """
    known = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}
    by_type = {known[name]: factor for name, factor in factors.items()}
    return {dtype: base * ONE_OP.get(dtype, 1.0) * by_type.get(dtype, 1.0) for dtype, base in TOLERANCE.items()}


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


def foreign(program: torch.export.ExportedProgram) -> list[str]:
    """What other runtimes lack in a graph: transforms, complex numbers, unfolding, tensors of more than five axes."""
    found = []
    for node in program.graph.nodes:
        values = node.meta.get("val")
        tensors = [v for v in (values if isinstance(values, tuple | list) else [values]) if isinstance(v, torch.Tensor)]
        named = any(word in str(node.target) for word in ("fft", "complex", "im2col", "unfold"))
        if named or any(t.is_complex() or t.ndim > 5 for t in tensors):
            found.append(f"{node.target}: {[tuple(t.shape) for t in tensors]}")
    return found


def rel_err(out: torch.Tensor, ref: torch.Tensor | np.ndarray) -> float:
    """max |out - ref| / max |ref|; infinite where anything is not finite."""
    reference = torch.as_tensor(ref).double()
    error = ((out.double() - reference).abs().max() / reference.abs().max()).item()
    return error if np.isfinite(error) else float("inf")
