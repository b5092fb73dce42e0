"""The Triton kernels of linear attention on the CPU: `test_kernel_fused_linear.py` runs this, interpreted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixzoo.blocks.rope import map_tables
from mixzoo.kernels.fused import linear_attention as fused
from mixzoo.kernels.linear_attention import (
    LINEAR_ATTENTION_OP,
    Kind,
    linear_attention_reference,
)
from support import tolerances
from torch import Tensor

TOLERANCE = tolerances(float32=5)  # powers of features, and a softmax over all tokens
TRITON = next(c.run for c in LINEAR_ATTENTION_OP.candidates if c.name == "triton")


@pytest.fixture(autouse=True)
def _scratch_holds_no_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "scratch", lambda like, *shape: torch.full(shape, float("nan")))
    monkeypatch.setattr(fused, "SPAN", 128)  # so that more than one program shares the keys


def tokens(batch: int, heads: int, count: int, dim: int, dtype: torch.dtype, kind: str, by_map: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, batch, heads, dim, count, generator=generator).to(dtype).transpose(-2, -1)
    q, k, v = maps if by_map else maps.contiguous()
    if kind == "given":
        q, k = q.abs(), k.abs()
    return [q, k, v]


CASES = ((1, 1, (1, 1), 12, True, True), (3, 2, (5, 7), 20, False, True), (1, 1, (14, 19), 16, True, False))
RUNS = [(kind, torch.float32, CASES[1:]) for kind in ("elu", "relu", "given", "inline", "mala", "l2vit")]
RUNS += [("rala", torch.float32, CASES)]
RUNS += [(kind, dtype, CASES[1:2]) for kind, dtype in (("mala", torch.float16), ("rala", torch.bfloat16))]


@pytest.mark.parametrize(("kind", "dtype", "cases"), RUNS, ids=str)
def test_kernels_give_outputs(kind: str, dtype: torch.dtype, cases: Any) -> None:
    for batch, heads, size, dim, rotated, by_map in cases:
        inputs = tokens(batch, heads, size[0] * size[1], dim, dtype, kind, by_map)
        rope = map_tables(dim, size, inputs[0]) if rotated else None
        exact = [t.double() for t in inputs]
        expected = linear_attention_reference(*exact, kind, None, map_tables(dim, size, exact[0]) if rotated else None)
        found = TRITON(*inputs, kind, None, rope)
        assert found.dtype == dtype and found.shape == expected.shape
        assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def test_every_elementwise_feature_map_and_other_key_counts() -> None:
    q, _, _ = tokens(2, 2, 35, 12, torch.float32, "elu", True)
    _, k, v = tokens(2, 2, 150, 12, torch.float32, "elu", True)
    for features in ("identity", "elu", "relu", "leaky_relu", "exp"):
        kind = Kind(features, "subtraction")
        expected = linear_attention_reference(q.double(), k.double(), v.double(), kind, 0.3)
        assert (TRITON(q, k, v, kind, 0.3) - expected).abs().max() <= TOLERANCE[torch.float32] * expected.abs().max()
