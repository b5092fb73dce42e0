"""Linear attention: every kind against its equation with all weights written out, candidates against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mixzoo.blocks.rope import RotaryEmbedding, map_tables
from mixzoo.kernels.linear_attention import (
    EPS,
    FEATURES,
    FLOOR,
    JOINED,
    KINDS,
    LINEAR_ATTENTION_OP,
    RULES,
    Kind,
    bench_inputs,
    focus,
    linear_attention,
    linear_attention_reference,
)
from mixzoo.kernels.rotary import rotate_pairs
from support import rel_err, tolerances
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

TOLERANCE = tolerances(float32=5)  # powers of features, and a softmax over all tokens
SIZES = ((1, 1), (5, 7), (14, 14), (9, 31))
POSITIVE = [name for name, kind in KINDS.items() if kind.rule == "quotient"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def tokens(kind: str, batch: int, heads: int, count: int, dim: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """q, k, v (B, heads, N, D) as views of maps, tokens adjacent in memory; features where the kind takes those."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, batch, heads, dim, count, generator=generator, dtype=torch.float64)
    if kind == "given":
        q, k = q.abs(), k.abs()
    return [t.to(dtype).transpose(-2, -1).requires_grad_() for t in (q, k, v)]


def weights(q: Tensor, k: Tensor, kind: str) -> Tensor:
    """The (N, M) matrix that the answers are ``weights @ v`` with, from the papers' equations."""
    features, scale, count = KINDS[kind].features, q.shape[-1] ** -0.5, k.shape[-2]
    q, k = FEATURES[features](q), FEATURES[KINDS[kind].keys or features](k)
    logits = q @ k.transpose(-2, -1)
    total = logits.sum(-1, keepdim=True)
    if kind == "inline":
        return scale / count * logits + (1 - scale * total / count) / count
    if kind == "mala":
        z = scale * total / count
        return logits * scale / count * (1 + 1 / (z + EPS)) - z / count
    if kind == "rala":
        alpha = count * (scale * q.mean(-2, keepdim=True) @ k.transpose(-2, -1)).softmax(-1)  # (..., 1, M)
        return alpha * logits / ((alpha * logits).sum(-1, keepdim=True) + EPS * count)
    if kind == "nala":
        return logits / (total + EPS * count)
    return logits / (total.clamp_min(FLOOR) if kind == "l2vit" else total + EPS)


@every_kind
def test_the_reference_is_the_equation(kind: str) -> None:
    q, k, v = tokens(kind, 2, 3, 35, 8, torch.float64)
    expected = weights(q, k, kind) @ v
    assert rel_err(linear_attention_reference(q, k, v, kind).detach(), expected.detach()) < 1e-11


@every_kind
def test_kinds_differ(kind: str) -> None:
    """The comparison above can fail: no kind but an alias gives the answers of another."""
    q, k, v = (t.detach() for t in tokens("elu", 1, 2, 35, 8, torch.float64))
    out = linear_attention_reference(q, k, v, kind)
    for other in (n for n in KINDS if KINDS[n] != KINDS[kind]):
        assert rel_err(linear_attention_reference(q, k, v, other), out) > 1e-3


def test_weights_of_a_query_sum_to_one() -> None:
    for kind in (*POSITIVE, "inline"):
        q, k, v = tokens(kind, 1, 2, 35, 32, torch.float64)
        ones = torch.ones_like(v)
        assert rel_err(linear_attention(q, k, ones, kind).detach(), ones) < 1e-4


