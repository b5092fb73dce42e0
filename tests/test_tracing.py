"""Whole-graph capture of every kind of backbone: torch.export, torch.jit.trace, torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from mixzoo.blocks.deploy import deploy
from mixzoo.zoo.shell import Backbone
from small import ISOTROPIC, KINDS, shallow
from support import TOLERANCE, foreign, image, rel_err
from torch import nn

EQUAL = TOLERANCE[torch.float64]
REPEATED = ("shvit_s1_distilled", "poolformerv2_s12", "identityformer_s12")  # the same operators as others
every_kind = pytest.mark.parametrize("name", [k for k in KINDS if k not in REPEATED])
SIZE = (64, 96)


def small(name: str) -> Backbone:
    return shallow(name).double()


@every_kind
def test_export_with_any_batch(name: str) -> None:
    model = small(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (image((2, 3, *SIZE)),), dynamic_shapes=({0: batch},))
    assert not foreign(program)
    with torch.no_grad():
        for count in (1, 2, 5):
            x = image((count, 3, *SIZE), seed=count)
            assert rel_err(program.module()(x), model(x)) < EQUAL
        assert rel_err(program.module()(x.flip(3)), model(x)) > 100 * EQUAL


@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.fft.rfft2(x).abs(),
        lambda x: torch.nn.functional.unfold(x, 3),
        lambda x: x.reshape(1, 3, 2, 2, 2, 2),
        lambda x: torch.complex(x, x).real,
    ],
)
def test_what_other_runtimes_lack_is_seen(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Made(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return make(x)

    assert foreign(torch.export.export(Made(), (image((1, 3, 4, 4)),)))


@pytest.mark.slow
@every_kind
def test_export_at_fixed_shape(name: str) -> None:
    model = small(name)
    x = image((1, 3, 47, 65))
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        assert rel_err(program.module()(x), model(x)) < EQUAL


@pytest.mark.slow
@every_kind
def test_jit_trace(name: str) -> None:
    model = small(name).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, which is what tracing at one size means
        traced = torch.jit.trace(model, image((1, 3, *SIZE)))
    x = image((1, 3, *SIZE), seed=1)
    assert rel_err(traced(x), model(x)) < EQUAL


@pytest.mark.parametrize("name", ISOTROPIC)
def test_jit_trace_of_the_deploy_form_of_one_stage(name: str) -> None:
    model = deploy(shallow(name)).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, image((1, 3, *SIZE)).float(), check_trace=False)
    x = image((1, 3, *SIZE), seed=1).float()
    assert rel_err(traced(x), model(x)) < TOLERANCE[torch.float32]


@pytest.mark.slow
@every_kind
def test_compile_without_graph_breaks(name: str) -> None:
    torch._dynamo.reset()
    model = small(name)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        x = image((2, 3, *SIZE))
        assert rel_err(compiled(x), model(x)) < EQUAL


@pytest.mark.slow
@pytest.mark.parametrize("name", ("shvit_s1", "efficientvit_m0", "fcaformer_l1", "caformer_s18"))
def test_compile_in_training(name: str) -> None:
    torch._dynamo.reset()
    model = small(name).train()
    x = image((2, 3, *SIZE))
    model(x).square().mean().backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="eager", dynamic=False)(x).square().mean().backward()
    worst = max(g.abs().max() for g in wanted.values())
    assert all((p.grad - wanted[n]).abs().max() <= EQUAL * worst for n, p in model.named_parameters())
