"""Flow attention: the equation with all weights written out, candidates against the reference, half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mixzoo.kernels.flow_attention import (
    EPS,
    FLOW_ATTENTION_OP,
    bench_inputs,
    flow_attention,
    flow_attention_reference,
)
from support import rel_err, tolerances
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

TOLERANCE = tolerances()
GUARDS = (0.0, 1e-6)


def tokens(batch: int, heads: int, count: int, dim: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """q, k, v (B, heads, N, D) as views of maps, tokens adjacent in memory."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, batch, heads, dim, count, generator=generator, dtype=torch.float64)
    return [t.to(dtype).transpose(-2, -1).requires_grad_() for t in maps]


def weights(q: Tensor, k: Tensor, guard: float) -> Tensor:
    """The (N, M) matrix that the answers are ``weights @ v`` with, from the flow of every pair."""
    q, k = q.sigmoid(), k.sigmoid()
    n, m = q.shape[-2], k.shape[-2]

    def received(to: Tensor, rows: Tensor) -> Tensor:  # by every token of `to`, from all rows together
        return ((to + EPS) * (rows.sum(-2, keepdim=True) + EPS)).sum(-1) + guard

    incoming, outgoing = received(q, k), received(k, q)
    sink = received(q, k / outgoing[..., None])
    source = received(k, q / incoming[..., None]).clamp(-1, 1)
    pairs = (q @ k.transpose(-2, -1)) / incoming[..., None]
    return (sink * n / m).sigmoid()[..., None] * pairs * (m * source.softmax(-1))[..., None, :]


@pytest.mark.parametrize("guard", GUARDS)
def test_the_reference_is_the_equation(guard: float) -> None:
    q, k, v = tokens(2, 3, 35, 8, torch.float64)
    expected = weights(q, k, guard) @ v
    assert rel_err(flow_attention_reference(q, k, v, guard).detach(), expected.detach()) < 1e-12
    other = flow_attention_reference(q, k, v, 1e-3)
    assert rel_err(other.detach(), expected.detach()) > 1e-7


def test_fewer_keys_than_queries() -> None:
    q, _, _ = tokens(1, 2, 35, 8, torch.float64)
    _, k, v = tokens(1, 2, 6, 8, torch.float64, seed=1)
    for form in (flow_attention, flow_attention_reference):
        assert rel_err(form(q, k, v, 0.0).detach(), (weights(q, k, 0.0) @ v).detach()) < 1e-11


def test_flow_is_conserved() -> None:
    """Alike sources compete for nothing and share alike: what a query receives then is its gate times the value."""
    q, k, _ = tokens(1, 2, 35, 8, torch.float64)
    alike = k[..., :1, :].expand_as(k)
    gates = weights(q, alike, 0.0).sum(-1)
    constant = flow_attention_reference(q, alike, torch.ones_like(q), 0.0)
    assert torch.allclose(constant, gates[..., None].expand_as(constant))
    assert bool((gates > 0.5).all()) and bool((gates < 1).all())


def run(op: Callable[..., Tensor], inputs: list[Tensor], guard: float) -> list[Tensor]:
    out = op(*inputs, guard)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, probe)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(("batch", "size", "guard"), ((1, (1, 1), 0.0), (3, (5, 7), 1e-6), (2, (9, 31), 0.0)), ids=str)
def test_candidates_give_outputs_and_gradients(batch: int, size: Any, guard: float, dtype: torch.dtype) -> None:
    inputs = tokens(batch, 2, size[0] * size[1], 12, dtype)
    expected = run(flow_attention_reference, [t.detach().double().requires_grad_() for t in inputs], guard)
    for form in (flow_attention_reference, *(c.run for c in FLOW_ATTENTION_OP.candidates)):
        found = run(form, inputs, guard)
        assert all(f.dtype == dtype for f in found)
        bound = TOLERANCE[dtype] * max(want.abs().max().item() for want in expected)
        assert all((got - want).abs().max() <= bound for got, want in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_thousands_of_large_activations_stay_right(dtype: torch.dtype) -> None:
    q, k, v = (t.detach() for t in tokens(1, 2, 16384, 16, torch.float64))
    low = [t.to(dtype) for t in (q * 3e3, k * 3e3, (v * 3e3).clamp(-6e4, 6e4))]
    assert low[1].sigmoid().sum(-2).max() > 2048, "in half precision, a sum this large no longer sees single tokens"
    expected = flow_attention_reference(*(t.double() for t in low))
    for form in (flow_attention, flow_attention_reference):
        out = form(*low)
        assert out.dtype == dtype and rel_err(out, expected) < TOLERANCE[dtype]


def test_autocast_does_not_reach_the_sums() -> None:
    q, k, v = (t.detach() for t in tokens(1, 2, 3136, 16, torch.float32))
    expected = flow_attention(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow_attention(q, k, v), expected)


class Largest(TorchDispatchMode):
    """Records the most elements of any tensor that an operator returns."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.count = max(self.count, tensor.numel())
        return out


def test_memory_grows_with_tokens() -> None:
    for count in (400, 1600):
        with Largest() as mode:
            run(flow_attention, tokens(1, 2, count, 8, torch.float32), 0.0)
        assert mode.count <= 3 * 2 * count * 8


def test_explain_says_why() -> None:
    args, _ = bench_inputs(40, 2)
    assert FLOW_ATTENTION_OP.explain(*args)["channel_major"] is None
    assert "below 1200" in str(FLOW_ATTENTION_OP.explain(*bench_inputs(7, 2)[0])["channel_major"])
    by_channel = FLOW_ATTENTION_OP.explain(*(t.contiguous() for t in args))["channel_major"]
    assert by_channel is not None and "channels first" in by_channel
