"""SLAB's simplified linear attention computes what the authors' modules compute."""

from __future__ import annotations

import pytest
import torch
from mixzoo.blocks.deploy import fold
from mixzoo.blocks.geometry import from_windows, to_windows
from mixzoo.blocks.prepbn import RepBN
from mixzoo.zoo.slab import CSWIN_KEYS, PVT_KEYS, SWIN_KEYS, simplified
from support import PARITY, TOLERANCE, golden, image, official_state, rel_err
from torch import nn

FORMS = {"sla_pvt": (PVT_KEYS, True), "sla_swin": (SWIN_KEYS, False)}


def mixer(name: str) -> nn.Module:
    """SLAB's mixer with the weights of a fixture, loaded under their official names."""
    keys, split = FORMS[name]
    module = simplified(32, split_queries=split)(64, (14, 14)).double().eval()
    state, prefix = official_state(golden("blocks_soft")[0][name]), ".mix.fn.mixer."
    own = module.state_dict()
    names = {key: keys.foreign(prefix + key).rpartition("attn.")[2] for key in own}
    assert set(names.values()) == set(state)
    loaded = {key: keys.from_foreign(f".attn.{theirs}", state[theirs]) for key, theirs in names.items()}
    module.load_state_dict({key: tensor.reshape(own[key].shape) for key, tensor in loaded.items()})
    return module


@pytest.mark.parametrize("name", FORMS)
def test_mixer_is_the_authors(name: str) -> None:
    meta, arrays = golden("blocks_soft")
    module, x = mixer(name), image(meta[name]["input"], meta[name]["seed"])
    for form in (module, fold(module)):
        with torch.inference_mode():
            assert rel_err(form(x)[:, ::8], arrays[f"{name}/out"]) <= PARITY


def test_a_stripe_is_the_authors() -> None:
    """SLAB-CSwin's linear attention by itself: the fixture has stripes 7 wide, and queries, keys and values given."""
    meta, arrays = golden("blocks_soft")
    state, prefix = official_state(meta["sla_cswin"]), ".mix.fn.mixer."
    module = simplified(32, lepe=3)(64, (14, 7)).double().eval()
    module.qkv, module.proj = nn.Identity(), nn.Identity()
    own = module.state_dict()
    names = {key: CSWIN_KEYS.foreign(prefix + key).removeprefix(".attns.0.") for key in own}
    assert set(names.values()) == set(state) - {"scale"}  # never read
    loaded = {key: CSWIN_KEYS.from_foreign(theirs, state[theirs]) for key, theirs in names.items()}
    module.load_state_dict({key: tensor.reshape(own[key].shape) for key, tensor in loaded.items()})
    stripes = to_windows(image(meta["sla_cswin"]["input"], meta["sla_cswin"]["seed"]), (14, 7))
    for form in (module, fold(module)):
        with torch.inference_mode():
            out = from_windows(form(stripes), (14, 14))
        assert rel_err(out[:, ::8], arrays["sla_cswin/out"]) <= PARITY


@pytest.mark.parametrize("name", FORMS)
def test_the_norm_before_it_folds(name: str) -> None:
    chain = nn.Sequential(RepBN(64).double(), mixer(name)).eval()
    nn.init.uniform_(chain[0].bn.running_mean)
    folded, x = fold(chain), image((2, 64, 9, 13))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.inference_mode():
        assert rel_err(folded(x), chain(x)) < TOLERANCE[torch.float64]
