"""Tables of eight bits in ExecuTorch: what XNNPACK joins them with, and roundings that compute nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mixzoo.export import get_target
from mixzoo.export.capture import Capture
from mixzoo.export.precision import Precision
from mixzoo.export.runtimes.executorch_eight import without_joined_tables
from support import image, rel_err
from torch import Tensor, nn

TARGET = get_target("executorch")
pytestmark = pytest.mark.skipif(bool(TARGET.unavailable()), reason=str(TARGET.unavailable()))
STEP = 0.1  # relative: one or two steps of eight bits here


def rounded(x: Tensor, step: float) -> Tensor:
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  # its operators

    bits = (step, 3, -128, 127, torch.int8)
    library = torch.ops.quantized_decomposed
    return library.dequantize_per_tensor(library.quantize_per_tensor(x, *bits), *bits)


def elsewhere(x: Tensor) -> Tensor:
    """``x`` of eight bits, from outside of XNNPACK's part."""
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    bits = (0.05, 3, -128, 127, torch.int8)
    library = torch.ops.quantized_decomposed
    return library.dequantize_per_tensor(library.quantize_per_tensor(x, *bits).flip(1), *bits)


def act(x: Tensor) -> Tensor:
    return rounded(torch.sigmoid(rounded(x, 0.06)), 0.06)


GRAPHS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: rounded(elsewhere(x) + act(x), 0.07),
    "product": lambda x: rounded(elsewhere(x) * act(x), 0.07),
    "two tables": lambda x: rounded(act(elsewhere(x)) + rounded(act(x).tanh(), 0.05), 0.07),
    "another step": lambda x: rounded(elsewhere(x) + rounded(rounded(x, 0.06), 0.066), 0.07),
    "the same step": lambda x: rounded(elsewhere(x) + rounded(rounded(x, 0.06), 0.06), 0.07),
    "a copy": lambda x: rounded(elsewhere(x) + rounded(rounded(x, 0.06).clone(), 0.06), 0.07),
}


class Graph(nn.Module):
    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


@pytest.mark.parametrize("name", GRAPHS)
def test_sums_with_tables_are_those_of_the_graph(name: str, tmp_path: Path) -> None:
    module, x = Graph(GRAPHS[name]), image((1, 8, 8, 8)).float()
    TARGET.export(Capture(module, x, (), {}).at(Precision()), tmp_path / "file.pte", {})
    runner = TARGET.load(tmp_path / "file.pte", threads=1)
    found = torch.from_numpy(runner.outputs(x.numpy())[0])
    assert rel_err(found, module(x)) < STEP < rel_err(found.flip(2), module(x))


def roundings(compute: Callable[[Tensor], Tensor]) -> int:
    program = torch.export.export(Graph(compute), (image((1, 8, 8, 8)).float(),))
    nodes = without_joined_tables(program).graph.nodes
    return sum(str(node.target).startswith("quantized_decomposed.quantize_per_tensor") for node in nodes)


def test_what_meets_no_other_tensor_stays_rounded() -> None:
    weight = torch.ones(8, 8, 1, 1)
    assert roundings(lambda x: rounded(torch.conv2d(act(x), weight), 0.05)) == 3
    assert roundings(lambda x: act(rounded(act(x), 0.05))) == 5
    assert roundings(lambda x: elsewhere(x) + rounded(torch.conv2d(x, weight), 0.05)) == 2
    assert roundings(lambda x: elsewhere(x) + rounded(torch.conv2d(rounded(x, 0.06), weight).relu(), 0.05)) == 3
    assert roundings(lambda x: elsewhere(x) + act(x)) == 2
    assert roundings(lambda x: rounded(rounded(x, 0.05), 0.05)) == 1
    assert roundings(lambda x: rounded(rounded(x, 0.05), 0.06)) == 2
