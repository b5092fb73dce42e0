"""What each MIL operator computes, in PyTorch: from the operator definitions of coremltools for iOS 15 and 16.

An operator is a function of its `Arguments`. A mode that is not followed here raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .coreml_arguments import Arguments, Operator, axes_of, last_first
from .coreml_moves import MOVES
from .coreml_recurrent import RECURRENT

# elementwise


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda a: function(a["x"])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda a: function(a["x"], a["y"])


def _real_div(a: Arguments) -> Tensor:
    if not a["x"].is_floating_point():
        raise NotImplementedError("a real division of integers")
    return a["x"] / a["y"]


def _gelu(a: Arguments) -> Tensor:
    mode = a.plain("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return a["x"] * torch.sigmoid(1.702 * a["x"])
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise NotImplementedError(f"mode {mode}")
    return F.gelu(a["x"], approximate="none" if mode == "EXACT" else "tanh")


def _clamped_relu(a: Arguments) -> Tensor:
    x, beta = a["x"], a["beta"]
    return torch.minimum(torch.where(x >= 0, x, a["alpha"] * x), beta)


def _softplus_parametric(a: Arguments) -> Tensor:
    """alpha_c * log(1 + exp(beta_c * x_c))"""
    shape = (1, -1, *(1,) * (a["x"].ndim - 2))
    return a["alpha"].reshape(shape) * torch.logaddexp(a["beta"].reshape(shape) * a["x"], torch.zeros(()))


def _cast(a: Arguments) -> Tensor:
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "int32": torch.int32, "bool": torch.bool}
    whole = {"int16": torch.int16, "uint16": torch.uint16}
    if (kind := a.plain("dtype")) in whole and not bool((a["x"].long() == a["x"].to(whole[kind]).long()).all()):
        raise NotImplementedError(f"a cast to {kind} of what it does not hold")
    if kind not in kinds | whole:
        raise NotImplementedError(f"a cast to {kind}")
    return a["x"].to((kinds | whole)[kind])


def _along(parameter: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar, or a vector so that it meets ``axis`` of ``x``."""
    if parameter.ndim == 0 or axis is None:
        return parameter
    return parameter.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def _quantize(a: Arguments) -> Tensor:
    x, axis, kind = a["input"], a.plain("axis"), {"int8": torch.int8, "uint8": torch.uint8}[a.plain("output_dtype")]
    steps = (x / _along(a["scale"], x, axis)).round()
    steps = steps + _along(a["zero_point"], x, axis) if a.has("zero_point") else steps
    return steps.clamp(torch.iinfo(kind).min, torch.iinfo(kind).max).to(kind)


def _dequantize(a: Arguments, name: str = "input") -> Tensor:
    steps, axis = a[name].float(), a.plain("axis")
    steps = steps - _along(a["zero_point"].float(), steps, axis) if a.has("zero_point") else steps
    return steps * _along(a["scale"], steps, axis)


# products


def _linear(a: Arguments) -> Tensor:
    return F.linear(a["x"], a["weight"], a.optional("bias"))


def _matmul(a: Arguments) -> Tensor:
    x, y = a["x"], a["y"]
    x = x.mT if a.plain("transpose_x", False) and x.ndim > 1 else x
    return x @ (y.mT if a.plain("transpose_y", False) and y.ndim > 1 else y)


def _einsum(a: Arguments) -> Tensor:
    return torch.einsum(a.plain("equation"), *a.all("values"))


# windows


