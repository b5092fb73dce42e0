"""Frequency filters, FFNified, factorised, channel and DFC attention compute what the authors' modules compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from mixzoo.blocks.block import MIXER, BlockSite, Branch, MixerChoice, Plain, build_block
from mixzoo.blocks.channel import mlp
from mixzoo.blocks.conv import DepthwiseConv2d
from mixzoo.blocks.ghost import ghost_bottleneck
from mixzoo.blocks.mixers import MIXERS, Mixer
from mixzoo.blocks.mixers.factorised import window_taps
from mixzoo.zoo import favit, ffnet
from mixzoo.zoo.keys import KeyMap, rename
from support import PARITY, golden, image, official_state, rel_err
from timm.layers import LayerNorm2d, SqueezeExcite
from torch import nn

FFNET = ffnet.build().keys["official"]


def ffnet_block() -> nn.Module:
    mix, ffn = ffnet.block(7, 1e-5)
    parts = (mix, Plain("se", partial(SqueezeExcite, rd_ratio=0.25)), ffn)
    return build_block(parts, MixerChoice(ffnet.mixer(7)), BlockSite(64, (16, 16), 0, 1))


def _inside(keys: KeyMap, ours: str, theirs: str) -> KeyMap:
    """``keys`` for a module that is at ``ours`` in the model."""
    return KeyMap((*rename((r"^", ours)), *keys.rules, *rename((rf"^{theirs}", ""))), keys.views)


FASA = _inside(favit.build().keys["official"], "stages.0.blocks.0.mix.fn.mixer.", r"block1\.0\.attn\.")


def davit_block() -> nn.Module:
    norm = partial(LayerNorm2d, eps=1e-5)
    place = partial(DepthwiseConv2d, kernel_size=3)
    parts = (
        Branch("cpe0", {"dw": place}),
        Branch("mix", {"norm": norm, "mixer": MIXER}),
        Branch("cpe1", {"dw": place}),
        Branch("ffn", {"norm": norm, "mlp": mlp(4.0)}),
    )
    return build_block(parts, MixerChoice(Mixer("padded_window", head_dim=16)), BlockSite(64, (16, 12), 0, 1))


DAVIT = KeyMap(
    rename(
        (r"^cpe(\d)\.fn\.dw\.", r"cpe.\1.proj."),
        (r"^(mix|ffn)\.fn\.norm", lambda m: "norm1" if m[1] == "mix" else "norm2"),
        (r"^mix\.fn\.mixer\.", "attn."),
        (r"^ffn\.fn\.mlp\.", "mlp."),
    )
)
GHOST = rename(
    (r"(^|\.)primary\.pair\.", r"\1primary_conv."),
    (r"(^|\.)cheap\.pair\.", r"\1cheap_operation."),
    (r"(^|\.)gate\.(point|row|column)\.conv\.", lambda m: f"{m[1]}short_conv.{STRIPS.index(m[2]) * 2}."),
    (r"(^|\.)gate\.(point|row|column)\.bn\.", lambda m: f"{m[1]}short_conv.{STRIPS.index(m[2]) * 2 + 1}."),
    (r"(primary_conv|cheap_operation)\.conv\.", r"\1.0."),
    (r"(primary_conv|cheap_operation)\.bn\.", r"\1.1."),
)
STRIPS = ("point", "row", "column")
BOTTLENECK = rename(
    (r"^fn\.dw\.conv\.", "conv_dw."),
    (r"^fn\.dw\.bn\.", "bn_dw."),
    (r"^fn\.se\.fc1\.", "se.conv_reduce."),
    (r"^fn\.se\.fc2\.", "se.conv_expand."),
    (r"^shortcut\.(dw|point)\.conv\.", lambda m: f"shortcut.{0 if m[1] == 'dw' else 2}."),
    (r"^shortcut\.(dw|point)\.bn\.", lambda m: f"shortcut.{1 if m[1] == 'dw' else 3}."),
    (r"^fn\.", ""),
)


MODULES: dict[str, tuple[Callable[[], nn.Module], KeyMap]] = {
    "aff_mixer": (lambda: MIXERS["frequency_filter"](64), KeyMap()),
    "ffnified_attention_k3": (
        lambda: ffnet.mixer(3)(64, (16, 16)),
        _inside(FFNET, "stages.0.blocks.0.mix.fn.mixer.", r"stages\.0\.0\.token_mixer\.0\.main\."),
    ),
    "ffnified_attention_k7": (
        lambda: MIXERS["ffnified_attention"](64),
        _inside(FFNET, "stages.0.blocks.0.mix.fn.mixer.", r"stages\.0\.0\.token_mixer\.0\.main\."),
    ),
    "davit_channel_attention": (lambda: MIXERS["channel"](64, num_heads=4), KeyMap()),
    "davit_spatial_block": (davit_block, DAVIT),
    "dfc_ghost_module": (lambda: MIXERS["dfc"](64), KeyMap(GHOST)),
    "ghost_bottleneck_v2": (lambda: ghost_bottleneck(40, 160, 64, 5, 2, 0.25), KeyMap(GHOST + BOTTLENECK)),
    "fasa_sr1": (lambda: MIXERS["factorised"](64, num_heads=2, ratio=1), FASA),
    "fasa_sr2": (lambda: MIXERS["factorised"](64, num_heads=2, ratio=2), FASA),
    "ffnet_block": (ffnet_block, _inside(FFNET, "stages.0.blocks.0.", r"stages\.0\.0\.")),
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


@pytest.mark.parametrize("size", (1, 5, 7, 20))
def test_windows_are_mirrored_as_often_as_they_must_be(size: int) -> None:
    taps, count = window_taps((size, 4), 3, torch.device("cpu"))
    rows = taps.reshape(7, 7, count)[:, 0] // 4  # of the first column
    assert torch.equal(window_taps((4, size), 3, torch.device("cpu"))[0].reshape(7, 7, count)[0] % size, rows)
    assert rows.shape[1] == -(-size // 19) and int(rows.min()) >= 0 and int(rows.max()) < size
    padded = list(range(size))
    while len(padded) < 19 * rows.shape[1]:  # one reflection at a time
        padded += padded[-size:-1][::-1] if size > 1 else [0]
    assert all(padded[19 * w + 3 * t] == rows[t, w] for t in range(7) for w in range(rows.shape[1]))
