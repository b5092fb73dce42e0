"""Softmax attention: ``softmax(q k^T * scale + bias) v`` over the last two axes.

Shapes: q (..., N, D), k (..., M, D), v (..., M, E), bias broadcastable to (..., N, M); result (..., N, E).
Time O(N M (D + E)); memory O(N M), O(N + M) for the fused candidate (`scaled_dot_product_attention`). The batched
candidate, for one head, takes the scale and the bias into the first product.
Served by: the fused candidate on the CPU, CUDA and MPS, each of which has a kernel of its own behind it; the batched
one for three axes in full precision; the reference for other axes, or values of another width.
Source: Vaswani et al., arXiv:1706.03762.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from .dispatch import Candidate, Op


def attention_reference(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """The equation, operator by operator. The scale is applied to q, the smaller operand."""
    logits = (q * scale) @ k.transpose(-2, -1)  # (..., N, M)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1) @ v


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    mask = None if bias is None else bias.to(q.dtype).expand(*q.shape[:-1], k.shape[-2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _fused_unsupported(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> str | None:
    if q.ndim != 4:
        return f"the fused kernel takes (B, heads, N, D), not {q.ndim} axes"
    if q.shape[-1] != v.shape[-1]:
        return f"value width {v.shape[-1]} differs from query width {q.shape[-1]}"
    if q.stride(-1) != 1 or k.stride(-1) != 1 or v.stride(-1) != 1:
        return "the fused kernel needs head channels to be adjacent in memory (channels-last)"
    return None


def _batched(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    shape = (q.shape[0], q.shape[1], k.shape[1])
    added = q.new_zeros(1).expand(shape) if bias is None else bias.expand(shape)
    logits = torch.baddbmm(added, q, k.transpose(1, 2), beta=0 if bias is None else 1, alpha=scale)
    return torch.bmm(logits.softmax(dim=-1), v)


def _batched_unsupported(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> str | None:
    if q.ndim != 3:
        return f"the batched product takes (B, N, D), not {q.ndim} axes"
    if q.dtype not in (torch.float32, torch.float64):
        return f"scaling after the product may overflow in {q.dtype}"
    return None


def bench_inputs(side: int, heads: int, dim: int = 64, batch: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for a map of side x side tokens with ``dim`` channels."""
    q, k, v = torch.randn(3, batch, heads, side * side, dim // heads)
    return (q, k, v, (dim // heads) ** -0.5), {}


ATTENTION_OP = Op(
    "attention",
    attention_reference,
    (Candidate("sdpa", _fused, _fused_unsupported), Candidate("baddbmm", _batched, _batched_unsupported)),
    bench_inputs,
)


@register_notrace_function
def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Softmax attention by the fastest implementation that applies; see the module's docstring for shapes."""
    return ATTENTION_OP(q, k, v, scale, bias)
