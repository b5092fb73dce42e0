"""Eight bits for ExecuTorch: XNNPACK's quantiser on a captured graph, by torchao's prepare and convert.

Import this module only where executorch is installed, which brings torchao.
"""

from __future__ import annotations

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from torch.fx import Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from ..capture import Capture, quiet

_PRODUCTS = (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor)  # of activations: gates, scales of norms


def quantised(capture: Capture) -> torch.export.ExportedProgram:
    """The graph of ``capture`` with the weights and activations of its layers in eight bits.

    Weights have a scale for each channel, activations one. Norms stay in float, products of activations, and what
    `Precision.keep` says.

    Raises:
        Exception: any, where the quantiser cannot.
    """
    config = get_symmetric_quantization_config(is_per_channel=True)
    quantiser = XNNPACKQuantizer().set_global(config).set_filter_function(lambda node: not _in_float(node, capture))
    observed = prepare_pt2e(capture.arithmetic(), quantiser)
    with torch.no_grad():
        for images in capture.calibration():
            observed(images)
    with quiet():
        return torch.export.export(convert_pt2e(observed), (capture.example,), dynamic_shapes=capture.bounds())


def _in_float(node: Node, capture: Capture) -> bool:
    """Whether ``node`` is inside of a norm or of a module to keep, adds to what one gives, or scales an activation."""
    precision = capture.precision
    modules = list(node.meta.get("nn_module_stack", {}).values())
    inside = any(precision.keeps(path) or "Norm" in str(kind).rpartition(".")[2] for path, kind in modules)
    return inside or node.target in _PRODUCTS or (bool(modules) and precision.surrounds(modules[-1][0]))
