"""Linear attention: attention through feature maps, whose cost grows with the tokens and not with their square.

    out = gain(z) * (phi(q) S) + offset(z) * mean(v),    S = phi(k)^T v / M,    z = phi(q) . mean(phi(k))

Shapes: q (..., N, D), k (..., M, D), v (..., M, E) -> (..., N, E). Time O((N + M) D E), memory O(N D + M D + D E).
What differs between papers is the feature map phi and the rule that sets gain and offset; a `Kind` names both:

    quotient      gain 1 / (z + eps / M)            ELU+1 (arXiv:2006.16236), ReLU, SLA (arXiv:2405.11582),
                                                    focused (arXiv:2308.00442), Hedgehog (arXiv:2402.04347)
    subtraction   gain s, offset 1 - s z            InLine (arXiv:2412.06590): the weights of a query sum to one
    magnitude     gain s (1 + 1 / (s z + eps)), offset -s z          MALA (arXiv:2507.00698)
    rank          gain 1 / (z + eps), keys weighted by M softmax(s mean(phi(q)) . phi(k)) over tokens
                                                    RALA (arXiv:2411.07635)
    floor         gain 1 / max(z, 100 / M)          L2ViT (arXiv:2501.16182), of ReLU features
    mean          gain 1 / (z + eps)                NaLa (arXiv:2506.21137), with features of its own for q and for k

with s = D^-0.5 for D channels before the feature map. Rotary tables turn phi(q) and phi(k) in the product with S alone,
and both halves of features that are twice as wide.
Means instead of sums, and sums in float32 for half-precision inputs (autocast or not), keep every step in range.

Served by: CUDA, Triton, which reads each token once (features that are normalised over channels, and training,
excepted); where it does not apply, the transposed form, if tokens are adjacent in memory and heads are to be joined;
else the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from .dispatch import Candidate, Op, opaque, triton_unsupported, wants_gradient
from .precision import accumulated, without_autocast
from .rotary import Rope, rotate_pairs

EPS = 1e-6
FLOOR = 100.0  # least sum of weights of the `floor` rule
TINY = 1e-30  # least squared norm that is divided by


def focus(x: Tensor, power: int = 3, dim: int = -1, scale: Tensor | None = None) -> Tensor:
    """ReLU, then ``power`` element by element with the norm over ``dim`` kept: directions sharpen (arXiv:2308.00442).

    Args:
        x: any shape.
        power: exponent, 1 or more.
        dim: axis of the norm.
        scale: factor of x after the ReLU, which broadcasts.
    """
    x = accumulated(x).relu() + EPS
    x = x if scale is None else x * scale
    norm = _norm(x, dim)
    sharp = (x / norm) ** power  # at most one: no overflow however large x is
    return sharp * (norm / _norm(sharp, dim))


def _norm(x: Tensor, dim: int) -> Tensor:
    return x.square().sum(dim=dim, keepdim=True).sqrt()


def _softmax_pair(x: Tensor) -> Tensor:
    """(..., D) -> (..., 2D): softmax over the channels and their negatives."""
    return torch.cat((x, -x), dim=-1).softmax(dim=-1)


def _signed_parts(x: Tensor) -> Tensor:
    """(..., D) -> (..., 2D): what is positive, and the size of what is negative."""
    return torch.cat((x, -x), dim=-1).relu()


def spiky_directions(x: Tensor) -> Tensor:
    """(..., D) -> (..., 2D): the direction of x to a power that grows with its norm, from 1.5 to 4.5 (NaLa's queries).

    A zero vector has no direction and gives zeros.
    """
    norm = x.square().sum(dim=-1, keepdim=True).clamp_min(TINY).sqrt()
    size = (x.abs() / norm) ** (3 * (0.5 + norm.tanh()))
    return _signed_parts(x.sign() * size)


def signed_cubes(x: Tensor) -> Tensor:
    """(..., D) -> (..., 2D): cubes, the positive and the negative apart (NaLa's keys)."""
    return _signed_parts(x**3)


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "elu": lambda x: F.elu(x) + 1,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "exp": lambda x: (0.2 * x).exp(),
    "focused": focus,
    "hedgehog": _softmax_pair,
    "spiky": spiky_directions,
    "cubes": signed_cubes,
}
JOINED = ("hedgehog", "spiky", "cubes")  # of twice the channels


@dataclass(frozen=True)
class Rule:
    """How a query's answer is scaled; see the module's docstring.

    Attributes:
        gain: (z, scale, number of keys) -> factor of the product with the state.
        offset: (z, scale) -> factor of the mean value, or None for none.
        weighs_keys: whether keys are weighted by how much the mean query attends to them.
    """

    gain: Callable[[Tensor, float, int], Tensor | float]
    offset: Callable[[Tensor, float], Tensor] | None = None
    weighs_keys: bool = False


RULES: dict[str, Rule] = {
    "quotient": Rule(lambda z, scale, count: 1 / (z + EPS / count)),
    "subtraction": Rule(lambda z, scale, count: scale, lambda z, scale: 1 - scale * z),
    "magnitude": Rule(lambda z, scale, count: scale * (1 + 1 / (scale * z + EPS)), lambda z, scale: -scale * z),
    "rank": Rule(lambda z, scale, count: 1 / (z + EPS), weighs_keys=True),
    "floor": Rule(lambda z, scale, count: count / (z * count).clamp_min(FLOOR)),
    "mean": Rule(lambda z, scale, count: 1 / (z + EPS)),
}


@dataclass(frozen=True)
class Kind:
    """One linear attention: the names of its feature map (`FEATURES`) and of its rule (`RULES`).

    ``keys`` names the feature map of keys, where it is not that of queries.
    """

    features: str
    rule: str = "quotient"
    keys: str | None = None


KINDS: dict[str, Kind] = {
    "elu": Kind("elu"),
    "relu": Kind("relu"),
    "sla": Kind("relu"),
    "focused": Kind("focused"),
    "hedgehog": Kind("hedgehog"),
    "given": Kind("identity"),  # q and k are non-negative features already
    "inline": Kind("identity", "subtraction"),
    "mala": Kind("elu", "magnitude"),
    "rala": Kind("elu", "rank"),
    "l2vit": Kind("relu", "floor"),
    "nala": Kind("spiky", "mean", "cubes"),
}


def resolve_kind(kind: str | Kind) -> Kind:
    """The `Kind` of that name.

    Raises:
        ValueError: there is none; the message has near names.
    """
    if isinstance(kind, Kind):
        return kind
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, 1) or [", ".join(KINDS)]
        raise ValueError(f"no linear attention is called {kind!r}: did you mean {near[0]}?")
    return KINDS[kind]


