"""Progressive re-parameterised batch norms: the authors' numbers, their course in training, and how they fold."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from mixzoo.blocks.channel import mlp
from mixzoo.blocks.deploy import fold
from mixzoo.blocks.mixers import MIXERS
from mixzoo.blocks.prepbn import ProgressiveRepBN, RepBN, prepbn
from mixzoo.blocks.residual import Residual
from mixzoo.zoo.fill import fill_
from support import PARITY, TOLERANCE, golden, image, official_state, rel_err
from torch import nn
from torch.utils.checkpoint import checkpoint

EQUAL = TOLERANCE[torch.float64]


def reference(name: str, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """``module`` filled as the fixture has it, its input, and every eighth channel of the authors' output."""
    meta, arrays = golden("blocks_soft")
    module.double().load_state_dict(official_state(meta[name]))
    return image(meta[name]["input"], meta[name]["seed"]), torch.from_numpy(arrays[f"{name}/out"])


@pytest.mark.parametrize(("name", "make"), (("prepbn_eval", prepbn(1000)), ("repbn", RepBN)))
def test_evaluation_is_the_authors(name: str, make: Any) -> None:
    module = make(64).eval()
    x, expected = reference(name, module)
    assert rel_err(module(x)[:, ::8], expected) <= PARITY
    assert rel_err(fold(module)(x)[:, ::8], expected) <= PARITY
    assert type(fold(module)) is nn.BatchNorm2d


def test_training_is_the_authors() -> None:
    module = prepbn(1000)(64)
    x, expected = reference("prepbn_train", module)
    module.iter.fill_(250)
    assert rel_err(module(x)[:, ::8], expected) <= PARITY
    assert rel_err(module(x)[:, ::8], expected) > 1e3 * PARITY, "the next step has less of the LayerNorm"


def test_the_layer_norm_goes_in_a_straight_line() -> None:
    module = fill_(ProgressiveRepBN(8, steps=4, ratio=0.5).double())
    module.load_state_dict(module.state_dict() | {"iter": torch.tensor(4), "total_step": torch.tensor(4)})
    x = image((3, 8, 5, 4))
    layer, batch = module.norm1(x), module.norm2.train()(x)
    for share in (0.5, 0.375, 0.25, 0.125, 0.0, 0.0):
        assert rel_err(module(x), share * layer + (1 - share) * batch) < EQUAL
    assert module.iter == 0 and module.total_step == 4
    assert rel_err(module.eval()(x), module.norm2(x)) == 0 and module.iter == 0


def test_warm_steps_leave_the_batch_norm_alone() -> None:
    module = ProgressiveRepBN(8, steps=4, warm=2)
    x = torch.randn(2, 8, 5, 4)
    for left in (1, 0):
        assert torch.equal(module(x), module.norm1(x)) and module.warm == left and module.iter == 4
        assert module.norm2.bn.num_batches_tracked == 0
    module(x)
    assert module.iter == 3 and module.norm2.bn.num_batches_tracked == 1


def test_counters_are_saved_and_need_not_be() -> None:
    module = ProgressiveRepBN(4, steps=10)
    module(torch.randn(2, 4, 3, 3))
    state = module.state_dict()
    assert {"warm", "iter", "total_step"} <= set(state) and state["iter"] == 9
    resumed = ProgressiveRepBN(4, steps=7)
    resumed.load_state_dict(state)
    assert resumed.iter == 9 and resumed.total_step == 10
    fresh = ProgressiveRepBN(4, steps=7)
    fresh.load_state_dict({k: v for k, v in state.items() if k not in ProgressiveRepBN.counters})
    assert fresh.iter == 7 and "iter" in fresh.state_dict()
    with pytest.raises(RuntimeError, match="alpha"):
        fresh.load_state_dict({k: v for k, v in state.items() if "alpha" not in k})


@pytest.mark.parametrize("reentrant", (False, True))
def test_a_recomputed_step_is_the_same_step(reentrant: bool) -> None:
    gradients = []
    for recompute in (False, True):
        module = fill_(ProgressiveRepBN(8, steps=3).double())
        x = image((2, 8, 3, 3)).requires_grad_()
        for _ in range(2):
            out = checkpoint(module, x, use_reentrant=reentrant) if recompute else module(x)
            out.square().mean().backward()
        assert module.iter == 1
        gradients.append([p.grad for p in module.parameters()])
    assert all(rel_err(a, b) < EQUAL for a, b in zip(*gradients, strict=True))


def test_every_part_learns() -> None:
    module = ProgressiveRepBN(8, steps=4)
    x = torch.randn(2, 8, 3, 3)
    for _ in range(2):  # the first step is LayerNorm alone
        module.zero_grad()
        module(x).pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_it_is_gone_when_folded() -> None:
    """Before a mixer and before an MLP it goes into their first layers; the shortcut is left as it was."""
    mix = Residual(nn.Sequential(OrderedDict(norm=prepbn()(16), mixer=MIXERS["attention"](16))))
    ffn = Residual(nn.Sequential(OrderedDict(norm=prepbn()(16), mlp=mlp()(16))))
    patches = nn.Sequential(OrderedDict(norm=prepbn()(16), conv=nn.Conv2d(16, 8, 2, 2)))
    block = fill_(nn.Sequential(OrderedDict(mix=mix, ffn=ffn, patches=patches)).double()).eval()
    folded, x = fold(block), image((2, 16, 6, 5))
    assert not any(isinstance(m, nn.BatchNorm2d | RepBN | ProgressiveRepBN) for m in folded.modules())
    assert rel_err(folded(x), block(x)) < EQUAL
    wrong = copy.deepcopy(block)
    wrong.mix.fn.norm.norm2.alpha.data.zero_()
    assert rel_err(folded(x), wrong(x)) > 1e-3


def test_a_padded_convolution_keeps_the_norm() -> None:
    chain = fill_(nn.Sequential(RepBN(8), nn.Conv2d(8, 8, 3, padding=1)).double()).eval()
    x = image((2, 8, 5, 6))
    assert rel_err(fold(chain)(x), chain(x)) < EQUAL


def test_it_compiles_whole() -> None:
    module = fill_(ProgressiveRepBN(8, steps=4))
    x = torch.randn(2, 8, 3, 3)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="eager")
    for _ in range(3):
        assert torch.allclose(compiled(x), module(x), 1e-5, 1e-5)
