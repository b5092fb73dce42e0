"""Neighborhood attention: the border rule against a loop, and every candidate against the reference with gradients."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from mixzoo.kernels.dispatch import Candidate
from mixzoo.kernels.neighborhood_attention import (
    NEIGHBORHOOD_ATTENTION_OP,
    bench_inputs,
    neighborhood_attention,
    neighborhood_attention_reference,
)
from mixzoo.kernels.neighborhood_bands import neighborhood_attention_banded
from mixzoo.kernels.neighborhood_gradient import neighborhood_attention_gradients
from mixzoo.kernels.neighborhood_tiles import choose_tile, tile_plan
from support import rel_err, tolerances
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CANDIDATES = {c.name: c for c in NEIGHBORHOOD_ATTENTION_OP.candidates}
CPU = [CANDIDATES["tiled"]]
TOLERANCE = tolerances()
CASES = (  # height, width, kernel, dilation: odd, non-dividing, as small as can be, one class, many tiles
    (7, 7, 7, 1), (9, 13, 3, 1), (9, 13, 3, 3), (15, 17, 7, 2), (11, 30, 5, 2), (31, 29, 9, 3), (40, 25, 13, 1),
    (5, 4, 1, 3), (14, 14, 7, 2), (33, 47, 3, 1),
)  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, c)))
SCALE = 0.3


def inputs(case: tuple[int, ...], batch: int, bias: bool, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and a bias table of two heads of 8, laid out as a projection of a map leaves them."""
    height, width, kernel, _ = case
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(3, batch, 2, 8, height, width, generator=generator, dtype=torch.float64)
    table = torch.randn(2, 2 * kernel - 1, 2 * kernel - 1, generator=generator, dtype=torch.float64)
    tensors = [*qkv.permute(0, 1, 2, 4, 5, 3), table][: 4 if bias else 3]
    return [t.to(dtype).requires_grad_() for t in tensors]


