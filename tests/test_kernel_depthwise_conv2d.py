"""Depthwise convolution: every candidate against PyTorch's, outputs and gradients, and when which one is taken."""

from __future__ import annotations

import mixzoo
import pytest
import torch
import torch.nn.functional as F
from interpreter import needs_triton, run_interpreted
from mixzoo.blocks.conv import BranchedConv, DepthwiseConv2d
from mixzoo.blocks.deploy import fold
from mixzoo.blocks.mixers import MIXERS
from mixzoo.kernels.depthwise_conv2d import (
    DEPTHWISE_CONV2D_OP,
    bench_inputs,
    decomposed,
    depthwise_conv2d,
    depthwise_conv2d_reference,
)
from mixzoo.kernels.precision import as_autocast
from mixzoo.zoo.fill import fill_
from support import image, rel_err, tolerances
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

# batch, channels, height, width, kernel side, dilation
CASES = (
    (1, 8, 14, 14, 31, 1), (3, 4, 7, 7, 31, 1), (1, 4, 9, 40, 21, 1), (3, 4, 33, 20, 15, 1), (1, 4, 1, 1, 7, 1),
    (1, 4, 30, 35, 7, 3), (3, 4, 7, 7, 7, 3), (1, 4, 5, 29, 9, 2), (1, 6, 11, 13, 3, 1), (1, 4, 2, 3, 5, 4),
)  # fmt: skip
TOLERANCE = tolerances(float16=2)  # sums of up to 961 products
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))


