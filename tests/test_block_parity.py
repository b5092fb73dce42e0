"""Single mixers and blocks compute what the authors' modules compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mixzoo.blocks.block import BlockSite, MixerChoice, build_block
from mixzoo.blocks.mixers import CascadedGroupAttention, LargeKernelAttention, Mixer, SingleHeadAttention
from mixzoo.blocks.mixers.large_kernel import LargeKernelGate
from mixzoo.blocks.stage import CrossStage
from mixzoo.zoo import fcaformer
from mixzoo.zoo.keys import KeyMap, rename
from support import PARITY, golden, image, official_state, rel_err
from torch import Tensor, nn

PAIRS = rename((r"\.conv\.weight$", ".c.weight"))
WINDOW = KeyMap(rename((r"^bias\.table$", "attention_biases"), (r"^proj\.", "proj.1.")) + PAIRS)
LOCAL_WINDOW = KeyMap((*WINDOW.rules, *rename((r"^", "attn."))))
SHSA = KeyMap(rename((r"^norm\.", "pre_norm."), (r"^proj\.", "proj.1.")) + PAIRS)
LKA = KeyMap(rename((r"^gate\.", "spatial_gating_unit.")))
FCA = fcaformer.build().keys["official"]


def fca_block(index: int, depth: int) -> nn.Sequential:
    block = fcaformer.build().stages[2].block
    return build_block(block, MixerChoice(Mixer("forward_cross", num_heads=4)), BlockSite(64, (14, 14), index, depth))


def fca_stage() -> nn.Module:
    return CrossStage(nn.Identity(), [fca_block(i, 3) for i in range(3)], nn.Identity())


MIXERS: dict[str, tuple[Callable[[], nn.Module], KeyMap]] = {
    "cascaded_group_attention": (
        lambda: CascadedGroupAttention(64, (7, 7), num_heads=4, kernels=(7, 5, 3, 3)),
        WINDOW,
    ),
    "local_window_attention": (
        lambda: CascadedGroupAttention(64, (16, 16), num_heads=4, kernels=(5, 5, 5, 5)),
        LOCAL_WINDOW,
    ),
    "shsa": (lambda: SingleHeadAttention(64, partial_dim=32), SHSA),
    "lka": (lambda: LargeKernelGate(64), KeyMap()),
    "lka_attention": (lambda: LargeKernelAttention(64), LKA),
}


def load(module: nn.Module, name: str, foreign: Callable[[str], str]) -> None:
    """Fill ``module`` from the fixture's official state dict; every official tensor must be used."""
    state = official_state(golden("blocks")[0][name])
    own = module.state_dict()
    names = {key: foreign(key) for key in own if not key.endswith("num_batches_tracked")}
    assert set(names.values()) == set(state)
    module.load_state_dict({key: _shaped(state[theirs], own[key]) for key, theirs in names.items()})


def _shaped(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.reshape(like.shape)


def reference(name: str) -> tuple[Tensor, Tensor]:
    meta, arrays = golden("blocks")
    return image(meta[name]["input"], meta[name]["seed"]), torch.from_numpy(arrays[f"{name}/out"])


@pytest.mark.parametrize("name", MIXERS)
def test_mixer_is_the_authors(name: str) -> None:
    make, keys = MIXERS[name]
    module = make().double().eval()
    load(module, name, keys.foreign)
    x, expected = reference(name)
    with torch.inference_mode():
        assert rel_err(module(x)[:, ::4], expected) <= PARITY


def _fca_key(prefix: str, strip: str) -> Callable[[str], str]:
    return lambda key: FCA.foreign(f"{prefix}{key}").removeprefix(strip)


def test_first_cross_attention_block_is_the_authors() -> None:
    block = fca_block(0, 3).double().eval()
    load(block, "fca_block_first", _fca_key("stages.2.blocks.0.", "layer_2.blocks.0."))
    x, expected = reference("fca_block_first")
    with torch.inference_mode():
        assert rel_err(block(x, [])[0][:, ::4], expected) <= PARITY


def test_later_cross_attention_block_is_the_authors() -> None:
    block = fca_block(2, 4).double().eval()
    load(block, "fca_block_cross", _fca_key("stages.2.blocks.0.", "layer_2.blocks.0."))
    x, expected = reference("fca_block_cross")
    maps = [t.unflatten(2, (4, 4)) for t in x.flatten(2)[:, :, :32].split(16, dim=2)]
    with torch.inference_mode():
        assert rel_err(block(x, maps)[0][:, ::4], expected) <= PARITY


def test_cross_attention_stage_is_the_authors() -> None:
    stage = fca_stage().double().eval()
    load(stage, "fca_layer", _fca_key("stages.2.", "layer_2."))
    x, expected = reference("fca_layer")
    with torch.inference_mode():
        assert rel_err(stage(x)[:, ::4], expected) <= PARITY
