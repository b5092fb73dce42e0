"""Window and agent attention, alone and in their blocks, compute what the authors' modules compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from mixzoo.blocks.mixers import Mixer
from mixzoo.blocks.projection import SplitProjection
from mixzoo.blocks.stage import BlockSite, MixerChoice, build_block
from mixzoo.zoo import swin
from mixzoo.zoo.keys import KeyMap
from mixzoo.zoo.registry import get_variant
from support import PARITY, golden, image, official_state, rel_err
from torch import nn

THIN = 16  # every sixteenth channel of an output is kept
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
