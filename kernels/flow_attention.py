"""Flow attention: linear attention whose weights follow a conserved flow from keys (sources) to queries (sinks).

With q, k <- sigmoid(q), sigmoid(k), and ``<a | b> = sum_channels (a + eps) (sum_tokens b + eps) + guard``:

    incoming = <q | k>            what each query receives          (N)
    outgoing = <k | q>            what each key gives               (M)
    sink     = <q | k / outgoing>   received, when every key gives 1  (N)
    source   = <k | q / incoming>   given, when every query receives 1, clamped to [-1, 1]  (M)
    out      = sigmoid(sink N / M) (q / incoming) (k^T (v M softmax(source)))

Shapes: q (..., N, D), k (..., M, D), v (..., M, E) -> (..., N, E). Time O((N + M) D E), memory O(N D + M D + D E). Sums
are made in float32 for half-precision inputs, autocast or not: they run over thousands of positive numbers.
Served by: the channel-major candidate on any device, from 1200 tokens on; its six products are those of the vendor's
library, and what lies between them is for a compiler to fuse.
Source: Flowformer, arXiv:2202.06258. Its vision code has a ``guard`` of 1e-6, its general code none.
"""

from __future__ import annotations

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from .dispatch import Candidate, Op
from .precision import accumulated, without_autocast

EPS = 1e-6
MANY_TOKENS = 1200  # from where the transposed form is faster, measured at 14 to 112 squared


def _flow(to: Tensor, through: Tensor, guard: float) -> Tensor:
    """<to | through> of the module's docstring: (..., N, D) and (..., M, D) -> (..., N, 1)."""
    return ((to + EPS) * (through.sum(dim=-2, keepdim=True) + EPS)).sum(dim=-1, keepdim=True) + guard


def flow_attention_reference(q: Tensor, k: Tensor, v: Tensor, guard: float = 0.0) -> Tensor:
    """The equation, operator by operator."""
    dtype, ratio = v.dtype, q.shape[-2] / k.shape[-2]
    with without_autocast(q.device.type):
        q, k, v = accumulated(q).sigmoid(), accumulated(k).sigmoid(), accumulated(v)
        incoming, outgoing = _flow(q, k, guard), _flow(k, q, guard)
        sink = _flow(q, k / outgoing, guard)
        source = _flow(k, q / incoming, guard).clamp(-1, 1)
        competed = v * (source.softmax(dim=-2) * k.shape[-2])
        out = (q / incoming) @ (k.transpose(-2, -1) @ competed)
        return (out * (sink * ratio).sigmoid()).to(dtype)


def _received(to: Tensor, weights: Tensor, guard: float) -> Tensor:
    """``sum_channels (to + eps) (weights + eps) + guard`` as one product: (..., D, N), (..., D, 1) -> (..., 1, N)."""
    shifted = weights + EPS
    return shifted.transpose(-2, -1) @ to + (EPS * shifted.sum(dim=-2, keepdim=True) + guard)


def _channel_major(q: Tensor, k: Tensor, v: Tensor, guard: float = 0.0) -> Tensor:
    """Everything transposed, for tokens that are adjacent in memory: every flow is a product with a vector.

    The queries' two factors meet at the answers, so that no scaled copy of q or k is made.
    """
    dtype, count, ratio = v.dtype, k.shape[-2], q.shape[-2] / k.shape[-2]
    with without_autocast(q.device.type):
        q, k, v = (t.transpose(-2, -1) for t in (accumulated(q).sigmoid(), accumulated(k).sigmoid(), accumulated(v)))
        incoming = _received(q, k.sum(dim=-1, keepdim=True), guard)  # (..., 1, N)
        outgoing = _received(k, q.sum(dim=-1, keepdim=True), guard)
        sink = _received(q, k @ (1 / outgoing).transpose(-2, -1), guard)
        source = _received(k, q @ (1 / incoming).transpose(-2, -1), guard).clamp(-1, 1)
        state = (v * (source.softmax(dim=-1) * count)) @ k.transpose(-2, -1)  # (..., E, D)
        out = (state @ q) * ((sink * ratio).sigmoid() / incoming)
        return out.to(dtype).transpose(-2, -1)


def _channel_major_unsupported(q: Tensor, k: Tensor, v: Tensor, guard: float = 0.0) -> str | None:
    if q.shape[-2] < MANY_TOKENS:
        return f"the transposed form takes longer than it saves below {MANY_TOKENS} tokens"
    if q.stride(-2) != 1 or k.stride(-2) != 1 or v.stride(-2) != 1:
        return "the transposed form pays where tokens are adjacent in memory (channels first)"
    return None


def bench_inputs(side: int, heads: int, dim: int = 64, batch: int = 1) -> tuple[tuple[Tensor, ...], dict[str, object]]:
    """Arguments for a map of ``side`` x ``side`` tokens and ``dim`` channels, as a mixer hands them over."""
    maps = torch.randn(3, batch, heads, dim // heads, side * side)
    return tuple(t.transpose(-2, -1) for t in maps), {}


FLOW_ATTENTION_OP = Op(
    "flow_attention",
    flow_attention_reference,
    (Candidate("channel_major", _channel_major, _channel_major_unsupported),),
    bench_inputs,
)


@register_notrace_function
def flow_attention(q: Tensor, k: Tensor, v: Tensor, guard: float = 0.0) -> Tensor:
    """Flow attention by the fastest implementation that applies; see the module's docstring.

    Args:
        q, k, v: (..., N, D), (..., M, D), (..., M, E), before the sigmoid.
        guard: added to every flow.
    """
    return FLOW_ATTENTION_OP(q, k, v, guard)
