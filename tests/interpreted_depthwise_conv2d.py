"""The Triton kernels of large depthwise convolutions on the CPU: `test_kernel_depthwise_conv2d.py` runs this."""

from __future__ import annotations

import pytest
import torch
from mixzoo.kernels.depthwise_conv2d import DEPTHWISE_CONV2D_OP, depthwise_conv2d_reference
from support import rel_err, tolerances
from test_kernel_depthwise_conv2d import TOLERANCE, arguments
from torch import Tensor

TRITON = next(c.run for c in DEPTHWISE_CONV2D_OP.candidates if c.name == "triton")
# batch, channels, height, width, kernel side, dilation: smaller than the kernel, one position, several tiles of both
CASES = ((1, 1, 14, 14, 31, 1), (3, 2, 7, 7, 15, 1), (1, 2, 37, 70, 15, 1), (1, 1, 20, 33, 17, 3), (3, 1, 1, 1, 7, 1))


@pytest.fixture(autouse=True)
def fresh_memory_is_nan() -> None:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()


def outputs_and_gradients(case: tuple[int, ...], dtype: torch.dtype, bias: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The kernels', and the reference's in float64 on the same rounded numbers."""
    mine = arguments(case, dtype)[: 3 if bias else 2]
    exact = [a.detach().double().requires_grad_() for a in mine]
    found = []
    for run, tensors in ((TRITON, mine), (depthwise_conv2d_reference, exact)):
        out = run(*tensors[:2], tensors[2] if bias else None, case[-1])
        probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(dtype).to(out.dtype)
        found.append([out, *torch.autograd.grad(out, tensors, probe)])
    return found[0], found[1]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_every_type(dtype: torch.dtype) -> None:
    for got, want in zip(*outputs_and_gradients(CASES[1], dtype, bias=True), strict=True):
        assert got.dtype == dtype and rel_err(got, want) <= TOLERANCE[dtype]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_shape(case: tuple[int, ...]) -> None:
    for got, want in zip(*outputs_and_gradients(case, torch.float32, bias=case[0] == 1), strict=True):
        assert rel_err(got, want) <= 2 * TOLERANCE[torch.float32]


def test_a_moved_tap_is_seen() -> None:
    x, weight, bias = (a.detach() for a in arguments(CASES[2], torch.float32))
    expected = depthwise_conv2d_reference(x, weight, bias)
    for wrong in (weight.roll(1, 3), weight.roll(1, 2), weight.flip(3), weight.mT):
        assert rel_err(TRITON(x, wrong, bias), expected) > 1e-2


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    """A weight of 64 and 960 of 1 / 64, each of which half precision loses when it is added to 64."""
    x, weight = torch.ones(1, 1, 31, 31, dtype=dtype), torch.full((1, 1, 31, 31), 1 / 64, dtype=dtype)
    weight[..., 15, 15] = 64.0
    assert (weight[..., 15, 15] + weight[..., 0, 0]).item() == 64.0
    assert abs(TRITON(x, weight)[0, 0, 15, 15].item() - 79) <= 79 * tolerances()[dtype]


def test_channels_last_maps_and_no_gradient_for_what_needs_none() -> None:
    x, weight, bias = (a.detach() for a in arguments(CASES[2], torch.float32))
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(TRITON(last, weight, bias), TRITON(x, weight, bias))
    weight.requires_grad_()
    (found,) = torch.autograd.grad(TRITON(last, weight, bias).square().sum(), weight)
    (wanted,) = torch.autograd.grad(depthwise_conv2d_reference(x, weight, bias).square().sum(), weight)
    assert rel_err(found, wanted) <= 4 * TOLERANCE[torch.float32]
