"""Writing a model's functions as others while it is captured, for converters that know fewer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Rewriting(TorchFunctionMode):
    """Calls what stands for a function in its place, as long as it is entered.

    Args:
        parts: by function, as `torch.overrides` names it (``torch.addcmul`` and ``Tensor.addcmul`` are two), what is
            called with the same arguments; inside of it nothing is replaced.
    """

    def __init__(self, parts: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.parts = parts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.parts.get(func, func)(*args, **(kwargs or {}))


def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **options: Any) -> Tensor:
    """`scaled_dot_product_attention` of four axes, which torch.onnx and others want, whatever its operands have."""
    if q.ndim == 4 or {t.ndim for t in (q, k, v)} != {q.ndim}:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, *args, **options)
    lead = q.shape[:-2]
    if attn_mask is not None:
        attn_mask = _four(attn_mask.expand(*lead, q.shape[-2], k.shape[-2]))
    out = F.scaled_dot_product_attention(_four(q), _four(k), _four(v), attn_mask, *args, **options)
    return out.reshape(*lead, *out.shape[-2:])


def _four(x: Tensor) -> Tensor:
    return x.flatten(0, -4) if x.ndim > 4 else x[(None,) * (4 - x.ndim)]


CAPTURED: Mapping[Any, Callable[..., Any]] = {F.scaled_dot_product_attention: attention}
