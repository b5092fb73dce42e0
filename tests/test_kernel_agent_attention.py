"""Agent attention: every form against the two softmaxes written out with einsum, outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mixzoo.kernels.agent_attention import AGENT_ATTENTION_OP, agent_attention, bench_inputs
from support import LARGE_LOGITS, rel_err, tolerances
from torch import Tensor

FORMS: dict[str, Callable[..., Tensor]] = {"reference": AGENT_ATTENTION_OP.reference} | {
    c.name: c.run for c in AGENT_ATTENTION_OP.candidates
}
# batch, heads, queries, keys, agents, head channels
CASES = ((1, 2, 49, 49, 9, 8), (3, 1, 35, 35, 16, 5), (1, 3, 64, 65, 49, 4), (3, 2, 1, 7, 1, 8), (1, 2, 51, 51, 4, 8))
TOLERANCE = tolerances(**LARGE_LOGITS | {"float16": 2.5})  # two softmaxes in a row
every_form = pytest.mark.parametrize("form", FORMS)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))


def inputs(case: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, agents, bias_in, bias_out; biases one size for all samples."""
    b, h, n, m, a, d = case
    generator = torch.Generator().manual_seed(sum(case))
    shapes = ((b, h, n, d), (b, h, m, d), (b, h, m, d), (b, h, a, d), (h, a, m), (h, n, a))
    return [(1.5 * torch.randn(*s, generator=generator, dtype=torch.float64)).to(dtype) for s in shapes]


def truth(q: Tensor, k: Tensor, v: Tensor, agents: Tensor, bias_in: Tensor, bias_out: Tensor) -> Tensor:
    scale = q.shape[-1] ** -0.5
    gather = torch.softmax(torch.einsum("bhad,bhmd->bham", agents, k) * scale + bias_in, dim=3)
    read = torch.softmax(torch.einsum("bhnd,bhad->bhna", q, agents) * scale + bias_out, dim=3)
    return torch.einsum("bhna,bham,bhmd->bhnd", read, gather, v)


def run(form: str, tensors: list[Tensor]) -> Tensor:
    q, k, v, agents, bias_in, bias_out = tensors
    return FORMS[form](q, k, v, agents, q.shape[-1] ** -0.5, bias_in, bias_out)


@every_dtype
@every_case
@every_form
def test_outputs(form: str, case: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = inputs(case, dtype)
    expected = truth(*(t.double() for t in tensors))
    for strided in (False, True):  # as a map has heads: positions adjacent
        given = [t.mT.contiguous().mT if strided and t.ndim == 4 else t for t in tensors]
        out = run(form, given)
        assert out.dtype == dtype and out.shape == expected.shape and rel_err(out, expected) <= TOLERANCE[dtype]


@every_dtype
@every_case
@every_form
def test_gradients(form: str, case: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = [t.requires_grad_() for t in inputs(case, dtype)]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = truth(*exact)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad(run(form, tensors), tensors, grad.to(dtype))
    largest = torch.autograd.grad(expected, exact, grad)
    for gradient, wanted in zip(found, largest, strict=True):
        scale = max(wanted.abs().max().item(), 1e-3)  # one agent has no choice: its logits have no gradient
        assert (gradient.double() - wanted).abs().max().item() <= 6 * TOLERANCE[dtype] * scale


@every_form
def test_without_biases_and_what_would_be_wrong(form: str) -> None:
    q, k, v, agents, bias_in, bias_out = inputs(CASES[0], torch.float64)
    plain = truth(q, k, v, agents, torch.zeros_like(bias_in), torch.zeros_like(bias_out))
    assert rel_err(FORMS[form](q, k, v, agents, 8**-0.5), plain) < 1e-12
    assert rel_err(FORMS[form](q, k, v, agents, 8**-0.5, bias_in), plain) > 1e-2
    assert rel_err(FORMS[form](q, k, v, agents, 8**-0.5, None, bias_out), plain) > 1e-2
    assert rel_err(FORMS[form](k, q, v, agents, 8**-0.5), plain) > 1e-2


def test_reasons() -> None:
    def reasons(count: int, agents: int, strided: bool = False, grad: bool = False) -> dict[str, str | None]:
        q = torch.zeros(1, 4, count, 8)
        q = q.mT.contiguous().mT if strided else q
        bias = torch.zeros(4, count, agents, requires_grad=grad)
        return AGENT_ATTENTION_OP.explain(q, q, q, torch.zeros(1, 4, agents, 8), 1.0, None, bias)

    assert reasons(4000, 49)["sdpa"] is None
    assert "few" in str(reasons(4000, 9)["sdpa"])
    assert "adjacent" in str(reasons(4000, 49, strided=True)["sdpa"])
    assert "gradient" in str(reasons(4000, 49, grad=True)["sdpa"])
    assert reasons(100, 9)["channel_major"] is None and reasons(100, 49, strided=True)["channel_major"] is None
    assert "transposed" in str(reasons(100, 49)["channel_major"])


def test_bench_inputs_run() -> None:
    args, kwargs = bench_inputs(16, 4)
    assert agent_attention(*args, **kwargs).shape == (1, 4, 256, 16)
