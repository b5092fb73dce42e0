"""Softmax-free attention: every candidate against the reference, outputs and gradients, and the inverse by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from mixzoo.kernels import soft_attention as module
from mixzoo.kernels.soft_attention import (
    SOFT_ATTENTION_OP,
    bench_inputs,
    gaussian_kernel,
    landmark_inverse,
    newton_inverse,
    soft_attention,
    soft_attention_reference,
)
from support import rel_err, tolerances
from torch import Tensor

TOLERANCE = tolerances(float32=10)  # twenty Newton steps towards the inverse of what may be badly conditioned
SHAPES = (  # B, heads, N, M, D, E
    (1, 2, 49, 9, 8, 8),
    (3, 1, 50, 4, 4, 6),
    (1, 3, 131, 17, 8, 8),
    (2, 2, 7, 1, 5, 3),
)
CANDIDATES = {c.name: c for c in SOFT_ATTENTION_OP.candidates}
ON_CPU = ("tiled", "channel_major")
symmetric = pytest.mark.parametrize("symmetric", (False, True), ids=("soft", "soft++"))


def inputs(shape: tuple[int, ...], dtype: torch.dtype, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and values as a mixer hands them over, and landmarks among the queries."""
    batch, heads, n, m, d, e = shape
    generator = torch.Generator().manual_seed(n)
    q, v = (torch.randn(batch, heads, c, n, generator=generator).transpose(2, 3) for c in (d, e))
    landmarks = q[:, :, torch.arange(m) * n // m] + 0.1 * torch.randn(batch, heads, m, d, generator=generator)
    return tuple(t.to(dtype).requires_grad_(grad) for t in (q, landmarks, v))  # type: ignore[return-value]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of a few positions, and scratch memory that starts as NaN."""
    monkeypatch.setattr(module, "TILE", 64)
    monkeypatch.setattr(module, "WHOLE", 1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@symmetric
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.usefixtures("small_tiles")
def test_outputs(name: str, shape: tuple[int, ...], dtype: torch.dtype, symmetric: bool) -> None:
    args = inputs(shape, dtype)
    assert CANDIDATES[name].unsupported(*args) is None
    out = CANDIDATES[name].run(*args, symmetric)
    expected = soft_attention_reference(*args, symmetric)
    assert out.dtype == dtype and out.shape == expected.shape
    assert rel_err(out, expected) < TOLERANCE[dtype]
    exact = soft_attention_reference(*(t.double() for t in args), symmetric)
    assert rel_err(out, exact) < TOLERANCE[dtype]


@symmetric
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape: tuple[int, ...], dtype: torch.dtype, symmetric: bool) -> None:
    gradients = []
    for run in (soft_attention_reference, CANDIDATES["channel_major"].run):
        args = inputs(shape, dtype, grad=True)
        run(*args, symmetric).float().square().mean().backward()
        gradients.append([t.grad for t in args])
    for ours, expected in zip(*gradients, strict=True):
        assert rel_err(ours, expected) < 5 * TOLERANCE[dtype]


def test_the_reference_has_the_gradient_of_its_output() -> None:
    args = inputs((1, 2, 11, 4, 3, 3), torch.float64, grad=True)
    assert torch.autograd.gradcheck(lambda *a: soft_attention_reference(*a, True), args)


def test_the_kernel_is_that_of_gauss() -> None:
    a, b = torch.randn(2, 5, 3).double(), torch.randn(2, 4, 3).double()
    assert rel_err(gaussian_kernel(a, b), (-torch.cdist(a, b).square() / 2).exp()) < 1e-12
    far = gaussian_kernel(1e3 * a.float(), 1e3 * a.float())
    assert bool(far.isfinite().all()) and far.max() <= 1


@symmetric
def test_the_inverse_is_one_where_steps_suffice(symmetric: bool) -> None:
    points = torch.randn(2, 3, 12, 6).double()
    kernel = gaussian_kernel(points, points)
    root = kernel.sum(-1, keepdim=True).rsqrt()
    target = kernel / root / root.mT if symmetric else kernel + 0.01 * torch.eye(12)
    for newton in (newton_inverse, module._newton, module._batched_newton):
        inverse = landmark_inverse(kernel, symmetric, newton)
        assert rel_err(inverse @ target, torch.eye(12).expand_as(target)) < 1e-6


@pytest.mark.parametrize("count", (1, 2))
def test_few_landmarks_have_an_inverse_in_float32(count: int) -> None:
    points = torch.randn(1, 2, count, 6, generator=torch.Generator().manual_seed(1))
    kernel = gaussian_kernel(points, points)
    inverse = landmark_inverse(kernel, True, newton_inverse)
    root = kernel.sum(-1, keepdim=True).rsqrt()
    assert rel_err((inverse / root / root.mT) @ kernel, torch.eye(count).expand_as(kernel)) < 1e-4


def test_equal_landmarks_are_survived() -> None:
    kernel = torch.ones(1, 1, 5, 5, dtype=torch.float64)
    for newton in (newton_inverse, module._newton):
        inverse = landmark_inverse(kernel, True, newton)
        assert bool(inverse.isfinite().all()) and rel_err(kernel @ (5 * inverse) @ kernel, kernel) < 1e-9


@symmetric
def test_images_do_not_see_each_other(symmetric: bool) -> None:
    q, landmarks, v = inputs((3, 2, 40, 6, 4, 4), torch.float64)
    q, landmarks = q * torch.tensor([0.5, 1, 2]).reshape(3, 1, 1, 1), landmarks
    out = soft_attention(q, landmarks, v, symmetric)
    for i in range(3):
        alone = soft_attention(q[i : i + 1], landmarks[i : i + 1], v[i : i + 1], symmetric)
        assert rel_err(out[i : i + 1], alone) < 1e-9


def test_autocast_computes_in_float32() -> None:
    args = inputs(SHAPES[0], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = soft_attention(*args)
    assert out.dtype == torch.float32 and rel_err(out, soft_attention(*args)) < TOLERANCE[torch.float32]


def test_reasons() -> None:
    q, landmarks, v = inputs(SHAPES[0], torch.float32)
    assert SOFT_ATTENTION_OP.explain(q, landmarks, v) == {
        "triton": "the Triton kernel runs on CUDA, not on cpu",
        "tiled": "a kernel this small is faster whole",
        "channel_major": None,
    }
    reason = SOFT_ATTENTION_OP.explain(q[0, 0], landmarks[0, 0], v[0, 0])["channel_major"]
    assert reason is not None and "leading axes" in reason
    assert rel_err(soft_attention(q[0, 0], landmarks[0, 0], v[0, 0]), soft_attention(q, landmarks, v)[0, 0]) < 1e-4
    large = inputs((1, 1, 3000, 1500, 2, 2), torch.float32)
    assert SOFT_ATTENTION_OP.explain(*large)["tiled"] is None
    assert "backward" in str(SOFT_ATTENTION_OP.explain(large[0].requires_grad_(), *large[1:])["tiled"])


INTERPRETED = """
import torch
from test_kernel_soft_attention import CANDIDATES, SHAPES, TOLERANCE, inputs, soft_attention_reference
from support import rel_err, tolerances
torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
assert torch.empty(3).isnan().all()
for shape, dtype in ((SHAPES[0], torch.float16), (SHAPES[1], torch.float32), (SHAPES[2], torch.float32)):
    for symmetric in (False, True):
        args = inputs(shape, dtype)
        out = CANDIDATES["triton"].run(*args, symmetric)
        exact = soft_attention_reference(*(t.double() for t in args), symmetric)
        assert out.dtype == dtype and rel_err(out, exact) < TOLERANCE[dtype], (shape, dtype)
print("passed")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_triton_kernel_interpreted() -> None:
    """On the CPU, one program after the other."""
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "passed", done.stderr[-2000:]


def test_what_the_benchmark_measures() -> None:
    args, options = bench_inputs(14, 2)
    assert soft_attention(*args, **options).shape == (1, 2, 196, 32)


@symmetric
def test_it_compiles_and_exports(symmetric: bool) -> None:
    class Attend(torch.nn.Module):
        def forward(self, q: Tensor, landmarks: Tensor, v: Tensor) -> Tensor:
            return soft_attention(q, landmarks, v, symmetric)

    args = inputs(SHAPES[0], torch.float64)
    expected = soft_attention(*args, symmetric)
    assert rel_err(torch.compile(Attend(), fullgraph=True, backend="eager")(*args), expected) < 1e-9
    n = torch.export.Dim("n", min=2, max=4096)
    exported = torch.export.export(Attend(), args, dynamic_shapes=({2: n}, None, {2: n}))
    other = inputs((1, 2, 64, 9, 8, 8), torch.float64)
    assert rel_err(exported.module()(*other), soft_attention(*other, symmetric)) < 1e-9
