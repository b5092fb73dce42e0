"""Writing a model's functions as others while it is captured, for converters that know fewer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .resizing import smoothed


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


def fold(x: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
    """`torch.nn.functional.fold` as a sum of shifted parts, first over rows and then over columns, of known sizes."""
    pairs = [[n, n] if isinstance(n, int) else list(n) for n in (output_size, kernel_size, dilation, padding, stride)]
    if not all(isinstance(n, int) for pair in (*pairs, x.shape[-2:]) for n in pair):
        return F.fold(x, output_size, kernel_size, dilation, padding, stride)
    axes = list(zip(*pairs, strict=True))
    rows, columns = ((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, d, p, s in axes)
    (height, kernel, *down), (width, across, *right) = axes
    parts = x.reshape(-1, kernel * across, rows, columns)
    lines = [_overlapped([parts[:, i * across + j] for i in range(kernel)], 1, height, *down) for j in range(across)]
    lead = (-1,) if x.ndim == 3 else ()
    return _overlapped(lines, 2, width, *right).reshape(*lead, x.shape[-2] // (kernel * across), height, width)


def _overlapped(parts: Sequence[Tensor], axis: int, side: int, dilation: int, padding: int, stride: int) -> Tensor:
    """Sum of ``parts`` of three axes; position o of part i goes to o * stride + i * dilation - padding of ``side``."""
    count = -(-(side + 2 * padding) // stride)
    behind = (0, 0) * (2 - axis)
    sums: dict[int, Tensor] = {}  # of every stride-th position, as far apart as positions of parts are
    for i, part in enumerate(parts):
        first, phase = divmod(i * dilation, stride)
        shifted = F.pad(part, (*behind, first, count - first - part.shape[axis]))
        sums[phase] = sums[phase] + shifted if phase in sums else shifted
    if stride == 1:
        return sums[0].narrow(axis, padding, side)
    nothing = torch.zeros_like(sums[0]) if len(sums) < stride else sums[0]
    whole = torch.stack([sums.get(phase, nothing) for phase in range(stride)], axis + 1).flatten(axis, axis + 1)
    return whole.narrow(axis, padding, side)


CAPTURED: Mapping[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: attention,
    F.adaptive_max_pool2d: adaptive_max_pool2d,
    F.fold: fold,
    F.interpolate: smoothed,
}
