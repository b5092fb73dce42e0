"""Softmax attention: the reference against the equation written out, candidates against it, outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mixzoo.kernels.attention import ATTENTION_OP, attention, attention_reference, bench_inputs
from support import LARGE_LOGITS, rel_err, tolerances
from torch import Tensor

FORMS: dict[str, Callable[..., Tensor]] = {"reference": attention_reference} | {
    c.name: c.run for c in ATTENTION_OP.candidates
}
CANDIDATES = {c.name: c for c in ATTENTION_OP.candidates}
# leading axes, queries, keys, channels, channels of the values
CASES = (
    ((1, 2), 49, 49, 8, 8),
    ((3, 1), 35, 17, 5, 5),
    ((3, 4), 1, 7, 4, 4),
    ((1, 2), 6, 1, 3, 3),
    ((3,), 35, 9, 5, 7),
    ((1,), 14, 31, 8, 4),
    ((), 9, 5, 4, 6),
)
TOLERANCE = tolerances(**LARGE_LOGITS)
Case = tuple[tuple[int, ...], int, int, int, int]
every_form = pytest.mark.parametrize("form", FORMS)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
SCALE = 0.6


def inputs(case: Case, dtype: torch.dtype, with_bias: bool) -> list[Tensor]:
    """q, k, v, and a bias that broadcasts over the first axis."""
    lead, n, m, d, e = case
    generator = torch.Generator().manual_seed(n + m)
    shapes = [(*lead, n, d), (*lead, m, d), (*lead, m, e), (*lead[1:], n, m)]
    made = [1.5 * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes[: 4 if with_bias else 3]]
    return [t.to(dtype).requires_grad_() for t in made]


def truth(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    logits = torch.einsum("...nd,...md->...nm", q, k) * SCALE
    weights = torch.exp(logits if bias is None else logits + bias)
    return torch.einsum("...nm,...me->...ne", weights / weights.sum(-1, keepdim=True), v)


@pytest.mark.parametrize("with_bias", (False, True), ids=("plain", "bias"))
@every_dtype
@every_case
@every_form
def test_outputs_and_gradients(form: str, case: Case, dtype: torch.dtype, with_bias: bool) -> None:
    q, k, v, *bias = inputs(case, dtype, with_bias)
    if form != "reference" and (reason := CANDIDATES[form].unsupported(q, k, v, SCALE, *bias)):
        assert "axes" in reason or "width" in reason or "overflow" in reason
        return
    exact = [t.detach().double().requires_grad_() for t in (q, k, v, *bias)]
    expected, out = truth(*exact), FORMS[form](q, k, v, SCALE, *bias)
    assert out.dtype == dtype and out.shape == expected.shape and rel_err(out, expected) <= TOLERANCE[dtype]
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, exact, grad)
    least = max(want.abs().max().item() for want in wanted) / 10  # one key leaves no choice: terms that cancel
    for got, want in zip(torch.autograd.grad(out, (q, k, v, *bias), grad.to(dtype)), wanted, strict=True):
        bound = 4 * TOLERANCE[dtype] * max(want.abs().max().item(), least)
        assert (got.double() - want).abs().max().item() <= bound


def test_what_would_be_wrong_is_seen() -> None:
    q, k, v, bias = inputs(CASES[0], torch.float64, True)
    expected = truth(q, k, v, bias)
    for form in ("reference", "sdpa"):
        assert rel_err(FORMS[form](q, k, v, SCALE), expected) > 1e-2
        assert rel_err(FORMS[form](q, k, v, 2 * SCALE, bias), expected) > 1e-2
        assert rel_err(FORMS[form](q, k, v, SCALE, bias.mT), expected) > 1e-2


def test_reasons() -> None:
    q, k, v = (t.detach() for t in inputs(CASES[0], torch.float32, False))
    assert ATTENTION_OP.explain(q, k, v, SCALE)["sdpa"] is None
    assert "not 4 axes" in str(ATTENTION_OP.explain(q, k, v, SCALE)["baddbmm"])
    assert "not 3 axes" in str(ATTENTION_OP.explain(q[0], k[0], v[0], SCALE)["sdpa"])
    assert ATTENTION_OP.explain(q[0], k[0], v[0], SCALE)["baddbmm"] is None
    assert "overflow" in str(ATTENTION_OP.explain(q[0].half(), k[0].half(), v[0].half(), SCALE)["baddbmm"])
    assert "width 4" in str(ATTENTION_OP.explain(q, k, v[..., :4], SCALE)["sdpa"])
    assert "adjacent" in str(ATTENTION_OP.explain(q.mT.contiguous().mT, k, v, SCALE)["sdpa"])
    args, kwargs = bench_inputs(14, 2)
    assert attention(*args, **kwargs).shape == (1, 2, 196, 32)
