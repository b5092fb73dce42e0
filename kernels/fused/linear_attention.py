"""Triton kernels of linear attention: one pass over the keys and values, one over the queries.

Features, key weights and rotation are computed where tokens are loaded, so that no copy of q or k is ever made; sums
are float32, products of half-precision inputs those of tensor cores. Keys are split between programs, whose partial
sums are added afterwards. See `mixzoo.kernels.linear_attention` for the equation.
"""

# mypy: disable-error-code="no-untyped-def"
# kernels take pointers and constants that the types of Python do not describe

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rotary import Rope
from .precision import product_precision

BLOCK = 64  # tokens that a program takes at a time
SPAN = 1024  # tokens of a program, at least
MAX_SPLITS = 64


@triton.jit
def _phi(x, FEATURES: tl.constexpr):
    if FEATURES == "elu":
        return tl.where(x > 0, x + 1, tl.exp(tl.minimum(x, 0.0)))
    elif FEATURES == "relu":
        return tl.maximum(x, 0.0)
    elif FEATURES == "leaky_relu":
        return tl.where(x > 0, x, 0.01 * x)
    elif FEATURES == "exp":
        return tl.exp(0.2 * x)
    else:
        return x


@triton.jit
def _loaded(base, tokens, channels, stride_n, stride_d, count, width):
    mask = (tokens[:, None] < count) & (channels[None, :] < width)
    return tl.load(base + tokens[:, None] * stride_n + channels[None, :] * stride_d, mask=mask, other=0.0).to(
        tl.float32
    )


@triton.jit
def _features(base, tokens, channels, stride_n, stride_d, count, width, FEATURES: tl.constexpr):
    x = _loaded(base, tokens, channels, stride_n, stride_d, count, width)
    mask = (tokens[:, None] < count) & (channels[None, :] < width)
    return tl.where(mask, _phi(x, FEATURES), 0.0)


@triton.jit
def _turned(x, base, cos, sin, tokens, channels, stride_n, stride_d, count, width, FEATURES: tl.constexpr):
    """x of (tokens, channels), turned: the other channel of each pair is loaded again."""
    other = _features(base, tokens, channels ^ 1, stride_n, stride_d, count, width, FEATURES)
    turn = _loaded(cos, tokens, channels, width, 1, count, width)
    return x * turn + other * _loaded(sin, tokens, channels, width, 1, count, width)


