"""Post-training static quantisation by NNCF, OpenVINO's own: layers, and what joins them, compute in 8 bits.

Where layers have to stay in float, sums, products, means and norms of activations do too: layers with weights alone are
left in 8 bits.

Activations have one range each, not one per channel as NNCF gives them before depthwise convolutions: with those the
CPU plugin (2026.4) leaves out the scales behind a 1x1 convolution of a single position where the batch is open. The
range is the mean over the images, or reaches to the least and greatest value of all where their sizes differ.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from ...zoo.extras import require
from ..capture import quiet
from ..errors import ExportError
from ..precision import Precision
from .signal_stack import kept_signal_stack

_BETWEEN = ("Add", "Subtract", "Multiply", "Divide", "GroupNormalization", "MVN", "ReduceMean")
_LAYERS = ("Convolution", "GroupConvolution", "MatMul")


def quantise(model: Any, program: ExportedProgram, precision: Precision, images: Sequence[Tensor]) -> Any:
    """A copy of ``model`` in 8 bits.

    Args:
        model: converted from ``program``.
        program: knows which module each layer comes from.
        precision: says which layers stay in float.
        images: inputs of the model.

    Raises:
        ExportError: no layer is left that could be quantised.
    """
    with quiet():  # it looks for compilers
        nncf = require("nncf", extra="openvino")
        from nncf.quantization import advanced_parameters, range_estimator
    paths = layer_paths(model, program)
    kept = [name for name, path in paths.items() if path is not None and precision.keeps(path)]
    if len(kept) == sum(path is not None for path in paths.values()):
        raise ExportError("no convolution or product with constant weights is left to quantise")
    ignored = {}
    if precision.keep:
        products = [name for name, path in paths.items() if path is None]
        ignored = {"ignored_scope": nncf.IgnoredScope(names=[*kept, *products], types=list(_BETWEEN), validate=False)}
    data = nncf.Dataset([image.numpy() for image in images])
    estimators = range_estimator.RangeEstimatorParametersSet
    sizes = {image.shape[2:] for image in images}
    settings = nncf.AdvancedQuantizationParameters(
        activations_quantization_params=advanced_parameters.QuantizationParameters(per_channel=False),
        activations_range_estimator_params=estimators.MINMAX if len(sizes) > 1 else estimators.MEAN_MINMAX,
    )
    with quiet(), _hushed(nncf), kept_signal_stack():
        return nncf.quantize(
            *(model, data),
            subset_size=len(images),
            target_device=nncf.TargetDevice.CPU,
            advanced_parameters=settings,
            **ignored,
        )


def layer_paths(model: Any, program: ExportedProgram) -> dict[str, str | None]:
    """Module of every layer of a converted model, by the layer's name; None for a product of two activations.

    Operators are called after the nodes of the graph, in which the converter has taken convolutions of any kind for one
    operator: they are told apart by their order.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    convolutions = [_path(node) for node in nodes if str(node.target).startswith("aten.conv")]
    named = {node.name: _path(node) for node in nodes}
    found: dict[str, str | None] = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() not in _LAYERS:
            continue
        name = op.get_friendly_name().split("/", 1)[0]
        if not _is_constant(op.input_value(1).get_node()):
            found[op.get_friendly_name()] = None
        elif name.startswith("convolution"):
            found[op.get_friendly_name()] = convolutions[int(name.rpartition("_")[2] if "_" in name else 0)]
        else:
            found[op.get_friendly_name()] = named.get(name, "")
    return found


def _path(node: Node) -> str:
    """The innermost module that a node comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _is_constant(node: Any) -> bool:
    """Whether a tensor is a constant, whatever its layout is changed to."""
    inputs = [value.get_node() for value in node.input_values()]
    return bool(node.get_type_name() == "Constant" or (inputs and all(map(_is_constant, inputs))))


@contextlib.contextmanager
def _hushed(nncf: Any) -> Iterator[None]:
    """Silence NNCF, which logs to a handler of its own, and draws bars on a console of its own."""
    from rich.progress import Progress

    logger, start = nncf.nncf_logger if hasattr(nncf, "nncf_logger") else logging.getLogger("nncf"), Progress.start
    level = logger.level
    logger.setLevel(logging.ERROR)
    Progress.start = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        logger.setLevel(level)
        Progress.start = start  # type: ignore[method-assign]
