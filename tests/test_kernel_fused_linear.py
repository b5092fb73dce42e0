"""Triton kernels of linear attention: interpreted on the CPU, on a GPU where there is one; why they are left out."""

from __future__ import annotations

import pytest
import torch
from interpreter import needs_triton, run_interpreted
from mixzoo.kernels.linear_attention import KINDS, LINEAR_ATTENTION_OP, linear_attention, linear_attention_reference
from support import TOLERANCE
from torch._subclasses.fake_tensor import FakeTensorMode


@needs_triton
def test_kernels_agree_with_the_reference_when_interpreted() -> None:
    run_interpreted("linear_attention")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_agree_with_the_reference_on_a_gpu(kind: str) -> None:
    q, k, v = torch.randn(3, 2, 4, 64, 3136, device="cuda", dtype=torch.bfloat16).transpose(-2, -1)
    if kind == "given":
        q, k = q.abs(), k.abs()
    expected = linear_attention_reference(q.double(), k.double(), v.double(), kind)
    assert (linear_attention(q, k, v, kind) - expected).abs().max() <= TOLERANCE[torch.bfloat16] * expected.abs().max()


def reason(
    device: str, heads: int = 2, dim: int = 16, dtype: torch.dtype = torch.float32, kind: str = "elu"
) -> str | None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(1, heads, 49, dim, device=device, dtype=dtype)
        return LINEAR_ATTENTION_OP.explain(q, q, q, kind)["triton"]


@needs_triton
def test_explain_says_why_triton_is_not_taken() -> None:
    assert "not on cpu" in (reason("cpu") or "")
    assert reason("cuda") is None and reason("cuda", dtype=torch.bfloat16) is None
    assert "128 channels" in (reason("cuda", dim=160) or "")
    assert "32 bits" in (reason("cuda", dtype=torch.float64) or "")
    assert "normalised" in (reason("cuda", kind="hedgehog") or "")
    assert "normalised" in (reason("cuda", kind="nala") or "") and reason("cuda", kind="l2vit") is None


@needs_triton
def test_training_is_not_done_by_triton() -> None:
    with FakeTensorMode():
        q = torch.empty(1, 2, 49, 16, device="cuda", requires_grad=True)
        assert "backward" in (LINEAR_ATTENTION_OP.explain(q, q, q, "elu")["triton"] or "")
        with torch.no_grad():
            assert LINEAR_ATTENTION_OP.explain(q, q, q, "elu")["triton"] is None
