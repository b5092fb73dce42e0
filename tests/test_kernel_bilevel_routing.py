"""Bi-level routing attention against softmax over the whole map with all but the routed regions left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interpreter import needs_triton, run_interpreted
from mixzoo.kernels import bilevel_routing_attention as module
from mixzoo.kernels.bilevel_routing_attention import BILEVEL_ROUTING_ATTENTION_OP as OP
from mixzoo.kernels.bilevel_routing_attention import bench_inputs, bilevel_routing_attention, routed_regions
from support import LARGE_LOGITS, rel_err, tolerances
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CANDIDATES = {c.name: c for c in OP.candidates}
FORMS = {"reference": OP.reference, "exported": OP.exported, "tiled": CANDIDATES["tiled"].run}
HEADS, DIM, SCALE = 2, 6, 0.4
# batch, map, region, topk
CASES = (
    (1, (14, 14), (2, 2), 4),
    (3, (8, 12), (4, 4), 1),
    (1, (9, 13), (4, 3), 2),
    (3, (7, 5), (2, 3), 3),
    (1, (15, 4), (1, 4), 16),
    (3, (6, 6), (3, 2), None),
    (1, (1, 7), (1, 1), 3),
    (1, (5, 9), (5, 9), 1),
)
TOLERANCE = tolerances(**LARGE_LOGITS | {"float16": 2.5})  # logits of thirty
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
every_case = pytest.mark.parametrize("case", CASES, ids=str)
Case = tuple[int, tuple[int, int], tuple[int, int], int | None]


def inputs(batch: int, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and values (B, C, H, W) with means that differ between regions."""
    generator = torch.Generator().manual_seed(batch * 1000 + size[0] * 50 + size[1])
    x = torch.randn(3, batch, HEADS * DIM, *size, generator=generator, dtype=torch.float64) + 0.5
    return [t.to(dtype) for t in 2 * x]


