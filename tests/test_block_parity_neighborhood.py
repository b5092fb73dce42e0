"""Neighborhood attention computes what the authors' module computes, also on maps smaller than a window."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from mixzoo.blocks.mixers import NeighborhoodAttention, RelativeAttention
from support import PARITY, golden, image, official_state, rel_err
from torch import nn

THIN = 16  # every sixteenth channel of an output is kept
NA = partial(NeighborhoodAttention, 64, num_heads=2)
CASES = {
    "na2d_k3_d2": partial(NA, kernel_size=3, dilations=(1, 2), index=1),
    "na2d_k7_d1": NA,
    "na2d_k7_d1_small": NA,
    "na2d_k7_d2_norpb": partial(NA, dilations=(2,), relative_bias=False),
}


def load(module: nn.Module, name: str) -> None:
    """Fill ``module`` from the fixture's official state dict; every official tensor must be used."""
    state = official_state(golden("blocks_nat")[0][name])
    own = {"rpb" if k == "bias.table" else k: t for k, t in module.state_dict(keep_vars=True).items()}
    assert own.keys() == state.keys()
    for key, tensor in own.items():
        tensor.data.copy_(state[key].reshape(tensor.shape))


@pytest.mark.parametrize("name", CASES)
def test_module_is_the_authors(name: str) -> None:
    module = CASES[name]().double().eval()
    load(module, name)
    meta, arrays = golden("blocks_nat")
    x = image(meta[name]["input"], meta[name]["seed"])
    with torch.no_grad():
        out = module(x)
        assert rel_err(out[:, ::THIN], arrays[f"{name}/out"]) <= PARITY
        exported = torch.export.export(module, (x,)).module()  # the reference
        assert rel_err(exported(x)[:, ::THIN], arrays[f"{name}/out"]) <= PARITY
        if module.bias is not None:
            module.bias.table.data = module.bias.table.flip(1)
            assert rel_err(module(x), out) > 1e5 * PARITY


def test_dilations_alternate() -> None:
    assert [NA(dilations=(1, 8), index=i).dilation for i in range(4)] == [1, 8, 1, 8]
    assert [NA(dilations=(1, 2, 5), index=i).dilation for i in range(4)] == [1, 2, 5, 1]


def test_a_table_follows_the_kernel() -> None:
    """Weights of windows of 7 load into windows of 11, which is how the authors made theirs."""
    large = NA(kernel_size=11)
    large.load_state_dict(NA().state_dict())
    assert large.bias.table.shape == (2, 21, 21)


def test_the_whole_map_is_the_largest_neighborhood() -> None:
    """On a map of k x k, a window of k is attention over everything with a bias by offset, key minus query."""
    near, everything = NA().double(), RelativeAttention(64, (7, 7)).double()
    everything.load_state_dict(near.state_dict())
    with torch.no_grad():
        near.bias.table.mul_(30)
        everything.bias.table.mul_(30)
        x = image((2, 64, 7, 7))
        assert rel_err(near(x), everything(x)) <= PARITY
        everything.bias.table.data = everything.bias.table.flip(1, 2)
        assert rel_err(near(x), everything(x)) > 1e-3
