"""SOFT's attention computes what the authors' modules compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixzoo.blocks.deploy import fold
from mixzoo.blocks.mixers import SoftAttention
from mixzoo.zoo.keys import KeyMap, rename
from support import PARITY, golden, image, official_state, rel_err
from torch import nn

KEYS = KeyMap(
    rename(
        (r"^([qv])\.", r"W_\1."),
        (r"^landmarks\.conv\.", "attn.Qlandmark_op."),
        (r"^landmarks\.norm\.", "attn.Qnorm_act.0."),
        (r"^local\.", "attn.conv."),
        (r"^proj\.", "ff."),
    )
)
OPTIONS: dict[str, dict[str, Any]] = {
    "soft": {},
    "soft_noconv": {"kernel_size": 0},
    "soft_norm_b1": {"symmetric": True},
    "soft_norm_noconv_b1": {"symmetric": True, "kernel_size": 0},
    "soft_norm": {"symmetric": True},
    "soft_norm_hd32": {"symmetric": True, "num_heads": 2},
}
SHARED_START = ("soft_norm", "soft_norm_hd32")  # the authors' Newton steps start from a maximum over both images


def module_and_data(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    meta, arrays = golden("blocks_soft")
    module = SoftAttention(64, **{"num_heads": 16, "ratio": 2, **OPTIONS[name]}).double().eval()
    state, own = official_state(meta[name]), module.state_dict()
    assert {KEYS.foreign(key) for key in own} == set(state)
    module.load_state_dict({key: state[KEYS.foreign(key)].reshape(own[key].shape) for key in own})
    x = image(meta[name]["input"], meta[name]["seed"])
    return module, x, torch.from_numpy(arrays[f"{name}/out"])


@pytest.mark.parametrize("grad", (True, False), ids=("newton", "eigenvalues"))
@pytest.mark.parametrize("name", [n for n in OPTIONS if n not in SHARED_START])
def test_mixer_is_the_authors(name: str, grad: bool) -> None:
    module, x, expected = module_and_data(name)
    with torch.set_grad_enabled(grad):
        assert rel_err(module(x)[:, ::8], expected) <= PARITY
        assert rel_err(fold(module)(x)[:, ::8], expected) <= PARITY


@pytest.mark.parametrize("name", SHARED_START)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    """The image that has the maximum is the authors', in any batch; the other one is where it would be alone."""
    module, x, expected = module_and_data(name)
    out = module(x)
    assert all(rel_err(module(x[i : i + 1]), out[i : i + 1]) < PARITY for i in range(2))
    errors = sorted(rel_err(out[i, ::8], expected[i]) for i in range(2))
    assert errors[0] <= PARITY