def _window_pad(a: Arguments, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Elements before and after each spatial axis: [before_0, after_0, before_1, ...]."""
    kind = a.plain("pad_type", "valid")
    if kind == "valid":
        return [0] * 2 * len(kernel)
    if kind == "custom":
        return list(a.plain("pad", [0] * 2 * len(kernel)))
    if kind not in ("same", "same_lower"):
        raise NotImplementedError(f"pad_type {kind}")
    spans = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    if any(s > 1 for s in strides) or any(span % 2 for span in spans):
        raise NotImplementedError(f"pad_type {kind}, whose two definitions differ with strides or even kernels")
    return [half for span in spans for half in (span // 2, span // 2)]


def _conv(a: Arguments) -> Tensor:
    x, weight = a["x"], a["weight"]
    axes = x.ndim - 2
    strides, dilations = a.plain("strides", [1] * axes), a.plain("dilations", [1] * axes)
    x = F.pad(x, last_first(_window_pad(a, weight.shape[2:], strides, dilations)))
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return function(x, weight, a.optional("bias"), strides, 0, dilations, a.plain("groups", 1))


def _conv_transpose(a: Arguments) -> Tensor:
    x, weight = a["x"], a["weight"]
    axes = x.ndim - 2
    if (kind := a.plain("pad_type", "valid")) not in ("valid", "custom"):
        raise NotImplementedError(f"pad_type {kind}")
    pad = a.plain("pad", [0] * 2 * axes) if kind == "custom" else [0] * 2 * axes
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    whole = [a.plain(name, [1] * axes) for name in ("strides", "dilations")]
    y = function(x, weight, a.optional("bias"), whole[0], 0, 0, a.plain("groups", 1), whole[1])
    y = F.pad(y, [-n for n in last_first(pad)])  # what a convolution pads its input with, its transpose cuts off
    if (shape := a.plain("output_shape")) is not None and shape != list(y.shape):
        raise NotImplementedError(f"output_shape {shape}, which differs from {list(y.shape)}")
    return y


def _pool(a: Arguments) -> tuple[Tensor, list[int], list[int], list[int], list[int]]:
    """Input, kernel, strides, padding, and what ceil_mode lets the last windows go beyond it, on every axis."""
    kernel = a.plain("kernel_sizes")
    strides = a.plain("strides", [1] * len(kernel))
    pad = _window_pad(a, kernel, strides, [1] * len(kernel))
    beyond = [0] * len(kernel)
    if a.plain("ceil_mode", False):
        ends = zip(a["x"].shape[2:], pad[::2], pad[1::2], kernel, strides, strict=True)
        beyond = [_beyond(side + before, after, k, s, padded=before + after > 0) for side, before, after, k, s in ends]
    return a["x"], kernel, strides, last_first(pad), beyond


def _beyond(reach: int, after: int, kernel: int, stride: int, padded: bool) -> int:
    """Positions past the padding that the last window of a pool in ceil_mode covers, by the definition in MIL.

    Args:
        reach: positions of the input and of the padding before it.
        after: padding after it.
        padded: whether there is padding at all; then no window may begin past ``reach``.
    """
    windows = -(-(reach + after - kernel) // stride) + 1
    if padded and (windows - 1) * stride >= reach:
        windows -= 1
    return max(0, (windows - 1) * stride + kernel - reach - after)


def _max_pool(a: Arguments) -> Tensor:
    x, kernel, strides, pad, beyond = _pool(a)
    pad = [n + beyond[-1 - i // 2] if i % 2 else n for i, n in enumerate(pad)]
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    return function(F.pad(x, pad, value=float("-inf")), kernel, strides)


def _avg_pool(a: Arguments) -> Tensor:
    x, kernel, strides, pad, beyond = _pool(a)
    if any(beyond):
        raise NotImplementedError("ceil_mode with windows that go beyond the input: MIL does not tell their divisor")
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    mean = function(F.pad(x, pad), kernel, strides)
    if not a.plain("exclude_padding_from_average", False) or not any(pad):
        return mean
    inside = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype)
    return mean / function(F.pad(inside, pad), kernel, strides)


# norms and reductions


def _reduce(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Operator:
    return lambda a: function(a["x"], axes_of(a), a.plain("keep_dims", False))


def _integral(function: Callable[[Tensor, int, bool], Tensor]) -> Operator:
    return lambda a: function(a["x"], a.plain("axis", -1), a.plain("keep_dims", False)).to(torch.int32)


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _channels(parameter: Tensor | None, rank: int, default: float) -> Tensor | float:
    """(C,) so that it meets the second axis."""
    return default if parameter is None else parameter.reshape(1, -1, *(1,) * (rank - 2))


def _batch_norm(a: Arguments) -> Tensor:
    x = a["x"]
    mean, variance = _channels(a["mean"], x.ndim, 0), _channels(a["variance"], x.ndim, 1)
    scaled = (x - mean) / (variance + a.plain("epsilon", 1e-5)) ** 0.5
    return scaled * _channels(a.optional("gamma"), x.ndim, 1) + _channels(a.optional("beta"), x.ndim, 0)


def _standardize(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + epsilon).sqrt()


def _instance_norm(a: Arguments) -> Tensor:
    x = a["x"]
    scaled = _standardize(x, tuple(range(2, x.ndim)), a.plain("epsilon", 1e-5))
    return scaled * _channels(a.optional("gamma"), x.ndim, 1) + _channels(a.optional("beta"), x.ndim, 0)


def _layer_norm(a: Arguments) -> Tensor:
    x, axes = a["x"], axes_of(a)
    shape = [side if axis in axes else 1 for axis, side in enumerate(x.shape)]
    scaled = _standardize(x, axes, a.plain("epsilon", 1e-5))
    scaled = scaled * a["gamma"].reshape(shape) if a.has("gamma") else scaled
    return scaled + a["beta"].reshape(shape) if a.has("beta") else scaled


def _l2_norm(a: Arguments) -> Tensor:
    squares = a["x"].square().sum((-3, -2, -1), keepdim=True)
    return a["x"] / (squares + a.plain("epsilon", 1e-6)).sqrt()


OPERATORS: dict[str, Operator] = {
    **{name: _binary(getattr(torch, name)) for name in ("add", "sub", "mul", "maximum", "minimum", "greater", "less")},
    **{name: _binary(getattr(torch, name)) for name in ("greater_equal", "less_equal", "not_equal", "pow")},
    **{name: _binary(getattr(torch, name)) for name in ("logical_and", "logical_or", "logical_xor")},
    "equal": _binary(torch.eq),
    "floor_div": _binary(torch.floor_divide),
    "mod": _binary(torch.remainder),
    "real_div": _real_div,
    **{name: _unary(getattr(torch, name)) for name in ("abs", "ceil", "cos", "erf", "exp", "floor", "sin", "sqrt")},
    **{name: _unary(getattr(torch, name)) for name in ("square", "tanh", "sign", "round", "logical_not", "exp2")},
    **{name: _unary(getattr(F, name)) for name in ("relu", "relu6", "silu", "softplus", "softsign", "sigmoid")},
    "identity": _unary(lambda x: x),
    "rsqrt": lambda a: (a["x"] + a.plain("epsilon", 1e-12)).rsqrt(),
    "inverse": lambda a: (a["x"] + a.plain("epsilon", 1e-4)).reciprocal(),
    "log": lambda a: (a["x"] + a.plain("epsilon", 1e-45)).log(),
    "clip": lambda a: a["x"].clamp(a.plain("alpha"), a.plain("beta")),
    "threshold": lambda a: a["x"].clamp(min=a.plain("alpha")),
    "thresholded_relu": lambda a: torch.where(a["x"] >= a.plain("alpha"), a["x"], 0.0),
    "clamped_relu": _clamped_relu,
    "elu": lambda a: F.elu(a["x"], a.plain("alpha")),
    "leaky_relu": lambda a: F.leaky_relu(a["x"], a.plain("alpha")),
    "prelu": lambda a: F.prelu(a["x"], a["alpha"]),
    "linear_activation": lambda a: a["x"] * a["alpha"] + a["beta"],
    "sigmoid_hard": lambda a: (a["x"] * a["alpha"] + a["beta"]).clamp(0, 1),
    "softplus_parametric": _softplus_parametric,
    "gelu": _gelu,
    "cast": _cast,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "constexpr_affine_dequantize": lambda a: _dequantize(a, "quantized_data"),
    "select": lambda a: torch.where(a["cond"], a["a"], a["b"]),
    "linear": _linear,
    "matmul": _matmul,
    "einsum": _einsum,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "softmax": lambda a: a["x"].softmax(a.plain("axis", -1)),
    "reduce_mean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
    "reduce_sum": _reduce(lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype)),
    "reduce_max": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
    "reduce_min": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
    "reduce_prod": _reduce(_prod),
    "reduce_l1_norm": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "reduce_l2_norm": _reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "reduce_sum_square": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "reduce_log_sum_exp": _reduce(lambda x, axes, keep: x.logsumexp(axes, keep)),
    "reduce_argmax": _integral(torch.argmax),
    "reduce_argmin": _integral(torch.argmin),
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "l2_norm": _l2_norm,
    **MOVES,
    **RECURRENT,
}
