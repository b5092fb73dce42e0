"""Run by test_kernel_bilevel_routing.py in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixzoo.kernels.bilevel_routing_attention import BILEVEL_ROUTING_ATTENTION_OP as OP
from support import LARGE_LOGITS, rel_err, tolerances
from torch import Tensor

HEADS, DIM, SCALE = 2, 20, 0.3
TRITON = next(c for c in OP.candidates if c.name == "triton")
PLANES, TOKENS = torch.contiguous_format, torch.channels_last
TOLERANCE = tolerances(**LARGE_LOGITS)  # the interpreter has no products of bfloat16
# batch, map, region, topk, memory, dtype
CASES = (
    (1, (6, 6), (2, 2), 4, PLANES, torch.float32),
    (1, (9, 13), (4, 3), 2, TOKENS, torch.float32),
    (2, (7, 5), (4, 3), None, PLANES, torch.float32),
    (1, (10, 19), (9, 10), 2, TOKENS, torch.float32),
    (1, (8, 12), (4, 4), 1, TOKENS, torch.float16),
)


@pytest.fixture(autouse=True)
def nan_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel leaves unset would be seen."""
    empty = Tensor.new_empty

    def new_empty(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made = empty(self, *args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(Tensor, "new_empty", new_empty)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients(case: Any) -> None:
    batch, size, region, topk, memory, dtype = case
    generator = torch.Generator().manual_seed(size[0])
    qkv = torch.randn(batch, 3 * HEADS * DIM, *size, generator=generator).to(dtype)
    maps = [t.detach().requires_grad_() for t in qkv.contiguous(memory_format=memory).chunk(3, 1)]
    exact = [t.detach().double().requires_grad_() for t in maps]
    grad = torch.randn(batch, HEADS * DIM, *size, generator=generator).to(dtype)
    out = TRITON.run(*maps, region, topk, HEADS, SCALE)
    expected = OP.reference(*exact, region, topk, HEADS, SCALE)
    assert out.shape == expected.shape and out.dtype == dtype
    assert rel_err(out, expected) <= TOLERANCE[dtype]
    wanted = torch.autograd.grad(expected, exact, grad.double())
    for a, b in zip(torch.autograd.grad(out, maps, grad), wanted, strict=True):
        assert a.dtype == dtype and rel_err(a, b) <= 4 * TOLERANCE[dtype]


def test_another_scale_is_seen() -> None:
    maps = torch.randn(3, 1, HEADS * DIM, 6, 6, generator=torch.Generator().manual_seed(0)).unbind()
    out = TRITON.run(*maps, (2, 2), 4, HEADS, SCALE)
    assert rel_err(OP.reference(*maps, (2, 2), 4, HEADS, 1.1 * SCALE), out) > 1e-3
