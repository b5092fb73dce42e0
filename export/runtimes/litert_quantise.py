"""Lower precision for LiteRT: its own quantiser, ai-edge-quantizer, on a float32 ``.tflite`` file.

Eight bits are static: convolutions and matrices with their weights, and what moves, pools or adds their results, take
and give integers, so that XNNPACK runs them in one piece. Norms, softmax, products of activations, divisions and
whatever else a few large values would leave no steps for, stay in float32.

Float16 is that of the weights. XNNPACK unpacks them and computes in float32, in which nothing overflows.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from ...zoo.extras import require
from ..capture import Capture, quiet
from ..errors import ExportError
from ..keeping import in_float, modules
from ..precision import Precision

Ranges = dict[str, dict[str, Any]]
_SIGNATURE, _INPUT = "serving_default", "args_0"
_WITH_WEIGHTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_IN_EIGHT_BITS = (  # those of a kernel for integers in XNNPACK
    *_WITH_WEIGHTS,
    *("ADD", "AVERAGE_POOL_2D", "MAX_POOL_2D", "RESIZE_BILINEAR"),
    *("CONCATENATION", "PAD", "RESHAPE", "SLICE", "SPLIT", "STRIDED_SLICE", "TRANSPOSE"),
)
_BITS = 8


def lowered(content: bytes, capture: Capture) -> bytes:
    """The float32 file ``content`` of ``capture`` in its precision.

    Raises:
        Exception: any, where the quantiser cannot.
    """
    with _hushed():
        require("ai_edge_quantizer", extra="litert")
        from ai_edge_quantizer.quantizer import Quantizer

        quantizer = Quantizer(content)
        prepare = _eight_bits if capture.precision.name == "int8" else _half
        ranges = prepare(quantizer, capture)
        done = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(done.quantized_model)


@contextmanager
def _hushed() -> Iterator[None]:
    """It draws progress bars."""
    with quiet(), redirect_stderr(io.StringIO()):
        yield


def _eight_bits(quantizer: Any, capture: Capture) -> Any:
    """Say what is computed in eight bits, and find the ranges of activations."""
    for operation in _IN_EIGHT_BITS:
        quantizer.add_static_config(".*", operation, activation_num_bits=_BITS, weight_num_bits=_BITS)
    for pattern in sorted(float_scopes(capture)):
        quantizer.update_quantization_recipe(pattern, "*", algorithm_key="no_quantize")
    ranges = [_ranges(quantizer, images) for images in capture.calibration()]
    if not any(ranges):
        raise ExportError("no layer is left to quantise")
    return _widest(ranges)


def _ranges(quantizer: Any, images: Tensor) -> Ranges:
    """The ranges that tensors have on some images, by the tensors' names.

    Image by image: of several the quantiser takes the first one's, and moves it by a twentieth with each of the others.
    """
    found: Ranges = quantizer.calibrate({_SIGNATURE: [{_INPUT: images.numpy()}]}, num_threads=1)
    return found


def _widest(ranges: Sequence[Ranges]) -> Ranges:
    found = {name: dict(both) for name, both in ranges[0].items()}
    for other in ranges[1:]:
        for name, both in other.items():
            for end, choose in (("min", np.minimum), ("max", np.maximum)):
                if end in both:
                    found[name][end] = choose(found[name][end], both[end])
    return found


def _half(quantizer: Any, capture: Capture) -> None:
    """Say that weights are rounded to float16, which takes no ranges."""
    from ai_edge_quantizer.qtyping import OpQuantizationConfig, TensorDataType, TensorQuantizationConfig

    config = OpQuantizationConfig(
        weight_tensor_config=TensorQuantizationConfig(num_bits=16, dtype=TensorDataType.FLOAT),
        compute_precision="FLOAT",
        explicit_dequantize=True,
    )
    for operation in _WITH_WEIGHTS:
        quantizer.update_quantization_recipe(".*", operation, config, algorithm_key="float_casting")


def float_scopes(capture: Capture) -> set[str]:
    """Patterns of the names that the file gives to what stays in float: norms, what is to be kept, and what adds to it.

    A tensor's name begins with the modules that it was made in, from the outermost to the innermost, each with its
    class and the last part of its path; that of an output is its own.
    """
    graph, precision = capture.program.graph, capture.precision
    kept = in_float(graph, precision)
    found = {pattern for node in graph.nodes if (pattern := _float_scope(node, precision, node in kept))}
    for index, maker in enumerate(graph.output_node().all_input_nodes):
        if _float_scope(maker, precision, maker in kept):
            found.add(f"(^|_)output_{index}(_|$)")
    return found


def _float_scope(node: Node, precision: Precision, kept: bool) -> str | None:
    """The pattern of names in the file that keeps ``node`` in float; None if it need not stay."""
    names, path = "", ""
    for path, kind in modules(node):
        names += ("/" if names else "") + kind + (f"_{path.rpartition('.')[2]}" if path else "")
        if precision.keeps(path) or "Norm" in kind.rpartition(".")[2]:
            return f"{re.escape(names)}[/;]"
    return f"(^|;){re.escape(names)};" if names and (kept or precision.surrounds(path)) else None