def run(op: Callable[..., Tensor], inputs: list[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
    out = op(*inputs, *args, **kwargs)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, probe)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@every_kind
def test_candidates_give_outputs_and_gradients(kind: str, dtype: torch.dtype) -> None:
    for batch, size, rotated in ((1, SIZES[0], True), (3, SIZES[1], False), (1, SIZES[2], True), (2, SIZES[3], False)):
        count, dim = size[0] * size[1], 12
        rope = map_tables(dim, size, torch.zeros(1, dtype=dtype)) if rotated else None
        exact = tokens(kind, batch, 2, count, dim, torch.float64)
        inputs = [t.detach().to(dtype).requires_grad_() for t in exact]
        exact = [t.detach().double().requires_grad_() for t in inputs]
        wide = None if rope is None else map_tables(dim, size, exact[0])
        expected = run(linear_attention_reference, exact, kind, rope=wide)
        forms = [linear_attention_reference]
        candidates = [c for c in LINEAR_ATTENTION_OP.candidates if c.name != "triton"]
        forms += [c.run for c in candidates if c.unsupported(*inputs, kind, None, rope) is None]
        assert len(forms) == 1 + (KINDS[kind].features not in JOINED)
        for form in forms:
            found = run(form, inputs, kind, rope=rope)
            assert all(f.dtype == dtype for f in found)
            bound = TOLERANCE[dtype] * max(want.abs().max().item() for want in expected)  # with one key, grads are 0
            assert all((got - want).abs().max() <= bound for got, want in zip(found, expected, strict=True))


def test_fewer_keys_than_queries() -> None:
    q, _, _ = tokens("elu", 1, 2, 35, 8, torch.float64)
    _, k, v = tokens("elu", 1, 2, 6, 8, torch.float64, seed=1)
    for kind in ("elu", "inline", "mala", "rala"):
        assert rel_err(linear_attention(q, k, v, kind).detach(), (weights(q, k, kind) @ v).detach()) < 1e-11


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@every_kind
def test_large_activations_stay_finite_and_right(kind: str, dtype: torch.dtype) -> None:
    """3,136 tokens of activations up to 3,000, whose products and sums are far outside half precision."""
    size = 1.0 if RULES[KINDS[kind].rule].offset else 3e3  # other rules multiply by the size of the queries
    inputs = [t.detach() * size for t in tokens(kind, 1, 2, 3136, 16, torch.float64)]
    inputs[2] = inputs[2].clamp(-6e4, 6e4)
    low = [t.to(dtype) for t in inputs]
    if kind in ("elu", "rala"):
        assert not (low[0] @ (low[1].transpose(-2, -1) @ low[2])).isfinite().all() or dtype == torch.bfloat16
    expected = linear_attention_reference(*(t.double() for t in low), kind)
    for form in (linear_attention, linear_attention_reference):
        out = form(*low, kind)
        assert out.dtype == dtype and rel_err(out, expected) < TOLERANCE[dtype]


def test_autocast_does_not_reach_the_sums() -> None:
    q, k, v = (t.detach() for t in tokens("elu", 1, 2, 3136, 16, torch.float32))
    expected = linear_attention(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_attention(q, k, v), expected)
        assert torch.equal(linear_attention_reference(q, k, v), linear_attention_reference(q, k, v, "elu"))


def test_zero_features_give_zeros() -> None:
    q, k, v = tokens("relu", 1, 1, 9, 4, torch.float32)
    for kind, query in (("relu", -q.abs()), ("l2vit", -q.abs()), ("nala", 0 * q)):
        out = linear_attention(query, k, v, kind)
        assert torch.equal(out, torch.zeros_like(out))
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_queries_attend_more_sharply_the_larger_they_are_and_not_to_opposites() -> None:
    """What NaLa is for, and the kinds above do not do: weights that depend on the norm of a query."""
    q, k, _ = (t.detach() for t in tokens("nala", 1, 1, 200, 8, torch.float64))
    entropy = [torch.special.entr(w).sum(-1).mean() for w in (weights(s * q, k, "nala") for s in (0.01, 0.1, 1.0))]
    assert entropy[0] > entropy[1] + 0.1 and entropy[1] > entropy[2] + 0.1
    assert torch.allclose(weights(0.1 * q, k, "relu"), weights(q, k, "relu"), atol=1e-5)
    assert weights(q, -q, "nala").diagonal(dim1=-2, dim2=-1).abs().max() == 0


def test_small_sums_are_divided_by_the_floor() -> None:
    q, k, v = (t.detach() for t in tokens("relu", 1, 1, 50, 8, torch.float64))
    small, large = linear_attention(q * 1e-3, k, v, "l2vit"), linear_attention(q * 1e3, k, v, "l2vit")
    assert rel_err(small, q.relu() * 1e-3 @ (k.relu().transpose(-2, -1) @ v) / FLOOR) < 1e-12
    assert rel_err(large, linear_attention(q * 1e3, k, v, "relu")) < 1e-6


def test_focus_keeps_the_norm_and_does_not_overflow() -> None:
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    positive = x.relu() + EPS
    cubed = positive**3
    wanted = cubed / cubed.norm(dim=-1, keepdim=True) * positive.norm(dim=-1, keepdim=True)
    assert torch.allclose(focus(x), wanted, rtol=1e-5)
    assert focus(x * 1e15).isfinite().all()


class Largest(TorchDispatchMode):
    """Records the most elements of any tensor that an operator returns."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.count = max(self.count, tensor.numel())
        return out


@every_kind
def test_memory_grows_with_tokens(kind: str) -> None:
    largest = []
    for count in (400, 1600):
        inputs = tokens(kind, 1, 2, count, 8, torch.float32)
        with Largest() as mode:
            run(linear_attention, inputs, kind)
        largest.append(mode.count)
    assert largest[1] <= 4 * largest[0] and largest[0] <= 2 * 2 * 400 * 8


def test_rotation_keeps_norms_and_depends_on_offsets_alone() -> None:
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(30, 8)
    turned = rotate_pairs(x, map_tables(8, (5, 6), x))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1))
    products = (turned @ turned.T).reshape(5, 6, 5, 6)
    assert torch.allclose(products[0, 0, 1, 2], products[3, 3, 4, 5])
    assert not torch.allclose(products[0, 0, 1, 2], products[0, 0, 2, 1])
    real, imaginary = turned[7].reshape(-1, 2).T  # row 1, column 1
    angles = torch.tensor([1.0, 1e-4, 1.0, 1e-4], dtype=torch.float64)
    wanted = torch.view_as_complex(x[7].reshape(-1, 2).contiguous()) * torch.polar(torch.ones_like(angles), angles)
    assert torch.allclose(torch.complex(real, imaginary), wanted)


def test_explain_says_why() -> None:
    args, _ = bench_inputs(7, 2)
    assert LINEAR_ATTENTION_OP.explain(*args)["channel_major"] is None
    by_channel = LINEAR_ATTENTION_OP.explain(*(t.contiguous() for t in args))["channel_major"]
    assert by_channel is not None and "channels first" in by_channel
    one = LINEAR_ATTENTION_OP.explain(*bench_inputs(7, 1)[0])["channel_major"]
    assert one is not None and "single head" in one
    pairs = LINEAR_ATTENTION_OP.explain(*args, "hedgehog")["channel_major"]
    assert pairs is not None and "adjacent" in pairs


def test_unknown_kinds_are_refused() -> None:
    args, _ = bench_inputs(3, 1)
    with pytest.raises(ValueError, match="rala"):
        linear_attention(*args, "ralla")
    own = linear_attention(*args, Kind("exp", "subtraction"))
    assert own.shape == args[0].shape and F.mse_loss(own, linear_attention(*args, "inline")) > 1e-6


def test_tables_lie_in_memory_as_the_map_does() -> None:
    rope = RotaryEmbedding(8, (5, 6))
    x = torch.randn(1, 8, 5, 6, dtype=torch.float64)
    by_channel, by_token = rope((5, 6), x), rope((5, 6), x.contiguous(memory_format=torch.channels_last))
    assert by_channel[0].stride() == (1, 30) and by_token[0].stride() == (8, 1)
    assert all(torch.equal(a, b) for a, b in zip(by_channel, by_token, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(rope.fixed(x)((5, 6), x), by_token, strict=True))
