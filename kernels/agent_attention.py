"""Attention through a few agents: they gather values from all positions, and every position reads from them.

``gathered = softmax(a k^T * scale + bias_in) v`` and ``out = softmax(q a^T * scale + bias_out) gathered``.

Shapes: q (B, heads, N, D), k and v (B, heads, M, D), agents a (B, heads, n, D); bias_in broadcastable to
(B, heads, n, M), bias_out to (B, heads, N, n); result (B, heads, N, D).
Time O((N + M) n D). Memory O((N + M) n) a head, and O(N + M) for the fused candidate, two calls of
`scaled_dot_product_attention`: linear in the positions either way, as n does not grow with them. The channel-major
candidate keeps positions adjacent in memory, as a map has them, so that nothing is transposed; its second softmax runs
across the agents.
Served by: MPS, and CUDA in half precision, the fused candidate, whose kernels take a bias as a mask; CUDA in float32,
or with gradients of many queries, the reference (H200); the CPU, the fused one from 32 agents on, below that
channel-major, or the reference where channels are adjacent.
Source: Han et al., arXiv:2312.08874, equation 6.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from .attention import attention_reference
from .dispatch import Candidate, Op, wants_gradient

FEW_AGENTS, MANY_AGENTS = 12, 32  # where candidates cross over, measured at 14 to 128 squared
MANY_QUERIES = 1024  # on a GPU, with gradients; measured at 14, 28 and 56 squared


def agent_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, agents: Tensor, scale: float,
    bias_in: Tensor | None = None, bias_out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The equations, operator by operator."""
    gathered = attention_reference(agents, k, v, scale, bias_in)
    return attention_reference(q, agents, gathered, scale, bias_out)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, agents: Tensor, scale: float,
    bias_in: Tensor | None = None, bias_out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    q, k, v, agents = (_adjacent(t) for t in (q, k, v, agents))
    return _attend(q, agents, _attend(agents, k, v, scale, bias_in), scale, bias_out)


def _adjacent(x: Tensor) -> Tensor:
    """``x`` with the channels of a head next to each other in memory, which the fused kernel needs."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    mask = None if bias is None else bias.to(q.dtype).expand(*q.shape[:3], k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _fused_unsupported(
    q: Tensor, k: Tensor, v: Tensor, agents: Tensor, scale: float,
    bias_in: Tensor | None = None, bias_out: Tensor | None = None,
) -> str | None:  # fmt: skip
    if q.device.type == "cuda":
        return _slow_on_cuda(q, k, v, bias_in, bias_out)
    if q.device.type != "cpu":
        return None
    if agents.shape[2] < MANY_AGENTS:
        return "the fused kernel of the CPU takes longer than plain products for so few agents"
    if q.stride(-1) != 1 or k.stride(-1) != 1 or v.stride(-1) != 1:
        return "the fused kernel needs head channels to be adjacent in memory (channels-last)"
    if wants_gradient(bias_in, bias_out):
        return "the fused kernel of the CPU gives a bias no gradient"
    return None


def _slow_on_cuda(q: Tensor, *others: Tensor | None) -> str | None:
    if q.dtype == torch.float32:
        return "in float32 plain products are as fast on a GPU, and two to three times with gradients"
    if q.shape[2] > MANY_QUERIES and wants_gradient(q, *others):
        return f"with gradients plain products are faster on a GPU from {MANY_QUERIES} queries on"
    return None


def _channel_major(
    q: Tensor, k: Tensor, v: Tensor, agents: Tensor, scale: float,
    bias_in: Tensor | None = None, bias_out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    agents = agents * scale  # (B, heads, n, D)
    logits = agents @ k.transpose(2, 3)  # (B, heads, n, M)
    logits = logits if bias_in is None else logits + bias_in
    gathered = v.transpose(2, 3) @ logits.softmax(dim=-1).transpose(2, 3)  # (B, heads, D, n)
    logits = agents @ q.transpose(2, 3)  # (B, heads, n, N)
    logits = logits if bias_out is None else logits + bias_out.transpose(-2, -1)
    return (gathered @ logits.softmax(dim=2)).transpose(2, 3)


def _channel_major_unsupported(
    q: Tensor, k: Tensor, v: Tensor, agents: Tensor, scale: float,
    bias_in: Tensor | None = None, bias_out: Tensor | None = None,
) -> str | None:  # fmt: skip
    if q.device.type != "cpu":
        return "other devices have the fused kernel"
    if q.stride(-1) == 1 and agents.shape[2] > FEW_AGENTS:
        return "head channels that are adjacent in memory (channels-last) would be transposed"
    return None


def bench_inputs(side: int, heads: int, dim: int = 64, batch: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments: side x side positions and 7 x 7 agents with both biases."""
    count, width = side * side, dim // heads
    q, k, v = (torch.randn(batch, heads, count, width) for _ in range(3))
    agents = torch.randn(batch, heads, 49, width)
    biases = {"bias_in": torch.randn(heads, 49, count), "bias_out": torch.randn(heads, count, 49)}
    return (q, k, v, agents, width**-0.5), biases


AGENT_ATTENTION_OP = Op(
    "agent_attention",
    agent_attention_reference,
    (
        Candidate("sdpa", _fused, _fused_unsupported),
        Candidate("channel_major", _channel_major, _channel_major_unsupported),
    ),
    bench_inputs,
)


@register_notrace_function
def agent_attention(
    q: Tensor, k: Tensor, v: Tensor, agents: Tensor, scale: float,
    bias_in: Tensor | None = None, bias_out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Agent attention by the fastest implementation that applies; see the module's docstring for shapes."""
    return AGENT_ATTENTION_OP(q, k, v, agents, scale, bias_in, bias_out)
