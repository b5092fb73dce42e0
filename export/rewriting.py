"""Writing a model's functions as others while it is captured, for converters that know fewer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
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


def adaptive_max_pool2d(x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """The greatest of each cell by plain pooling or by rows and columns of cells, where sizes are known."""
    sides = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    sides = [side if wanted is None else wanted for wanted, side in zip(sides, x.shape[-2:], strict=True)]
    if return_indices or not all(isinstance(n, int) for n in (*sides, *x.shape[-2:])):
        pool: Any = F.adaptive_max_pool2d
        return pool(x, output_size, return_indices)
    if not any(side % wanted for wanted, side in zip(sides, x.shape[-2:], strict=True)):
        return F.max_pool2d(x, [side // wanted for wanted, side in zip(sides, x.shape[-2:], strict=True)])
    for axis, wanted in zip((-2, -1), sides, strict=True):
        side = x.shape[axis]
        ends = [(i * side // wanted, -(-(i + 1) * side // wanted)) for i in range(wanted)]
        x = torch.cat([x.narrow(axis, at, end - at).amax(axis, keepdim=True) for at, end in ends], axis)
    return x


CAPTURED: Mapping[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: attention,
    F.adaptive_max_pool2d: adaptive_max_pool2d,
}
