"""Window attention against attention over all positions of the map that may see one another."""

from __future__ import annotations

import pytest
import torch
from mixzoo.kernels import windows
from mixzoo.kernels.window_attention import WINDOW_ATTENTION_OP, bench_inputs, window_attention
from mixzoo.kernels.windows import axis_codes, cyclic_shift, runs
from support import LARGE_LOGITS, rel_err, tolerances
from torch import Tensor

SDPA = WINDOW_ATTENTION_OP.candidates[0]
FORMS = {"reference": WINDOW_ATTENTION_OP.reference, "sdpa": SDPA.run}
HEADS, DIM = 2, 6
# batch, map, window, shift
CASES = (
    (1, (14, 14), (7, 7), (0, 0)),
    (3, (14, 14), (7, 7), (3, 3)),
    (1, (8, 10), (7, 7), (3, 3)),
    (3, (9, 23), (4, 3), (2, 1)),
    (1, (5, 12), (5, 4), (0, 2)),
    (3, (1, 6), (1, 4), (0, 2)),
    (1, (16, 7), (8, 7), (4, 0)),
    (1, (15, 13), (4, 4), (0, 0)),
)
TOLERANCE = tolerances(**LARGE_LOGITS)


def inputs(batch: int, size: tuple[int, int], window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """qkv and bias in float64 with values that make some logits large."""
    generator = torch.Generator().manual_seed(batch * 1000 + size[0] * 50 + size[1])
    count = window[0] * window[1]
    qkv = torch.randn(batch, 3 * HEADS * DIM, *size, generator=generator, dtype=torch.float64)
    return qkv * 2, torch.randn(HEADS, count, count, generator=generator, dtype=torch.float64)


def truth(qkv: Tensor, window: tuple[int, int], bias: Tensor | None, shift: tuple[int, int]) -> Tensor:
    """Softmax over all positions of the map; those of other windows are left out by minus infinity."""
    batch, _, height, width = qkv.shape
    q, k, v = qkv.flatten(2).unflatten(1, (3, HEADS, DIM)).transpose(3, 4).unbind(1)  # (B, heads, H * W, D)
    y = torch.arange(height).repeat_interleave(width) - shift[0]
    x = torch.arange(width).repeat(height) - shift[1]
    row, col = y.div(window[0], rounding_mode="floor"), x.div(window[1], rounding_mode="floor")
    inside = (y % window[0]) * window[1] + x % window[1]
    together = (row[:, None] == row) & (col[:, None] == col)
    logits = q @ k.transpose(2, 3) * DIM**-0.5
    if bias is not None:
        logits = logits + bias[:, inside[:, None], inside]
    out = logits.masked_fill(~together, -torch.inf).softmax(-1) @ v
    return out.transpose(2, 3).reshape(batch, HEADS * DIM, height, width)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_outputs(form: str, case: tuple, dtype: torch.dtype) -> None:  # type: ignore[type-arg]
    batch, size, window, shift = case
    qkv, bias = (t.to(dtype) for t in inputs(batch, size, window))
    expected = truth(qkv.double(), window, bias.double(), shift)
    for memory in (torch.contiguous_format, torch.channels_last):
        out = FORMS[form](qkv.contiguous(memory_format=memory), HEADS, window, DIM**-0.5, bias, shift)
        assert out.shape == (batch, HEADS * DIM, *size) and out.dtype == dtype
        assert rel_err(out, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: str, case: tuple, dtype: torch.dtype) -> None:  # type: ignore[type-arg]
    batch, size, window, shift = case
    tensors = [t.to(dtype).requires_grad_() for t in inputs(batch, size, window)]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    grad = torch.randn(batch, HEADS * DIM, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad(truth(exact[0], window, exact[1], shift), exact, grad)
    out = FORMS[form](tensors[0], HEADS, window, DIM**-0.5, tensors[1], shift)
    for found, wanted in zip(torch.autograd.grad(out, tensors, grad.to(dtype)), expected, strict=True):
        assert rel_err(found, wanted) <= 4 * TOLERANCE[dtype]


@pytest.mark.parametrize("form", FORMS)
def test_without_bias_and_what_would_be_wrong(form: str) -> None:
    qkv, bias = inputs(1, (14, 14), (7, 7))
    run = FORMS[form]
    assert rel_err(run(qkv, HEADS, (7, 7), DIM**-0.5, None, (3, 3)), truth(qkv, (7, 7), None, (3, 3))) < 1e-12
    shifted = truth(qkv, (7, 7), bias, (3, 3))
    assert rel_err(run(qkv, HEADS, (7, 7), DIM**-0.5, bias, (3, 2)), shifted) > 1e-2
    assert rel_err(run(qkv, HEADS, (7, 7), DIM**-0.5, bias.transpose(1, 2), (3, 3)), shifted) > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_padding_holds_nothing(form: str) -> None:
    """Values outside the map take no part: a map and its copy with rows cut away agree where windows are whole."""
    qkv, bias = inputs(1, (10, 14), (7, 7))
    cut = FORMS[form](qkv[:, :, :8], HEADS, (7, 7), DIM**-0.5, bias)
    assert rel_err(cut[:, :, :7], FORMS[form](qkv, HEADS, (7, 7), DIM**-0.5, bias)[:, :, :7]) < 1e-12


def test_reasons() -> None:
    qkv, bias = inputs(1, (14, 14), (7, 7))
    assert WINDOW_ATTENTION_OP.explain(qkv, HEADS, (7, 7), 1.0, bias) == {"sdpa": None}
    assert "few" in str(WINDOW_ATTENTION_OP.explain(qkv, HEADS, (7, 7), 1.0, bias, (3, 3))["sdpa"])
    assert "few" in str(WINDOW_ATTENTION_OP.explain(qkv[:, :, :9], HEADS, (7, 7), 1.0, bias)["sdpa"])
    large = torch.zeros(1, 96, 128, 128)
    assert SDPA.unsupported(large, 2, (7, 7), 1.0, bias, (3, 3)) is None
    assert "gradient" in str(SDPA.unsupported(qkv, HEADS, (7, 7), 1.0, bias.requires_grad_()))
    with torch.no_grad():
        assert SDPA.unsupported(qkv, HEADS, (7, 7), 1.0, bias) is None


def test_runs_are_the_codes() -> None:
    for length in range(1, 30):
        for window in (1, 3, 4, 7):
            for shift in range(window if length > window else 1):
                codes = axis_codes(length, window, shift)
                found = runs(length, window, shift)
                assert [f[0] for f in found[1:]] == [f[1] for f in found[:-1]]
                assert found[0][0] == 0 and found[-1][1] == len(codes) and len(found) <= 3
                for first, end, whole in found:
                    assert bool((codes[first:end] == codes[first]).all()) and whole == (not codes[first].any())


def test_shifts_come_back() -> None:
    x = torch.randn(2, 3, 5, 7)
    rolled = cyclic_shift(x, (2, 3))
    assert torch.equal(rolled, x.roll((-2, -3), (2, 3))) and torch.equal(cyclic_shift(rolled, (-2, -3)), x)


def test_bench_inputs_run() -> None:
    args, kwargs = bench_inputs(16, 4)
    assert window_attention(*args, **kwargs).shape == (1, 64, 16, 16)


class Windows(torch.nn.Module):
    def forward(self, qkv: Tensor, bias: Tensor) -> Tensor:
        return window_attention(qkv, HEADS, (4, 4), DIM**-0.5, bias, (2, 2))


def test_an_exported_graph_has_no_mask_for_each_window() -> None:
    qkv, bias = inputs(3, (32, 23), (4, 4))
    program = torch.export.export(Windows(), (qkv, bias))
    expected = truth(qkv, (4, 4), bias, (2, 2))
    assert rel_err(program.module()(qkv, bias), expected) < 1e-12
    assert rel_err(program.module()(qkv, bias.mT), expected) > 1e-2
    shapes = [node.meta["val"].shape for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    masks = [s for s in shapes if len(s) == 3 and tuple(s[1:]) == (16, 16) and s[0] > HEADS]
    assert not masks and max(map(len, shapes)) <= 5


def test_exported_partitions_have_four_axes_at_most() -> None:
    """More is nothing that ncnn takes."""

    class Partition(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            parts = windows.to_windows(x, (3, 4))
            return parts, windows.from_windows(parts + 1, (6, 8))

    x = torch.arange(2 * 5 * 6 * 8.0).reshape(2, 5, 6, 8)
    program = torch.export.export(Partition(), (x,))
    assert max(node.meta["val"].ndim for node in program.graph.nodes if node.op == "call_function") == 4
    for got, wanted in zip(program.module()(x), Partition()(x), strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(Partition()(x)[1], x + 1)