def reference(tensors: list[Tensor], case: tuple[int, ...]) -> Tensor:
    return neighborhood_attention_reference(*tensors[:3], *case[2:], SCALE, *tensors[3:])


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_the_reference_keeps_the_border_rule(case: tuple[int, ...]) -> None:
    """One query at a time, its window found by walking from a clipped start inside its residue class."""
    height, width, kernel, dilation = case
    tensors = [t.detach() for t in inputs(case, 1, True, torch.float64)]
    q, k, v = (t[0, 1] for t in tensors[:3])
    out = reference(tensors, case)[0, 1]

    def window(position: int, length: int) -> list[int]:
        members = list(range(position % dilation, length, dilation))
        start = min(max(members.index(position) - kernel // 2, 0), len(members) - kernel)
        return members[start : start + kernel]

    for y, x in itertools.product(range(height), range(width)):
        pairs = list(itertools.product(window(y, height), window(x, width)))
        offsets = [((a - y) // dilation + kernel - 1, (b - x) // dilation + kernel - 1) for a, b in pairs]
        logits = torch.stack([SCALE * q[y, x] @ k[a, b] for a, b in pairs])
        logits = logits + torch.stack([tensors[3][1][o] for o in offsets])
        wanted = logits.softmax(0) @ torch.stack([v[a, b] for a, b in pairs])
        assert torch.allclose(out[y, x], wanted, 1e-12, 1e-12)


@pytest.mark.parametrize("bias", (True, False), ids=("bias", "plain"))
@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("candidate", CPU, ids=lambda c: c.name)
@every_case
def test_outputs_and_gradients(case: tuple[int, ...], candidate: Candidate, batch: int, bias: bool) -> None:
    tensors = inputs(case, batch, bias, torch.float64)
    wanted = reference(tensors, case)
    out = candidate.run(*tensors[:3], *case[2:], SCALE, *tensors[3:])
    with torch.no_grad():
        alone = candidate.run(*tensors[:3], *case[2:], SCALE, *tensors[3:])
    assert rel_err(out, wanted) < TOLERANCE[torch.float64] and rel_err(alone, wanted) < TOLERANCE[torch.float64]
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    pairs = zip(
        torch.autograd.grad(out, tensors, upstream), torch.autograd.grad(wanted, tensors, upstream), strict=True
    )
    # a kernel of one weighs its only key by one: queries and keys have no gradient
    assert all((a - b).abs().max() <= 1e-11 * max(1.0, b.abs().max().item()) for a, b in pairs)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("candidate", CPU, ids=lambda c: c.name)
@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("case", CASES[2:6], ids=str)
def test_lower_precision(case: tuple[int, ...], batch: int, candidate: Candidate, dtype: torch.dtype) -> None:
    """Against the reference in float64 on the same rounded inputs, outputs and gradients."""
    tensors = inputs(case, batch, True, dtype)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    out, wanted = candidate.run(*tensors[:3], *case[2:], SCALE, tensors[3]), reference(exact, case)
    assert out.dtype == dtype and rel_err(out, wanted) < TOLERANCE[dtype]
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = torch.autograd.grad(out, tensors, upstream)
    for a, b in zip(found, torch.autograd.grad(wanted, exact, upstream.double()), strict=True):
        assert rel_err(a, b) < 2 * TOLERANCE[dtype]


def test_the_comparison_sees_a_wrong_window() -> None:
    """A window that is cut at the border, or one step off, is far outside the tolerance."""
    case = CASES[1]
    tensors = [t.detach() for t in inputs(case, 1, True, torch.float64)]
    moved = [tensors[0], *(t.roll(1, 3) for t in tensors[1:3]), tensors[3]]
    assert rel_err(reference(moved, case), reference(tensors, case)) > 0.1


@pytest.mark.parametrize("tile", ((1, 1), (2, 5), (16, 16)), ids=str)
@every_case
def test_any_tile_covers_the_map(case: tuple[int, ...], tile: tuple[int, int]) -> None:
    """Every position is a query once, in a tile that has the k x k keys of its window."""
    height, width, kernel, dilation = case
    plan = tile_plan((height, width), kernel, dilation, torch.device("cpu"), tile)
    assert torch.equal(plan.queries[plan.slots], torch.arange(height * width))
    met = plan.offsets.reshape(-1, plan.num_queries, plan.num_keys) < (2 * kernel - 1) ** 2
    assert bool((met.sum(2) == kernel**2).all()) and plan.masked == (not bool(met.all()))
    assert plan.keys.min() == 0 and plan.keys.max() == height * width - 1


def test_masks_do_not_grow_with_the_map() -> None:
    """Keys per query and masks stay as they are when the map grows: memory is linear in its positions."""
    small, large = (tile_plan((n, n), 7, 1, torch.device("cpu"), (4, 8)) for n in (32, 128))
    assert len(small.offsets) == len(large.offsets) and small.num_keys == large.num_keys
    assert large.num_tiles == 16 * small.num_tiles
    assert choose_tile((7, 7), 7, 1) == (7, 7) and not tile_plan((56, 56), 7, 8, torch.device("cpu")).masked


class Peak(TorchDispatchMode):
    """Records how many bytes of tensors that operators returned were alive at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage.nbytes() and storage.data_ptr() not in self.alive:
                self.alive[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage.data_ptr())
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def peak(run: Callable[..., Tensor], side: int, train: bool) -> int:
    args, kwargs = bench_inputs(side, 2)
    tensors = [t.requires_grad_(train) for t in args[:3]]
    with torch.set_grad_enabled(train), Peak() as mode:
        out = run(*tensors, *args[3:], **kwargs)
        if train:
            out.sum().backward()
    return mode.peak


@pytest.mark.parametrize("train", (False, True), ids=("inference", "training"))
def test_memory_is_linear_and_far_below_the_reference(train: bool) -> None:
    small, large = (peak(CANDIDATES["tiled"].run, side, train) for side in (28, 56))
    assert 1 < large / small < 4.5
    assert 4 * large < peak(neighborhood_attention_reference, 56, train)


def test_what_has_no_neighbourhood_is_refused() -> None:
    q = torch.zeros(1, 2, 8, 9, 4)
    for run in (neighborhood_attention, neighborhood_attention_reference):
        with pytest.raises(ValueError, match="8 x 9 map has no neighbourhoods of side 3 with dilation 3"):
            run(q, q, q, 3, 3, 1.0)
        for kernel, dilation in ((4, 1), (3, 0), (0, 1)):
            with pytest.raises(ValueError, match="odd side"):
                run(q, q, q, kernel, dilation, 1.0)
        with pytest.raises(ValueError, match="2k - 1"):
            run(q, q, q, 3, 1, 1.0, torch.zeros(2, 3, 3))


def test_the_choice_is_explained() -> None:
    args, kwargs = bench_inputs(14, 2)
    assert args[0].shape == (1, 2, 14, 14, 32)
    why = NEIGHBORHOOD_ATTENTION_OP.explain(*args, **kwargs)
    assert list(why) == ["natten", "triton", "tiled"] and why["tiled"] is None
    assert "not on cpu" in str(why["natten"]) and "not on cpu" in str(why["triton"])
    assert rel_err(neighborhood_attention(*args, **kwargs), neighborhood_attention_reference(*args, **kwargs)) < 1e-5


class Attend(torch.nn.Module):
    def forward(self, q: Tensor, bias: Tensor) -> Tensor:
        return neighborhood_attention(q, q * 2, q.flip(2), 3, 2, SCALE, bias)


def test_a_compiled_graph_has_one_node() -> None:
    """The fastest candidate runs inside, at any size, and gradients are those of the reference."""
    torch._dynamo.reset()
    compiled = torch.compile(Attend(), fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((9, 12), (7, 15)):
        q, bias = inputs((*size, 3, 2), 2, True, torch.float64)[::3]
        wanted = neighborhood_attention_reference(q, q * 2, q.flip(2), 3, 2, SCALE, bias)
        out = compiled(q, bias)
        assert rel_err(out, wanted) < TOLERANCE[torch.float64]
        found, right = (torch.autograd.grad(t.square().sum(), (q, bias)) for t in (out, wanted))
        assert all(rel_err(a, b) < TOLERANCE[torch.float64] for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("bias", (True, False), ids=("bias", "plain"))
def test_the_node_keeps_the_rules_of_operators(bias: bool) -> None:
    tensors = inputs((9, 7, 3, 2), 2, bias, torch.float64)
    args = (*tensors[:3], 3, 2, SCALE, tensors[3] if bias else None)
    torch.library.opcheck(torch.ops.mixzoo.neighborhood_attention_tiled.default, args)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("bias", (True, False), ids=("bias", "plain"))
@every_case
def test_recomputed_gradients(case: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    """Without a graph, a few tiles at a time, also where tiles repeat a query to be full."""
    tensors = inputs(case, 2, bias, dtype)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    wanted = reference(exact, case)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    plan = tile_plan(case[:2], *case[2:], torch.device("cpu"), (4, 3))
    with torch.no_grad():
        found = neighborhood_attention_gradients(upstream, *tensors[:3], plan, SCALE, *(tensors[3:] or [None]), step=5)
    assert (found[3] is None) == (not bias)
    limit = max(10 * TOLERANCE[dtype], 1e-11)
    for a, b in zip(found, torch.autograd.grad(wanted, exact, upstream.double()), strict=False):
        assert a.dtype == dtype and (a - b).abs().max() <= limit * max(1.0, b.abs().max().item())


def test_tensors_without_data_leave_no_plan_behind() -> None:
    """What a fake run would keep for the next call is of no use to a real one."""
    args, kwargs = bench_inputs(11, 2)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in args[:3]]
        assert neighborhood_attention(*fakes, *args[3:]).shape == args[0].shape
    assert neighborhood_attention(*args, **kwargs).isfinite().all()
    meta = [t.to("meta") for t in args[:3]]
    assert neighborhood_attention(*meta, *args[3:]).shape == args[0].shape


INTERPRETED = """
import torch
from test_kernel_neighborhood import CANDIDATES, CASES, SCALE, TOLERANCE, inputs, reference
from support import rel_err, tolerances
torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
assert torch.empty(3).isnan().all()
for index, dtype in ((0, torch.float16), (2, torch.float32), (3, torch.float32)):
    case = CASES[index]
    tensors = inputs(case, 2, index != 2, dtype)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    out = CANDIDATES["triton"].run(*tensors[:3], *case[2:], SCALE, *tensors[3:])
    wanted = reference(exact, case)
    assert out.dtype == dtype and rel_err(out, wanted) < TOLERANCE[dtype], (case, dtype)
    found = torch.autograd.grad(out.double().square().sum(), tensors)
    right = torch.autograd.grad(wanted.square().sum(), exact)
    assert all(rel_err(a, b) < 10 * TOLERANCE[dtype] for a, b in zip(found, right, strict=True)), (case, dtype)
print("passed")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_triton_kernel_interpreted() -> None:
    """On the CPU, one program after the other; not in bfloat16, which the interpreter multiplies wrongly."""
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "passed", done.stderr[-2000:]


def test_natten_gets_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """With (B, H, W, heads, D) in and out, by keyword, as `natten.functional.na2d` has it from 0.17 to 0.21."""
    functional = ModuleType("natten.functional")

    def na2d(query: Tensor, key: Tensor, value: Tensor, *, kernel_size: int, dilation: int, scale: float) -> Tensor:
        maps = (t.permute(0, 3, 1, 2, 4) for t in (query, key, value))
        return neighborhood_attention_reference(*maps, kernel_size, dilation, scale).permute(0, 2, 3, 1, 4)

    functional.na2d = na2d  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "natten", ModuleType("natten"))
    monkeypatch.setitem(sys.modules, "natten.functional", functional)
    case = CASES[4]
    tensors = inputs(case, 2, False, torch.float32)
    assert rel_err(CANDIDATES["natten"].run(*tensors, *case[2:], SCALE), reference(tensors, case)) < 1e-6


def test_an_exported_graph_takes_other_sizes() -> None:
    """One program for any batch and map: nothing of the size is a constant, and no tensor has more than five axes."""
    case = (9, 12, 3, 2)
    q, _, _, bias = (t.detach() for t in inputs(case, 2, True, torch.float64))
    dims = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=6), 3: torch.export.Dim("w", min=6)}
    program = torch.export.export(Attend(), (q, bias), dynamic_shapes=(dims, None))
    names = {str(n.target) for n in program.graph.nodes}
    assert not any("unfold" in n or "im2col" in n or "scaled_dot" in n for n in names)
    assert all(n.meta["val"].ndim <= 5 for n in program.graph.nodes if isinstance(n.meta.get("val"), Tensor))
    for size in ((9, 12), (7, 15), (20, 6)):
        other = inputs((*size, 3, 2), 3, False, torch.float64)[0].detach()
        assert rel_err(program.module()(other, bias), Attend()(other, bias)) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("size", [(7, 7), (14, 9), (15, 22), (28, 31), (56, 8)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_bands_of_exported_graphs_are_the_reference(size: tuple[int, int], kernel: int) -> None:
    q, k, v = torch.randn(3, 2, 2, *size, 8, dtype=torch.float64)
    bias = torch.randn(2, 2 * kernel - 1, 2 * kernel - 1, dtype=torch.float64)
    for table in (None, bias):
        expected = neighborhood_attention_reference(q, k, v, kernel, 1, 0.3, table)
        assert rel_err(neighborhood_attention_banded(q, k, v, kernel, 0.3, table), expected) < TOLERANCE[torch.float64]


@pytest.mark.parametrize(("size", "dilation"), [((14, 16), 2), ((28, 32), 4), ((15, 14), 2)])
def test_dilated_form_of_exported_graphs_is_the_reference(size: tuple[int, int], dilation: int) -> None:
    q, k, v = torch.randn(3, 2, 2, *size, 8, dtype=torch.float64)
    args = (q, k, v, 7, dilation, 0.3, torch.randn(2, 13, 13, dtype=torch.float64))
    exported = NEIGHBORHOOD_ATTENTION_OP.exported
    assert exported and rel_err(exported(*args), neighborhood_attention_reference(*args)) < TOLERANCE[torch.float64]