@triton.jit
def _state(
    k,
    v,
    weights,
    cos,
    sin,
    state,
    sum_k,
    sum_v,
    k_b,
    k_h,
    k_n,
    k_d,
    v_b,
    v_h,
    v_n,
    v_d,
    heads,
    count,
    span,
    width,
    v_width,
    FEATURES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROPE: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
):
    """Partial sums of a span of keys: phi(k)^T v (D, E), phi(k) (D), v (E)."""
    head, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = head * tl.num_programs(1) + split
    k += (head // heads) * k_b + (head % heads) * k_h
    v += (head // heads) * v_b + (head % heads) * v_h
    d, e = tl.arange(0, D), tl.arange(0, E)
    total = tl.zeros((D, E), tl.float32)
    total_k, total_v = tl.zeros((D,), tl.float32), tl.zeros((E,), tl.float32)
    for start in range(0, span, TOKENS):
        n = split * span + start + tl.arange(0, TOKENS)
        features = _features(k, n, d, k_n, k_d, count, width, FEATURES)
        turned = features
        if ROPE:
            turned = _turned(features, k, cos, sin, n, d, k_n, k_d, count, width, FEATURES)
        if WEIGHTED:
            weight = tl.load(weights + head * count + n, mask=n < count, other=0.0)[:, None]
            features, turned = features * weight, turned * weight
        values = _loaded(v, n, e, v_n, v_d, count, v_width)
        total += tl.dot(tl.trans(turned), values, input_precision=PRECISION)
        total_k += tl.sum(features, 0)
        total_v += tl.sum(values, 0)
    inside = (d[:, None] < width) & (e[None, :] < v_width)
    tl.store(state + slot * width * v_width + d[:, None] * v_width + e[None, :], total, mask=inside)
    tl.store(sum_k + slot * width + d, total_k, mask=d < width)
    tl.store(sum_v + slot * v_width + e, total_v, mask=e < v_width)


@triton.jit
def _answers(
    q,
    state,
    mean_k,
    mean_v,
    cos,
    sin,
    out,
    q_b,
    q_h,
    q_n,
    q_d,
    o_b,
    o_h,
    o_n,
    o_d,
    heads,
    count,
    width,
    v_width,
    scale,
    eps,
    key_eps,
    least,
    FEATURES: tl.constexpr,
    RULE: tl.constexpr,
    ROPE: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
):
    """gain(z) * (phi(q) S) + offset(z) * mean(v) for a block of queries."""
    head = tl.program_id(0).to(tl.int64)
    n, d, e = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, D), tl.arange(0, E)
    q += (head // heads) * q_b + (head % heads) * q_h
    features = _features(q, n, d, q_n, q_d, count, width, FEATURES)
    z = tl.sum(features * tl.load(mean_k + head * width + d, mask=d < width, other=0.0)[None, :], 1)[:, None]
    if ROPE:
        features = _turned(features, q, cos, sin, n, d, q_n, q_d, count, width, FEATURES)
    inside = (d[:, None] < width) & (e[None, :] < v_width)
    matrix = tl.load(state + head * width * v_width + d[:, None] * v_width + e[None, :], mask=inside, other=0.0)
    answer = tl.dot(features, matrix, input_precision=PRECISION)
    values = tl.load(mean_v + head * v_width + e, mask=e < v_width, other=0.0)[None, :]
    if RULE == "quotient":
        answer = answer / (z + key_eps)
    elif RULE == "rank" or RULE == "mean":
        answer = answer / (z + eps)
    elif RULE == "floor":
        answer = answer / tl.maximum(z, least)
    elif RULE == "subtraction":
        answer = scale * answer + (1 - scale * z) * values
    else:
        answer = scale * (1 + 1 / (scale * z + eps)) * answer - scale * z * values
    out += (head // heads) * o_b + (head % heads) * o_h
    stored = (n[:, None] < count) & (e[None, :] < v_width)
    tl.store(out + n[:, None] * o_n + e[None, :] * o_d, answer.to(out.dtype.element_ty), mask=stored)


@triton.jit
def _mean_query(
    q,
    sums,
    q_b,
    q_h,
    q_n,
    q_d,
    heads,
    count,
    span,
    width,
    FEATURES: tl.constexpr,
    TOKENS: tl.constexpr,
    D: tl.constexpr,
):
    """Partial sums (D) of phi(q) over a span of queries."""
    head, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q += (head // heads) * q_b + (head % heads) * q_h
    d = tl.arange(0, D)
    total = tl.zeros((D,), tl.float32)
    for start in range(0, span, TOKENS):
        n = split * span + start + tl.arange(0, TOKENS)
        total += tl.sum(_features(q, n, d, q_n, q_d, count, width, FEATURES), 0)
    tl.store(sums + (head * tl.num_programs(1) + split) * width + d, total, mask=d < width)


@triton.jit
def _logits(
    k,
    query,
    logits,
    k_b,
    k_h,
    k_n,
    k_d,
    heads,
    count,
    width,
    FEATURES: tl.constexpr,
    TOKENS: tl.constexpr,
    D: tl.constexpr,
):
    """phi(k) . query for a block of keys."""
    head = tl.program_id(0).to(tl.int64)
    n, d = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, D)
    k += (head // heads) * k_b + (head % heads) * k_h
    features = _features(k, n, d, k_n, k_d, count, width, FEATURES)
    dots = tl.sum(features * tl.load(query + head * width + d, mask=d < width, other=0.0)[None, :], 1)
    tl.store(logits + head * count + n, dots, mask=n < count)


def scratch(like: Tensor, *shape: int) -> Tensor:
    """float32 memory for partial results, not initialised."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _spans(count: int) -> tuple[int, int]:
    """How many programs share ``count`` tokens, and how many tokens each takes."""
    splits = min(MAX_SPLITS, triton.cdiv(count, SPAN))
    return splits, triton.cdiv(count, splits * BLOCK) * BLOCK


def _key_weights(q: Tensor, k: Tensor, features: str, scale: float, block: int) -> Tensor:
    """(B * heads, M): M times the softmax of how much the mean query attends to each key."""
    (b, h, n, d), m = q.shape, k.shape[2]
    splits, span = _spans(n)
    sums, logits = scratch(q, b * h, splits, d), scratch(q, b * h, m)
    _mean_query[(b * h, splits)](q, sums, *q.stride(), h, n, span, d, features, BLOCK, block)
    mean = sums.sum(dim=1) * (scale / n)
    _logits[(b * h, triton.cdiv(m, BLOCK))](k, mean, logits, *k.stride(), h, m, d, features, BLOCK, block)
    return logits.softmax(dim=-1) * m


def linear_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    features: str,
    rule: str,
    scale: float,
    eps: float,
    floor: float,
    rope: Rope | None = None,
) -> Tensor:
    """q (B, heads, N, D), k (B, heads, M, D), v (B, heads, M, E) -> (B, heads, N, E), in the memory order of v."""
    (b, h, n, d), (m, e) = q.shape, v.shape[2:]
    block_d, block_e = (max(16, triton.next_power_of_2(width)) for width in (d, e))
    cos, sin = (t.float().contiguous() for t in rope) if rope is not None else (q, q)
    precision, block = product_precision(v.dtype), BLOCK if max(block_d, block_e) <= 64 else BLOCK // 2
    weights = _key_weights(q, k, features, scale, block_d) if rule == "rank" else q
    splits, span = _spans(m)
    state, sum_k, sum_v = scratch(q, b * h, splits, d, e), scratch(q, b * h, splits, d), scratch(q, b * h, splits, e)
    _state[(b * h, splits)](
        k, v, weights, cos, sin, state, sum_k, sum_v, *k.stride(), *v.stride(), h, m, span, d, e,
        features, rule == "rank", rope is not None, precision, block, block_d, block_e, num_stages=1,
    )  # fmt: skip
    state, mean_k, mean_v = (t.sum(dim=1) / m for t in (state, sum_k, sum_v))
    by_token = v.stride(2) == 1
    shape = (b, h, e, n) if by_token else (b, n, h, e)
    out = torch.empty(shape, dtype=v.dtype, device=v.device)
    out = out.transpose(2, 3) if by_token else out.transpose(1, 2)
    _answers[(b * h, triton.cdiv(n, block))](
        q, state, mean_k, mean_v, cos, sin, out, *q.stride(), *out.stride(), h, n, d, e, scale, eps, eps / m, floor / m,
        features, rule, rope is not None, precision, block, block_d, block_e, num_stages=1,
    )  # fmt: skip
    return out
