"""The attention of BiFormer computes what the authors' modules compute, in both versions of their code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mixzoo.blocks.mixers import Attention, BiLevelRoutingAttention, EnhancedAttention
from mixzoo.zoo.fill import fill_
from mixzoo.zoo.keys import KeyMap, rename
from support import PARITY, golden, image, official_state, rel_err
from torch import nn

FIRST = KeyMap(rename((r"^qkv\.", "qkv.qkv."), (r"^proj\.", "wo.")))
SECOND = KeyMap(rename((r"^qkv\.", "qkv_linear."), (r"^proj\.", "output_linear.")))
MIXERS: dict[str, tuple[Callable[[], nn.Module], KeyMap]] = {
    "bra_topk4": (lambda: BiLevelRoutingAttention(64), FIRST),
    "bra_topk4_autopad": (lambda: BiLevelRoutingAttention(64), FIRST),
    "bra_nchw_topk4": (lambda: BiLevelRoutingAttention(64, pad_input=False), SECOND),
    "bra_full": (lambda: Attention(64, head_dim=8, proj_bias=True), KeyMap()),
    "bra_full_lepe": (lambda: EnhancedAttention(64, head_dim=8, enhance_input=True), KeyMap()),
    "bra_nchw_full_lepe": (lambda: EnhancedAttention(64, head_dim=8), KeyMap()),
}


def loaded(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The mixer of a fixture with the fixture's weights, its input, and every eighth channel of its output."""
    meta, arrays = golden("blocks_biformer")
    make, keys = MIXERS[name]
    module = make().double().eval()
    state, own = official_state(meta[name]), module.state_dict()
    assert {keys.foreign(k) for k in own} == set(state)
    module.load_state_dict({k: state[keys.foreign(k)].reshape(t.shape) for k, t in own.items()})
    return module, image(meta[name]["input"], meta[name]["seed"]), torch.from_numpy(arrays[f"{name}/out"])


@pytest.mark.parametrize("memory", (torch.contiguous_format, torch.channels_last), ids=("planes", "channels_last"))
@pytest.mark.parametrize("name", MIXERS)
def test_mixer_is_the_authors(name: str, memory: torch.memory_format) -> None:
    module, x, expected = loaded(name)
    with torch.inference_mode():
        assert rel_err(module(x.contiguous(memory_format=memory))[:, ::8], expected) <= PARITY


def test_parity_sees_another_padding_and_scale() -> None:
    module, x, expected = loaded("bra_topk4_autopad")
    with torch.inference_mode():
        module.pad_input = False
        assert rel_err(module(x)[:, ::8], expected) > 1e-3
        module.pad_input, module.scale = True, 32**-0.5
        assert rel_err(module(x)[:, ::8], expected) > 1e-3


def test_paddings_differ_only_where_regions_do_not_divide() -> None:
    first, second = (fill_(BiLevelRoutingAttention(32, pad_input=p).double()) for p in (True, False))
    with torch.inference_mode():
        x = image((2, 32, 14, 21))
        assert rel_err(first(x), second(x)) < PARITY
        x = image((2, 32, 15, 21))
        assert rel_err(first(x), second(x)) > 1e-3


@pytest.mark.parametrize("pad_input", (True, False))
def test_all_regions_are_attention_over_the_map(pad_input: bool) -> None:
    module = fill_(BiLevelRoutingAttention(32, topk=None, pad_input=pad_input).double())
    whole = fill_(BiLevelRoutingAttention(32, topk=1, num_regions=1).double())
    x = image((2, 32, 14, 7))
    with torch.inference_mode():
        assert rel_err(module(x), whole(x)) < PARITY
        module.topk = 16
        assert rel_err(module(x), whole(x)) > 1e-3