def arguments(case: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    batch, dim, height, width, side, _ = case
    shapes = ((batch, dim, height, width), (dim, 1, side, side), (dim,))
    return [image(shape, seed).div(side if seed else 1).to(dtype).requires_grad_() for seed, shape in enumerate(shapes)]


@every_dtype
@every_case
def test_outputs_and_gradients_are_the_references(case: tuple[int, ...], dtype: torch.dtype) -> None:
    """Every candidate that applies, and the op, against the reference in float64 on the same rounded numbers."""
    mine = arguments(case, dtype)
    exact = [a.detach().double().requires_grad_() for a in mine]
    expected = depthwise_conv2d_reference(*exact, case[-1])
    weight = image(expected.shape, seed=9)
    (expected * weight).sum().backward()
    applying = [c.run for c in DEPTHWISE_CONV2D_OP.candidates if c.unsupported(*mine, case[-1]) is None]
    for form in (*applying, depthwise_conv2d):
        for argument in mine:
            argument.grad = None
        out = form(*mine, case[-1])
        assert out.dtype == dtype and rel_err(out, expected.detach()) <= TOLERANCE[dtype]
        (out * weight.to(dtype)).sum().backward()
        for argument, wanted in zip(mine, exact, strict=True):
            assert rel_err(argument.grad, wanted.grad) <= 2 * TOLERANCE[dtype]


def test_a_tap_moves_the_map() -> None:
    x, kernel = image((1, 2, 6, 6)), torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    kernel[:, 0, 2, 4] = 1.0  # two taps right of the centre, three positions apart
    moved = depthwise_conv2d(x, kernel, dilation=3)
    assert not moved.any() and x.any()
    moved = depthwise_conv2d(x, kernel, dilation=2)
    assert torch.equal(moved[..., :2], x[..., 4:]) and not moved[..., 2:].any()


def test_what_runs_where() -> None:
    def taken(case: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[str]:
        reasons = DEPTHWISE_CONV2D_OP.explain(*arguments(case, dtype), case[-1])
        return [name for name, reason in reasons.items() if reason is None]

    assert taken((1, 4, 56, 56, 31, 1)) == ["channels_last"] == taken((1, 4, 56, 56, 7, 3))
    assert taken((1, 4, 14, 14, 31, 1)) == ["cropped", "channels_last"]
    assert taken((1, 4, 56, 56, 7, 1)) == [] == taken((1, 4, 56, 56, 5, 2)) == taken((1, 4, 16, 16, 7, 3))
    assert taken((1, 4, 56, 56, 31, 1), torch.float64) == []
    x, weight, bias = arguments((1, 4, 56, 56, 31, 1), torch.float32)
    reasons = DEPTHWISE_CONV2D_OP.explain(x.contiguous(memory_format=torch.channels_last), weight, bias)
    assert "already" in str(reasons["channels_last"]) and "position" in str(reasons["cropped"])
    with pytest.raises(ValueError, match="odd"):
        depthwise_conv2d(x, weight[..., :30])
    args, options = bench_inputs(14, 2)
    assert args[0].shape == (1, 64, 14, 14) and depthwise_conv2d(*args, **options).shape == args[0].shape


@needs_triton
def test_reasons_against_triton() -> None:
    def reason(
        side: int, dilation: int = 1, dtype: torch.dtype = torch.float32, device: str = "cuda", train: bool = True
    ) -> str:
        with FakeTensorMode():
            x, weight = (torch.empty(s, device=device, dtype=dtype) for s in ((1, 4, 56, 56), (4, 1, side, side)))
            return str(DEPTHWISE_CONV2D_OP.explain(x.requires_grad_(train), weight, None, dilation)["triton"])

    assert reason(31) == reason(15, 2) == reason(31, dtype=torch.bfloat16) == "None"
    assert reason(31, dtype=torch.bfloat16, train=False) == "None" and "faster in float32" in reason(31, train=False)
    assert "not on cpu" in reason(31, device="cpu") and "32 bits" in reason(31, dtype=torch.float64)
    assert "left to cuDNN" in reason(13) and "96 positions" in reason(33, 3)


def test_autocast_decides_the_type_of_operands() -> None:
    """A map in half precision meets weights in float32 there, which a convolution casts."""
    half, full = torch.ones(1, dtype=torch.bfloat16), torch.ones(1)
    assert as_autocast(half, full, None) == (half, full, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert [t.dtype for t in as_autocast(half, full)] == [torch.bfloat16] * 2


@pytest.mark.slow
@needs_triton
def test_triton_interpreted() -> None:
    run_interpreted("depthwise_conv2d")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_triton_on_a_gpu(dtype: torch.dtype) -> None:
    mine = [a.detach().cuda().requires_grad_() for a in arguments((3, 64, 57, 40, 31, 1), dtype)]
    exact = [a.detach().double().requires_grad_() for a in mine]
    out, expected = DEPTHWISE_CONV2D_OP(*mine), depthwise_conv2d_reference(*exact)
    assert rel_err(out, expected) <= 4 * TOLERANCE[dtype]
    wanted = torch.autograd.grad(expected.square().sum(), exact)
    for got, want in zip(torch.autograd.grad(out.square().sum(), mine), wanted, strict=True):
        assert rel_err(got, want) <= 8 * TOLERANCE[dtype]


def test_a_large_kernel_is_decomposed_into_two() -> None:
    assert decomposed(21, 3) == (5, 7) and decomposed(23, 3) == (5, 9) and decomposed(35, 5) == (9, 7)
    gate = MIXERS["large_kernel"](8, kernel_size=35, dilation=5).gate
    reach = sum(n.dilation[0] * (n.kernel_size[0] // 2) for n in (gate.conv0, gate.conv_spatial))
    assert reach >= 35 // 2
    x = torch.zeros(1, 8, 61, 61)
    x[..., 30, 30] = 1.0
    reached = fill_(gate.conv_spatial)(fill_(gate.conv0)(x)) - gate.conv_spatial(gate.conv0(torch.zeros_like(x)))
    assert int(reached.abs().sum((0, 1)).gt(0).any(0).sum()) == 2 * reach + 1


def test_the_deploy_form_is_a_plain_convolution() -> None:
    for layer in (DepthwiseConv2d(8, 7, 3), MIXERS["depthwise"](8), BranchedConv(8, 16, 7, stride=2, groups=8)):
        filled = fill_(layer.double()).eval()
        folded = fold(filled)
        x = image((2, 8, 15, 20))
        assert type(folded) is torch.nn.Conv2d and rel_err(folded(x), filled(x)) < 1e-12
        assert rel_err(mixzoo.deploy(filled)(x), filled(x)) < 1e-12


def test_the_exported_graph_has_one_open_convolution() -> None:
    layer = fill_(DepthwiseConv2d(8, 31)).eval()
    opened = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(layer, (image((2, 8, 14, 12)).float(),), dynamic_shapes=(opened,))
    assert sum("conv" in str(n.target) for n in program.graph.nodes if n.op == "call_function") == 1
    x = image((1, 8, 40, 7)).float()
    with torch.no_grad():
        exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=15, groups=8)
        assert rel_err(program.module()(x), exact) < 1e-5 and rel_err(layer(x), exact) < 1e-5
