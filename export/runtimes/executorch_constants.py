"""Graphs for ExecuTorch in which all that does not depend on the image is computed beforehand.

Left in the graph, it goes wrong in two ways that no converter tells of. What an XNNPACK part makes of constants alone,
as a mask and a bias added up, is not made anew when the batch grows from one image, and is garbage from then on. And a
weight that is made of another layer's, as that of a linear layer beside a convolution, makes one part of both: where
one layer follows the other, the part waits for its own results, and where it does not, the runtime dies reading it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ..capture import Capture
from ..constants import fold_constants


def folded(capture: Capture) -> GraphModule:
    """The graph of ``capture``, with buffers for what its input does not reach."""
    return fold_constants(capture.arithmetic())


def exported(graph: GraphModule, capture: Capture) -> torch.export.ExportedProgram:
    """``graph``, captured again as `Capture.bounded` is."""
    return torch.export.export(_Named(graph), (capture.example,), dynamic_shapes=capture.bounds())


class _Named(nn.Module):
    """A graph as ExecuTorch takes its weights.

    Their names begin with a letter, without which XNNPACK's converter does not find them again, and buffers lie in
    memory in the order of their axes, as it does not find those that it would have to copy.
    """

    def __init__(self, model: GraphModule) -> None:
        super().__init__()
        self.model = model
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.contiguous())

    def forward(self, x: Tensor) -> Any:
        return self.model.forward(x)  # no checks of the input, which refuse sizes that the graph holds for