def _prepared(q: Tensor, k: Tensor, v: Tensor, kind: Kind, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Features of q, features of k with their weights, and v, in the type that sums are made in."""
    features, rule = FEATURES[kind.features], RULES[kind.rule]
    key_features = features if kind.keys is None else FEATURES[kind.keys]
    q, k, v = features(accumulated(q)), key_features(accumulated(k)), accumulated(v)
    if rule.weighs_keys:
        logits = k @ (q.mean(dim=-2, keepdim=True) * scale).transpose(-2, -1)  # (..., M, 1)
        k = k * (logits.softmax(dim=-2) * k.shape[-2])
    return q, k, v


def _turned(x: Tensor, kind: Kind, rope: Rope) -> Tensor:
    """``x`` rotated by tables of heads, each half of joined features by itself."""
    if kind.features in JOINED:
        rope = tuple(torch.cat((table, table), dim=-1) for table in rope)  # type: ignore[assignment]
    return rotate_pairs(x, rope)


def linear_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, kind: str | Kind = "elu", scale: float | None = None, rope: Rope | None = None
) -> Tensor:
    """The equation, operator by operator."""
    kind, count, dtype = resolve_kind(kind), k.shape[-2], v.dtype
    scale = int(q.shape[-1]) ** -0.5 if scale is None else scale
    rule = RULES[kind.rule]
    with without_autocast(q.device.type):
        q, k, v = _prepared(q, k, v, kind, scale)
        z = q @ k.mean(dim=-2, keepdim=True).transpose(-2, -1)  # (..., N, 1)
        if rope is not None:
            q, k = _turned(q, kind, rope), _turned(k, kind, rope)
        state = (k.transpose(-2, -1) / count) @ v  # (..., D, E)
        out = (q @ state) * rule.gain(z, scale, count)
        if rule.offset is not None:
            out = out + rule.offset(z, scale) * v.mean(dim=-2, keepdim=True)
        return out.to(dtype)


def _channel_major(
    q: Tensor, k: Tensor, v: Tensor, kind: str | Kind = "elu", scale: float | None = None, rope: Rope | None = None
) -> Tensor:
    """Everything transposed, for tokens that are adjacent in memory, as in a map: the heads join without a copy."""
    kind, count, dtype = resolve_kind(kind), k.shape[-2], v.dtype
    scale = int(q.shape[-1]) ** -0.5 if scale is None else scale
    rule = RULES[kind.rule]
    with without_autocast(q.device.type):
        q, k, v = _prepared(q, k, v, kind, scale)
        z = k.mean(dim=-2, keepdim=True) @ q.transpose(-2, -1)  # (..., 1, N)
        if rope is not None:
            q, k = _turned(q, kind, rope), _turned(k, kind, rope)
        state = v.transpose(-2, -1) @ k / count  # (..., E, D)
        out = (state @ q.transpose(-2, -1)) * rule.gain(z, scale, count)
        if rule.offset is not None:
            out = torch.addcmul(out, v.mean(dim=-2, keepdim=True).transpose(-2, -1), rule.offset(z, scale))
        return out.to(dtype).transpose(-2, -1)


def _channel_major_unsupported(
    q: Tensor, k: Tensor, v: Tensor, kind: str | Kind = "elu", scale: float | None = None, rope: Rope | None = None
) -> str | None:
    if q.stride(-2) != 1 or k.stride(-2) != 1 or v.stride(-2) != 1:
        return "the transposed form pays where tokens are adjacent in memory (channels first)"
    if q.ndim < 3 or q.shape[-3] == 1:
        return "the answers of a single head join without a copy in any order"
    if resolve_kind(kind).features in JOINED:
        return "features joined along the channels are adjacent in memory"
    return None


_SCHEMA = "Tensor q, Tensor k, Tensor v, str features, str rule, float scale, Tensor? cos=None, Tensor? sin=None"


def _like(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> Tensor:
    (batch, heads, count, _), width = q.shape, v.shape[3]
    if v.stride(2) == 1:  # tokens are adjacent in memory
        return v.new_empty(batch, heads, width, count).transpose(2, 3)
    return v.new_empty(batch, count, heads, width).transpose(1, 2)


@opaque("linear_attention_triton", _SCHEMA, _like)
def _launched(
    q: Tensor, k: Tensor, v: Tensor, features: str, rule: str, scale: float,
    cos: Tensor | None = None, sin: Tensor | None = None,
) -> Tensor:  # fmt: skip
    from .fused.linear_attention import linear_attention_forward

    rope = None if cos is None or sin is None else (cos, sin)
    return linear_attention_forward(q, k, v, features, rule, scale, EPS, FLOOR, rope)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, kind: str | Kind = "elu", scale: float | None = None, rope: Rope | None = None
) -> Tensor:
    kind = resolve_kind(kind)
    scale = int(q.shape[-1]) ** -0.5 if scale is None else scale
    return _launched(q, k, v, kind.features, kind.rule, scale, *(rope or (None, None)))


def _fused_unsupported(
    q: Tensor, k: Tensor, v: Tensor, kind: str | Kind = "elu", scale: float | None = None, rope: Rope | None = None
) -> str | None:
    if q.ndim != 4:
        return f"the Triton kernel takes (B, heads, N, D), not {q.ndim} axes"
    if resolve_kind(kind).features in ("focused", *JOINED):
        return "features that are normalised over the channels are made outside of the Triton kernel"
    if wants_gradient(q, k, v):
        return "the Triton kernel has no backward pass: the reference was faster than computing it again for one"
    return triton_unsupported(max(q.shape[-1], v.shape[-1]), q, k, v)


def bench_inputs(side: int, heads: int, dim: int = 64, batch: int = 1) -> tuple[tuple[Tensor, ...], dict[str, object]]:
    """Arguments for a map of ``side`` x ``side`` tokens and ``dim`` channels, as a mixer hands them over."""
    maps = torch.randn(3, batch, heads, dim // heads, side * side)
    return tuple(t.transpose(-2, -1) for t in maps), {}


LINEAR_ATTENTION_OP = Op(
    "linear_attention",
    linear_attention_reference,
    (
        Candidate("triton", _fused, _fused_unsupported),
        Candidate("channel_major", _channel_major, _channel_major_unsupported),
    ),
    bench_inputs,
)


@register_notrace_function
def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, kind: str | Kind = "elu", scale: float | None = None, rope: Rope | None = None
) -> Tensor:
    """Linear attention by the fastest implementation that applies; see the module's docstring.

    Args:
        q, k, v: (..., N, D), (..., M, D), (..., M, E).
        kind: name in `KINDS`, or a `Kind`.
        scale: s of the rules that have one; D^-0.5 by default.
        rope: rotary tables of the tokens (N, D); q and k then have the same tokens.

    Raises:
        ValueError: no such kind.
    """
    return LINEAR_ATTENTION_OP(q, k, v, kind, scale, rope)
