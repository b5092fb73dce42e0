"""The adaptive frequency filter by fast transforms against the same in real matrix products, outputs and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from mixzoo.blocks.mixers import MIXERS
from mixzoo.kernels.frequency_filter import (
    FREQUENCY_FILTER_OP,
    bench_inputs,
    frequency_filter,
    frequency_filter_reference,
    real_inverse,
    real_spectrum,
)
from mixzoo.zoo.fill import fill_
from support import image, rel_err, tolerances
from torch import Tensor

# batch, channels, groups, height, width
CASES = ((1, 16, 8, 7, 7), (3, 16, 2, 8, 8), (1, 24, 8, 9, 14), (3, 8, 1, 1, 5), (1, 8, 8, 6, 1), (1, 8, 4, 33, 20))
TOLERANCE = tolerances()
SIZES = ((1, 1), (1, 2), (2, 3), (5, 4), (7, 9), (16, 16), (31, 12))
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))


def arguments(case: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    batch, dim, groups, height, width = case
    part = dim // groups
    shapes = ((batch, dim, height, width), *(((2, groups, part, part), (2, groups, part)) * 2))
    return [image(shape, seed).to(dtype).requires_grad_() for seed, shape in enumerate(shapes)]


@every_dtype
@every_case
def test_outputs_and_gradients_are_the_references(case: tuple[int, ...], dtype: torch.dtype) -> None:
    """Both forms against the reference in float64 on the same rounded numbers."""
    fast = FREQUENCY_FILTER_OP.candidates[0]
    mine = arguments(case, dtype)
    exact = [a.detach().double().requires_grad_() for a in mine]
    weight = image((case[0], case[1], case[3], case[4]), seed=9)
    expected = frequency_filter_reference(*exact)
    (expected * weight).sum().backward()
    for form in (frequency_filter_reference, fast.run):
        for argument in mine:
            argument.grad = None
        out = form(*mine).to(dtype)
        assert rel_err(out, expected.detach()) <= TOLERANCE[dtype]
        (out * weight.to(dtype)).sum().backward()
        for argument, wanted in zip(mine, exact, strict=True):
            assert rel_err(argument.grad, wanted.grad) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_real_transforms_are_the_fourier_transforms(size: tuple[int, int]) -> None:
    x = image((2, 3, *size))
    expected = torch.fft.rfft2(x, norm="ortho")
    spectrum = real_spectrum(x)
    assert rel_err(spectrum, torch.stack((expected.real, expected.imag), dim=2)) < 1e-12
    assert rel_err(real_inverse(spectrum, size[1]), x) < 1e-12
    other = image((2, 3, 2, *spectrum.shape[3:]), seed=1)  # the spectrum of no real map: the same parts are left out
    wanted = torch.fft.irfft2(torch.complex(*other.unbind(2)), s=size, norm="ortho")
    assert rel_err(real_inverse(other, size[1]), wanted) < 1e-12


def test_the_filter_is_a_circular_convolution() -> None:
    """With a mask that does not depend on the input: a shift shifts the result, and a tone stays a tone."""
    x, w1, b1, w2, b2 = (a.detach() for a in arguments((1, 8, 2, 8, 12), torch.float64))
    fixed = (x, torch.zeros_like(w1), b1, w2, b2)
    rolled = (x.roll((2, 5), (2, 3)), *fixed[1:])
    assert rel_err(frequency_filter(*rolled), frequency_filter(*fixed).roll((2, 5), (2, 3))) < 1e-12
    tone = torch.cos(2 * math.pi * 3 * torch.arange(12, dtype=torch.float64) / 12).expand(1, 8, 8, 12)
    spectrum = torch.fft.rfft2(frequency_filter(tone, *fixed[1:]), norm="ortho").abs()
    assert spectrum[:, :, 0, 3].min() > 1e-3 > 1e-9 > spectrum.flatten(2).sum(2).max() - spectrum[:, :, 0, 3].max()


def test_small_mask_values_are_cut() -> None:
    x, *weights = (0.001 * a.detach() for a in arguments((1, 8, 2, 4, 4), torch.float64))
    assert torch.equal(frequency_filter(x, *weights), x)
    assert rel_err(frequency_filter(x, *weights, threshold=0.0), x) > 1e-9
    with torch.no_grad():
        gelu = frequency_filter(*arguments((1, 8, 2, 4, 4), torch.float64), act=F.gelu)
        assert rel_err(frequency_filter(*arguments((1, 8, 2, 4, 4), torch.float64)), gelu) > 1e-3


def test_what_runs_where() -> None:
    x = torch.empty(1, 8, 4, 4)
    assert FREQUENCY_FILTER_OP.explain(x) == {"fft": None}
    assert "meta" in str(FREQUENCY_FILTER_OP.explain(x.to("meta"))["fft"])
    args, options = bench_inputs(14, 2)
    assert args[0].shape == (1, 128, 14, 14) and frequency_filter(*args, **options).shape == args[0].shape


def test_autocast_leaves_the_mask_in_float32() -> None:
    args = [a.detach() for a in arguments((1, 16, 2, 8, 8), torch.float32)]
    expected = frequency_filter(*args)
    with torch.autocast("cpu", torch.bfloat16):
        assert rel_err(frequency_filter(*args), expected) < 1e-6


@pytest.mark.parametrize("size", ((8, 12), (7, 9)), ids=str)
def test_the_exported_graph_is_real_and_open(size: tuple[int, int]) -> None:
    """No complex number, no transform and no more than five axes; batch and size stay open."""
    mixer = fill_(MIXERS["frequency_filter"](16).double()).eval()
    opened = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(mixer, (image((2, 16, *size)),), dynamic_shapes=(opened,))
    for node in program.graph.nodes:
        assert "fft" not in str(node.target) and "complex" not in str(node.target)
        value = node.meta.get("val")
        assert not isinstance(value, Tensor) or (value.ndim <= 5 and not value.is_complex())
    for shape in ((3, 16, 8, 12), (2, 16, 7, 9), (2, 16, 15, 4)):
        x = image(shape)
        with torch.no_grad():
            assert rel_err(program.module()(x), mixer(x)) < 1e-9