def truth(
    q: Tensor, k: Tensor, v: Tensor, region: tuple[int, int], topk: int | None, routes: Tensor | None = None
) -> Tensor:
    """The definition over all positions of the padded map, query by query; ``routes`` overrides the routing."""
    size, (h, w) = q.shape[2:], region
    down, across = -size[0] % h, -size[1] % w
    mean = [F.avg_pool2d(x, region, ceil_mode=True, count_include_pad=False).flatten(2) for x in (q, k)]
    scores = mean[0].transpose(1, 2) @ mean[1]  # (B, R, R)
    if routes is None:
        routes = scores.topk(min(topk or scores.shape[2], scores.shape[2])).indices
    chosen = torch.zeros_like(scores).scatter(2, routes, 1.0)
    q, k, v = (F.pad(x, (0, across, 0, down)) for x in (q, k, v))
    batch, _, height, width = q.shape
    y, x = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    home = (y // h) * (width // w) + x // w
    seen = chosen[:, home][:, :, home].bool()  # (B, N, N)
    q, k, v = (t.flatten(2).unflatten(1, (HEADS, DIM)).transpose(2, 3) for t in (q, k, v))
    logits = (q @ k.transpose(2, 3) * SCALE).masked_fill(~seen[:, None], -torch.inf)
    out = (logits.softmax(-1) @ v).transpose(2, 3).reshape(batch, HEADS * DIM, height, width)
    return out[:, :, : size[0], : size[1]]


@every_dtype
@every_case
@pytest.mark.parametrize("form", FORMS)
def test_outputs(form: str, case: Case, dtype: torch.dtype) -> None:
    batch, size, region, topk = case
    q, k, v = inputs(batch, size, dtype)
    expected = truth(q.double(), k.double(), v.double(), region, topk)
    for memory in (torch.contiguous_format, torch.channels_last):
        maps = torch.cat((q, k, v), 1).contiguous(memory_format=memory).chunk(3, 1)  # as a projection gives them
        out = FORMS[form](*maps, region, topk, HEADS, SCALE)  # type: ignore[misc]
        assert out.shape == (batch, HEADS * DIM, *size) and out.dtype == dtype
        assert rel_err(out, expected) <= TOLERANCE[dtype]


@every_dtype
@every_case
@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: str, case: Case, dtype: torch.dtype) -> None:
    batch, size, region, topk = case
    maps = [t.requires_grad_() for t in inputs(batch, size, dtype)]
    exact = [t.detach().double().requires_grad_() for t in maps]
    grad = torch.randn(batch, HEADS * DIM, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad(truth(*exact, region, topk), exact, grad)  # type: ignore[arg-type]
    out = FORMS[form](*maps, region, topk, HEADS, SCALE)  # type: ignore[misc]
    for found, wanted in zip(torch.autograd.grad(out, maps, grad.to(dtype)), expected, strict=True):
        assert rel_err(found, wanted) <= 4 * TOLERANCE[dtype]


@pytest.mark.parametrize("case", [c for c in CASES if c[3] is None or c[1] == c[2]], ids=str)
def test_everything_is_attended_to_without_gathering(case: Case) -> None:
    batch, size, region, topk = case
    for memory in (torch.contiguous_format, torch.channels_last):
        maps = [t.contiguous(memory_format=memory).requires_grad_() for t in inputs(batch, size)]
        assert (
            next(name for name, reason in OP.explain(*maps, region, topk, HEADS, SCALE).items() if not reason)
            == "whole"
        )
        out = bilevel_routing_attention(*maps, region, topk, HEADS, SCALE)
        expected = truth(*maps, region, topk)
        assert rel_err(out, expected) < 1e-12
        for found, wanted in zip(*(torch.autograd.grad(o.square().sum(), maps) for o in (out, expected)), strict=True):
            assert rel_err(found, wanted) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_what_would_be_wrong_is_seen(form: str) -> None:
    q, k, v = inputs(1, (14, 14))
    out = FORMS[form](q, k, v, (2, 2), 4, HEADS, SCALE)  # type: ignore[misc]
    routes = routed_regions(q, k, (2, 2), 4)
    assert routes.shape == (1, 49, 4) and rel_err(truth(q, k, v, (2, 2), 4, routes), out) < 1e-12
    routes[0, 20, 3] = next(r for r in range(49) if r not in routes[0, 20])
    assert rel_err(truth(q, k, v, (2, 2), 4, routes), out) > 1e-3
    assert rel_err(truth(q, k, v, (2, 2), 3), out) > 1e-3


@pytest.mark.parametrize("at_once", (1, 100, 1000))
def test_some_regions_at_a_time_are_the_same(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [t.requires_grad_() for t in inputs(3, (9, 13))]
    expected = OP.reference(*maps, (2, 3), 3, HEADS, SCALE)
    monkeypatch.setattr(module, "GATHERED_AT_ONCE", at_once)
    out = CANDIDATES["tiled"].run(*maps, (2, 3), 3, HEADS, SCALE)
    assert rel_err(out, expected) < 1e-12
    for found, wanted in zip(*(torch.autograd.grad(o.square().sum(), maps) for o in (out, expected)), strict=True):
        assert rel_err(found, wanted) < 1e-12


def test_routing_has_no_gradient_and_does_not_change_with_precision() -> None:
    maps = [t.requires_grad_() for t in inputs(1, (14, 14))]
    routes = routed_regions(maps[0], maps[1], (2, 2), 4)
    assert not routes.requires_grad
    half = [t.detach().to(torch.bfloat16) for t in maps[:2]]
    exact = routed_regions(half[0].double(), half[1].double(), (2, 2), 4)
    assert torch.equal(routed_regions(half[0], half[1], (2, 2), 4), exact)


def test_reasons() -> None:
    q, k, v = inputs(1, (14, 14))
    args: tuple[Any, ...] = ((2, 2), 4, HEADS, SCALE)
    assert OP.explain(q, k, v, *args)["tiled"] is None
    assert "4 of 49" in str(OP.explain(q, k, v, *args)["whole"])
    assert OP.explain(q, k, v, (2, 2), 50, HEADS, SCALE)["whole"] is None
    narrow = OP.explain(q, k, v[:, :6], *args)
    assert "width 6" in str(narrow["tiled"])
    assert bilevel_routing_attention(q, k, v[:, :6], *args).shape == (1, 6, 14, 14)


def triton_reason(device: str, dim: int = 32, dtype: torch.dtype = torch.float32) -> str | None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(1, dim, 14, 14, device=device, dtype=dtype)
        return OP.explain(q, q, q, (2, 2), 4, 1, 1.0)["triton"]


@needs_triton
def test_reasons_against_triton() -> None:
    assert "not on cpu" in str(triton_reason("cpu"))
    assert triton_reason("cuda") is None and triton_reason("cuda", dtype=torch.bfloat16) is None
    assert "wider than 128" in str(triton_reason("cuda", dim=160))
    assert "32 bits" in str(triton_reason("cuda", dtype=torch.float64))


@pytest.mark.slow
@needs_triton
def test_triton_interpreted() -> None:
    run_interpreted("bilevel_routing")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("topk", (1, 4, 16))
def test_triton_on_a_gpu(topk: int) -> None:
    qkv = torch.randn(2, 3 * 128, 28, 28, device="cuda").contiguous(memory_format=torch.channels_last)
    maps = [t.detach().requires_grad_() for t in qkv.chunk(3, 1)]
    exact = [t.detach().double().requires_grad_() for t in maps]
    out = CANDIDATES["triton"].run(*maps, (4, 4), topk, 4, SCALE)
    expected = OP.reference(*exact, (4, 4), topk, 4, SCALE)
    assert rel_err(out, expected) <= 1e-5
    wanted = torch.autograd.grad(expected.square().sum(), exact)
    for a, b in zip(torch.autograd.grad(out.square().sum(), maps), wanted, strict=True):
        assert rel_err(a, b) <= 1e-4


class Largest(TorchDispatchMode):
    """Records the elements of the largest tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_tensor_outgrows_the_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHERED_AT_ONCE", 1)
    found: dict[str, list[int]] = {"tiled": [], "reference": []}
    for side in (28, 56):
        maps = [torch.randn(1, 64, side, side).contiguous(memory_format=torch.channels_last) for _ in range(3)]
        for form, elements in found.items():
            with torch.no_grad(), Largest() as largest:
                FORMS[form](*maps, (side // 7, side // 7), 4, HEADS, SCALE)  # type: ignore[misc]
            elements.append(largest.elements)
    assert found["tiled"] == [64 * 28**2, 64 * 56**2]
    assert found["reference"][1] == HEADS * 4 * 64 * 56**2 > 8 * found["tiled"][1] // HEADS  # the logits


def test_bench_inputs_run() -> None:
    for side, topk in ((14, 16), (28, 4), (56, 1), (64, 1)):
        args, kwargs = bench_inputs(side, 4)
        assert args[4] == topk and bilevel_routing_attention(*args, **kwargs).shape == (1, 64, side, side)
