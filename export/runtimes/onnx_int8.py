"""Post-training static quantisation by ONNX Runtime: layers with weights compute in 8 bits, all else stays float32.

Weights are signed, one scale per output channel; activations unsigned, one scale per tensor from the least to the
greatest value that the calibration images give. The file has QuantizeLinear and DequantizeLinear around its layers,
which a runtime fuses into products of integers; products of two activations, softmax and norms have no weights, and
stay float32.

On x86 without VNNI sums of two products saturate at 16 bits, and results are less exact than where they were verified.

Import this module only where onnx and onnxruntime are installed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from torch import Tensor

from ..errors import ExportError
from ..precision import Precision
from .onnx_graph import module_of

_TYPES = ("Conv", "Gemm", "MatMul")


class Images(CalibrationDataReader):
    """Calibration images, one call's input after the other."""

    def __init__(self, name: str, images: Sequence[Tensor]) -> None:
        self.name, self.images = name, iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input; None at the end."""
        image = next(self.images, None)
        return None if image is None else {self.name: image.numpy()}


def quantise(
    model: ModelProto, path: Path, precision: Precision, images: Sequence[Tensor], symmetric: bool = False
) -> None:
    """Write ``model`` with its layers in 8 bits.

    Args:
        model: float32; its nodes are named by `mixzoo.export.runtimes.onnx_graph`.
        path: the file to write.
        precision: says which layers stay in float.
        images: inputs of the model.
        symmetric: whether activations are signed, with zero in the middle, and biases float32, as TensorRT has them.

    Raises:
        ExportError: no layer is left that could be quantised.
    """
    layers = [node.name for node in _layers(model) if not precision.keeps(module_of(node.name))]
    if not layers:
        raise ExportError("no Conv, Gemm or MatMul with constant weights is left to quantise")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            quantize_static(
                model,
                str(path),
                Images(model.graph.input[0].name, images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_TYPES),
                per_channel=True,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=layers,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
            )
    finally:
        logging.disable(before)
    written = onnx.load(str(path))
    written.producer_name, written.producer_version = model.producer_name, model.producer_version
    onnx.save(written, str(path))


def _layers(model: ModelProto) -> list[NodeProto]:
    """The nodes that multiply with constant weights."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    return [node for node in model.graph.node if node.op_type in _TYPES and node.input[1] in constants]
