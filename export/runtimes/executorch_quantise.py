"""Eight bits for ExecuTorch: XNNPACK's quantiser on a captured graph, by torchao's prepare and convert.

Import this module only where executorch is installed, which brings torchao.
"""

from __future__ import annotations

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from torch.fx import Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from ..capture import Capture, quiet
from ..keeping import in_float, modules
from ..precision import Precision
from .executorch_constants import exported, folded

_PRODUCTS = (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor)  # of activations: gates, scales of norms


def quantised(capture: Capture) -> torch.export.ExportedProgram:
    """The graph of ``capture`` with the weights and activations of its layers in eight bits.

    Weights have a scale for each channel, activations one. Norms stay in float, products of activations, and what
    `Precision.keep` says.

    Raises:
        Exception: any, where the quantiser cannot.
    """
    graph, precision = folded(capture), capture.precision
    kept = {node.name for node in in_float(graph.graph, precision)}
    quantiser = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    quantiser.set_filter_function(lambda node: node.name not in kept and not _in_float(node, precision))
    observed = prepare_pt2e(graph, quantiser)
    with torch.no_grad():
        for images in capture.calibration():
            observed(images)
    with quiet():
        return exported(convert_pt2e(observed), capture)


def _in_float(node: Node, precision: Precision) -> bool:
    """Whether ``node`` is inside of a norm, adds to what a module to keep gives, or scales an activation."""
    inside = modules(node)
    norm = any("Norm" in kind.rpartition(".")[2] for _, kind in inside)
    return norm or node.target in _PRODUCTS or (bool(inside) and precision.surrounds(inside[-1][0]))
