"""Window and agent attention, alone and in their blocks, compute what the authors' modules compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from mixzoo.blocks.block import BlockSite, MixerChoice, build_block
from mixzoo.blocks.deploy import deploy
from mixzoo.blocks.mixers import AgentAttention, Mixer
from mixzoo.blocks.projection import SplitProjection
from mixzoo.zoo import agent, swin
from mixzoo.zoo.fill import fill_
from mixzoo.zoo.keys import KeyMap
from mixzoo.zoo.registry import get_variant
from mixzoo.zoo.shell import Backbone
from support import PARITY, golden, image, official_state, rel_err
from torch import nn

THIN = 16  # every sixteenth channel of an output is kept
V2 = partial(Mixer, "cosine_window", num_heads=2, window=7)
V1 = partial(Mixer, "window", num_heads=2)
SWIN = swin.official_keys()
AGENT = get_variant("agent_pvt_tiny").spec.keys["official"]
split_agents = partial(Mixer, "agent", num_heads=2, projection=SplitProjection)


def block(mixer: Mixer, index: int) -> nn.Module:
    stage = swin.build().stages[0]
    return build_block(stage.block, MixerChoice(mixer), BlockSite(64, (14, 14), index, 2))


# fixture: the module, its official names, our prefix in the family, the official prefix there
CASES: dict[str, tuple[Callable[[], nn.Module], KeyMap, str, str]] = {
    "swin_v1_attn": (lambda: V1()(64, (14, 14), index=0), SWIN, "x.mix.fn.mixer.", "x.attn."),
    "swin_v1_attn_shift": (lambda: V1()(64, (28, 28), index=1), SWIN, "x.mix.fn.mixer.", "x.attn."),
    "swin_v1_block_shift": (lambda: block(V1(), 1), SWIN, "x.", "x."),
    "swin_v2_attn": (lambda: V2()(64, (14, 14), index=0), SWIN, "x.mix.fn.mixer.", "x.attn."),
    "swin_v2_attn_shift": (lambda: V2()(64, (28, 28), index=1), SWIN, "x.mix.fn.mixer.", "x.attn."),
    "agent_attn": (lambda: split_agents()(64, (28, 28)), AGENT, "x.mix.fn.mixer.", "x.attn."),
    "agent_attn_dense": (
        lambda: split_agents(agents=4, pooled=(6, 5))(64, (14, 14)),
        AGENT,
        "x.mix.fn.mixer.",
        "x.attn.",
    ),
}


def load(module: nn.Module, name: str, keys: KeyMap, ours: str, theirs: str) -> None:
    """Fill ``module`` from the fixture's official state dict; every official tensor must be used, and come back."""
    state = official_state(golden("blocks_swin")[0][name])
    own = module.state_dict()
    names = {key: keys.foreign(ours + key) for key in own}
    assert {n.removeprefix(theirs) for n in names.values()} == set(state)
    found = {key: keys.from_foreign(n, state[n.removeprefix(theirs)]) for key, n in names.items()}
    module.load_state_dict({key: tensor.reshape(own[key].shape) for key, tensor in found.items()})
    for key, n in names.items():
        assert torch.equal(keys.to_foreign(n, module.state_dict()[key]), state[n.removeprefix(theirs)]), key


@pytest.mark.parametrize("name", CASES)
def test_module_is_the_authors(name: str) -> None:
    make, keys, ours, theirs = CASES[name]
    module = make().double().eval()
    load(module, name, keys, ours, theirs)
    meta, arrays = golden("blocks_swin")
    x = image(meta[name]["input"], meta[name]["seed"])
    expected = arrays[f"{name}/out"]
    with torch.no_grad():
        fused = module(x)
        assert rel_err(fused[:, ::THIN], expected) <= PARITY
        with torch.enable_grad():  # the reference runs where a bias needs its gradient
            assert rel_err(module(x).detach(), fused) <= PARITY
        assert rel_err(module(x.flip(3))[:, ::THIN].flip(3), expected) > 1e4 * PARITY


def test_dense_agents_take_the_same_weights() -> None:
    """The larger grids of agents for dense prediction use every tensor of the classification model."""
    spec = get_variant("agent_swin_base").spec
    small = replace(spec, stages=tuple(replace(s, depth=1 if i < 2 else 3) for i, s in enumerate(spec.stages[:3])))
    plain = fill_(Backbone(small, num_classes=3, img_size=64)).double().eval()
    dense = Backbone(agent.dense(small, ((9, 9), (12, 12), (14, 14))), num_classes=3, img_size=64).double().eval()
    dense.load_state_dict(plain.state_dict())
    pooled = [m.pooled for m in dense.modules() if isinstance(m, AgentAttention)]
    assert pooled == [(9, 9), (12, 12), (14, 14), (14, 14)]
    x = image((2, 3, 64, 96))
    with torch.no_grad():
        assert 1e-4 < rel_err(dense(x), plain(x)) < 1
        assert rel_err(deploy(dense)(x), dense(x)) <= PARITY
