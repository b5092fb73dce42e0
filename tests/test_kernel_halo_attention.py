"""Halo attention against attention over all positions of the map that a window may see, and against timm's layer."""

from __future__ import annotations

import pytest
import torch
from mixzoo.blocks.mixers import HaloAttention
from mixzoo.kernels.halo_attention import HALO_ATTENTION_OP, bench_inputs, halo_attention
from mixzoo.zoo.fill import fill_
from support import LARGE_LOGITS, image, rel_err, tolerances
from timm.layers.halo_attn import HaloAttn
from torch import Tensor

SDPA = HALO_ATTENTION_OP.candidates[0]
FORMS = {"reference": HALO_ATTENTION_OP.reference, "sdpa": SDPA.run}
HEADS, DIM = 2, 6
# batch, map, window, halo
CASES = (
    (1, (16, 16), (8, 8), 3),
    (3, (9, 14), (4, 3), 2),
    (1, (5, 12), (5, 4), 1),
    (3, (1, 6), (1, 4), 2),
    (1, (7, 13), (2, 2), 3),
    (1, (12, 8), (4, 4), 0),
)
TOLERANCE = tolerances(**LARGE_LOGITS)
every_form = pytest.mark.parametrize("form", FORMS)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
Case = tuple[int, tuple[int, int], tuple[int, int], int]


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    batch, size, (h, w), halo = case
    generator = torch.Generator().manual_seed(batch * 1000 + size[0] * 50 + size[1])
    qkv = torch.randn(batch, 3 * HEADS * DIM, *size, generator=generator, dtype=torch.float64)
    bias = torch.randn(HEADS, h * w, (h + 2 * halo) * (w + 2 * halo), generator=generator, dtype=torch.float64)
    return qkv * 2, bias


def truth(qkv: Tensor, window: tuple[int, int], halo: int, bias: Tensor | None) -> Tensor:
    """Softmax over all positions of the map; those that a query's window does not see are left out."""
    batch, _, height, width = qkv.shape
    (h, w), size = window, (height, width)
    q, k, v = qkv.flatten(2).unflatten(1, (3, HEADS, DIM)).transpose(3, 4).unbind(1)
    y, x = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    key_y, key_x = y - (y // h * h)[:, None] + halo, x - (x // w * w)[:, None] + halo  # within the query's window
    seen = (key_y >= 0) & (key_y < h + 2 * halo) & (key_x >= 0) & (key_x < w + 2 * halo)
    logits = q @ k.transpose(2, 3) * DIM**-0.5
    if bias is not None:
        query = (y % h * w + x % w)[:, None].expand_as(seen)
        logits = logits + bias[:, query, (key_y * (w + 2 * halo) + key_x) * seen]
    out = logits.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    return out.transpose(2, 3).reshape(batch, HEADS * DIM, *size)


@every_dtype
@every_case
@every_form
def test_outputs(form: str, case: Case, dtype: torch.dtype) -> None:
    _, size, window, halo = case
    qkv, bias = (t.to(dtype) for t in inputs(case))
    expected = truth(qkv.double(), window, halo, bias.double())
    for memory in (torch.contiguous_format, torch.channels_last):
        out = FORMS[form](qkv.contiguous(memory_format=memory), HEADS, window, halo, DIM**-0.5, bias)
        assert out.shape[2:] == size and out.dtype == dtype and rel_err(out, expected) <= TOLERANCE[dtype]


@every_dtype
@every_case
@every_form
def test_gradients(form: str, case: Case, dtype: torch.dtype) -> None:
    _, _, window, halo = case
    tensors = [t.to(dtype).requires_grad_() for t in inputs(case)]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = truth(exact[0], window, halo, exact[1])
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = FORMS[form](tensors[0], HEADS, window, halo, DIM**-0.5, tensors[1])
    wanted = torch.autograd.grad(expected, exact, grad)
    for found, gradient in zip(torch.autograd.grad(out, tensors, grad.to(dtype)), wanted, strict=True):
        assert rel_err(found, gradient) <= 4 * TOLERANCE[dtype]


@every_form
def test_without_bias_and_what_would_be_wrong(form: str) -> None:
    qkv, bias = inputs(CASES[1])
    plain = truth(qkv, (4, 3), 2, None)
    assert rel_err(FORMS[form](qkv, HEADS, (4, 3), 2, DIM**-0.5), plain) < 1e-12
    assert rel_err(FORMS[form](qkv, HEADS, (4, 3), 1, DIM**-0.5), plain) > 1e-2
    assert rel_err(FORMS[form](qkv, HEADS, (4, 3), 2, DIM**-0.5, bias), plain) > 1e-2


def test_timm_agrees_inside_the_map() -> None:
    """timm's layer lets zeros outside the map take part, and has position terms, which are zero here."""
    theirs = fill_(HaloAttn(32, num_heads=2, block_size=4, halo_size=2, qkv_bias=False).double()).eval()
    ours = fill_(HaloAttention(32, num_heads=2, window=4, halo=2).double()).eval()
    with torch.no_grad():
        for name, parameter in (*theirs.named_parameters(), *ours.named_parameters()):
            if "rel" in name or "bias" in name:
                parameter.zero_()
        kv = theirs.kv.weight.unflatten(0, (2, 2, 16))  # heads, keys and values, channels
        ours.qkv.weight.copy_(torch.cat((theirs.q.weight, kv[:, 0].flatten(0, 1), kv[:, 1].flatten(0, 1))))
        ours.proj.weight.copy_(torch.eye(32, dtype=torch.float64)[..., None, None])
        x = image((2, 32, 12, 12))
        out, expected = ours(x)[..., 4:8, 4:8], theirs(x)[..., 4:8, 4:8]
        assert rel_err(out, expected) < 1e-12 < rel_err(ours(x.flip(3))[..., 4:8, 4:8], expected)


def test_the_bias_is_by_offset() -> None:
    """A bias that grows with the column of the offset sees a map and its mirror image alike, once it is mirrored."""
    module = fill_(HaloAttention(16, num_heads=2, window=4, halo=1).double()).eval()
    mirrored = fill_(HaloAttention(16, num_heads=2, window=4, halo=1).double()).eval()
    x = image((1, 16, 8, 12))
    with torch.no_grad():
        mirrored.bias.table.copy_(module.bias.table.flip(2))
        assert rel_err(mirrored(x.flip(3)).flip(3), module(x)) < 1e-12
        assert rel_err(module(x.flip(3)).flip(3), module(x)) > 1e-6


def test_reasons() -> None:
    qkv, bias = torch.zeros(1, 96, 96, 96), torch.zeros(2, 16, 64)
    assert HALO_ATTENTION_OP.explain(qkv, 2, (4, 4), 2, 1.0, bias) == {"sdpa": None}
    assert "few" in str(SDPA.unsupported(qkv[..., :8], 2, (4, 4), 2, 1.0, bias))
    assert "gradient" in str(SDPA.unsupported(qkv, 2, (4, 4), 2, 1.0, bias.requires_grad_()))


def test_bench_inputs_run() -> None:
    args, kwargs = bench_inputs(16, 4)
    assert halo_attention(*args, **kwargs).shape == (1, 64, 16, 16)
