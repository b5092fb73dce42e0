"""Frequency filters, FFNified, factorised, channel and DFC attention compute what the authors' modules compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mixzoo.blocks.mixers import MIXERS
from mixzoo.zoo.keys import KeyMap
from support import PARITY, golden, image, official_state, rel_err
from torch import nn

MODULES: dict[str, tuple[Callable[[], nn.Module], KeyMap]] = {
    "aff_mixer": (lambda: MIXERS["frequency_filter"](64), KeyMap()),
}


def filled(name: str) -> nn.Module:
    """The module of a fixture with the official tensors, every one of which must be used."""
    make, keys = MODULES[name]
    module = make().double().eval()
    state = official_state(golden("blocks_affnet")[0][name])
    own = module.state_dict()
    names = {key: keys.foreign(key) for key in own if not key.endswith("num_batches_tracked")}
    assert set(names.values()) == set(state)
    module.load_state_dict({key: state[theirs].reshape(own[key].shape) for key, theirs in names.items()})
    return module


@pytest.mark.parametrize("name", MODULES)
def test_block_is_the_authors(name: str) -> None:
    meta, arrays = golden("blocks_affnet")
    module = filled(name)
    expected = arrays[f"{name}/out"]
    with torch.inference_mode():
        out = module(image(meta[name]["input"], meta[name]["seed"]))
    assert rel_err(out[:, :: out.shape[1] // expected.shape[1]], expected) <= PARITY
