"""The attention of the PVT family computes what the authors' modules compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mixzoo.blocks.mixers import PooledAttention, SpatialReductionAttention
from mixzoo.blocks.pooling import adaptive_avg_pool, pooling_matrix
from mixzoo.zoo.keys import KeyMap, rename
from support import PARITY, golden, image, official_state, rel_err
from torch import nn
from torch.nn import functional as F

REDUCE = KeyMap(rename((r"^reduce\.conv\.", "sr."), (r"^reduce\.norm\.", "norm.")))
MIXERS: dict[str, tuple[Callable[[], nn.Module], KeyMap]] = {
    "pvt_v2_sra": (lambda: SpatialReductionAttention(64, num_heads=2, ratio=4), REDUCE),
    "pvt_v2_linear_sra": (lambda: PooledAttention(64, num_heads=2), REDUCE),
}


@pytest.mark.parametrize("name", MIXERS)
def test_mixer_is_the_authors(name: str) -> None:
    meta, arrays = golden("blocks_pvt")
    make, keys = MIXERS[name]
    module = make().double().eval()
    state = official_state(meta[name])
    own = module.state_dict()
    assert {keys.foreign(k) for k in own} == set(state)
    module.load_state_dict({k: state[keys.foreign(k)].reshape(t.shape) for k, t in own.items()})
    with torch.inference_mode():
        out = module(image(meta[name]["input"], meta[name]["seed"]))
    assert rel_err(out[:, ::4], arrays[f"{name}/out"]) <= PARITY


@pytest.mark.parametrize("size", ((1, 1), (5, 7), (7, 7), (14, 9), (56, 23)), ids=str)
def test_exported_pooling_is_the_same(size: tuple[int, int]) -> None:
    x = image((2, 3, *size))
    rows, cols = (pooling_matrix(length, n, x) for length, n in zip(size, (7, 4), strict=True))
    assert rel_err(rows @ x @ cols.transpose(0, 1), F.adaptive_avg_pool2d(x, (7, 4))) < PARITY
    program = torch.export.export(Pool(), (x,))
    assert not [n for n in program.graph.nodes if "pool" in str(n.target)]
    assert rel_err(program.module()(x), F.adaptive_avg_pool2d(x, (7, 4))) < PARITY


class Pool(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return adaptive_avg_pool(x, (7, 4))


def test_a_map_smaller_than_the_reduction_is_padded() -> None:
    """Three rows under a kernel of four: as if the fourth were zero, never an empty map."""
    module = SpatialReductionAttention(32, num_heads=2, ratio=4).double()
    x = image((1, 32, 3, 9))
    reduced = module.reduce(x)
    assert reduced.shape == (1, 32, 1, 2)
    assert torch.equal(reduced, module.reduce(F.pad(x, (0, 0, 0, 1))))
    assert module(x).shape == x.shape
