"""Softmax attention: ``softmax(q k^T * scale + bias) v`` over the last two axes.

Shapes: q (..., N, D), k (..., M, D), v (..., M, E), bias broadcastable to (..., N, M); result (..., N, E).
Time O(N M (D + E)); memory O(N M) for the reference, O(N + M) for the fused candidate.
Source: Vaswani et al., arXiv:1706.03762.
"""

from __future__ import annotations

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


_attention = Op("attention", attention_reference, (Candidate("sdpa", _fused, _fused_unsupported),))


@register_notrace_function
def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Softmax attention by the fastest implementation that applies; see the module's docstring for shapes."""
    return _attention(q, k, v, scale, bias)
