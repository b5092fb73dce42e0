"""The depthwise convolution with kernels per sample: every implementation, outputs and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mixzoo.kernels.dynamic_conv import (
    DYNAMIC_DEPTHWISE_CONV_OP,
    bench_inputs,
    dynamic_depthwise_conv,
    dynamic_depthwise_conv_reference,
)
from support import image, rel_err, tolerances

CASES = ((1, 4, 7, 7, 3), (3, 6, 5, 9, 3), (1, 2, 1, 1, 3), (3, 5, 8, 3, 5), (2, 3, 4, 6, 1))
TOLERANCE = tolerances(float16=2)  # gradients of kernels are sums over the map
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def arguments(case: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    b, c, height, width, side = case
    return image((b, c, height, width)).to(dtype), image((b, c, side, side), 1).to(dtype)


@every_case
def test_the_reference_is_a_convolution_of_each_sample(case: tuple[int, ...]) -> None:
    x, kernels = arguments(case, torch.float64)
    pad = case[-1] // 2
    expected = [F.conv2d(a[None], k[:, None], padding=pad, groups=case[1]) for a, k in zip(x, kernels, strict=True)]
    assert rel_err(dynamic_depthwise_conv_reference(x, kernels), torch.cat(expected)) < TOLERANCE[torch.float64]


@every_case
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("candidate", DYNAMIC_DEPTHWISE_CONV_OP.candidates, ids=lambda c: c.name)
def test_candidates_agree_in_outputs_and_gradients(candidate, case: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = arguments(case, dtype)
    assert candidate.unsupported(*inputs) is None
    found, wanted = [], []
    for run, values, kind in ((candidate.run, found, dtype), (dynamic_depthwise_conv_reference, wanted, torch.float64)):
        x, kernels = (t.to(kind).requires_grad_() for t in inputs)
        out = run(x, kernels)
        values.extend((out, *torch.autograd.grad(out.square().sum(), (x, kernels))))
    assert all(rel_err(a, b) < TOLERANCE[dtype] for a, b in zip(found, wanted, strict=True))
    if case != (1, 2, 1, 1, 3):
        assert rel_err(found[0].flip(3), wanted[0]) > TOLERANCE[dtype]


def test_channels_last_maps() -> None:
    x, kernels = arguments((2, 4, 6, 5, 3), torch.float64)
    expected = dynamic_depthwise_conv_reference(x, kernels)
    assert rel_err(dynamic_depthwise_conv(x.contiguous(memory_format=torch.channels_last), kernels), expected) < 1e-12


def test_an_unknown_batch_takes_the_reference() -> None:
    class Op(torch.nn.Module):
        def forward(self, x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
            return dynamic_depthwise_conv(x, kernels)

    batch = torch.export.Dim("batch", min=1, max=8)
    inputs = arguments((2, 4, 6, 5, 3), torch.float64)
    program = torch.export.export(Op(), inputs, dynamic_shapes=({0: batch}, {0: batch}))
    assert not [n for n in program.graph.nodes if "conv" in str(n.target)]
    other = arguments((3, 4, 6, 5, 3), torch.float64)
    assert rel_err(program.module()(*other), dynamic_depthwise_conv(*other)) < 1e-12


def test_the_benchmark_has_inputs() -> None:
    args, options = bench_inputs(9, 2)
    assert DYNAMIC_DEPTHWISE_CONV_OP(*args, **options).shape == (1, 64, 9, 9)
    assert DYNAMIC_DEPTHWISE_CONV_OP.explain(*args) == {"grouped": None}
