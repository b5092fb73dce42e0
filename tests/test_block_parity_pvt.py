"""The attention of the PVT, InLine and CSWin families computes what the authors' modules compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mixzoo.blocks.deploy import fold
from mixzoo.blocks.mixers import CrossWindowAttention, InLineAttention, PooledAttention, SpatialReductionAttention
from mixzoo.blocks.pooling import adaptive_avg_pool, pooling_matrix
from mixzoo.zoo.fill import fill_
from mixzoo.zoo.keys import KeyMap, rename
from support import PARITY, golden, image, official_state, rel_err
from torch import nn
from torch.nn import functional as F

REDUCE = KeyMap(rename((r"^reduce\.conv\.", "sr."), (r"^reduce\.norm\.", "norm.")))
LOCAL = KeyMap(rename((r"^local\.fc1\.", "residual.0."), (r"^local\.fc2\.", "residual.2.")))
MIXERS: dict[str, tuple[Callable[[], nn.Module], KeyMap]] = {
    "pvt_v2_sra": (lambda: SpatialReductionAttention(64, num_heads=2, ratio=4), REDUCE),
    "pvt_v2_linear_sra": (lambda: PooledAttention(64, num_heads=2), REDUCE),
    "inline_attn": (lambda: InLineAttention(64, num_heads=2, split_queries=True), LOCAL),
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
    kept = out[:, ::8, ::2, ::2] if name == "inline_attn" else out[:, ::4]
    assert rel_err(kept, arrays[f"{name}/out"]) <= PARITY


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


def stripes(module: CrossWindowAttention, x: torch.Tensor) -> torch.Tensor:
    """What the paper says, stripe by stripe: softmax attention, and a convolution of the stripe's own values."""
    q, k, v = module.qkv(x).chunk(3, dim=1)
    half, split, heads = x.shape[1] // 2, module.split or 0, module.num_heads
    out = torch.zeros_like(x)
    for branch, (channels, axis) in enumerate(((slice(0, half), 3), (slice(half, None), 2))):
        for start in range(0, x.shape[axis], split):
            part = [t[:, channels].narrow(axis, start, min(split, x.shape[axis] - start)) for t in (q, k, v)]
            tokens = [t.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3) for t in part]
            logits = tokens[0] @ tokens[1].transpose(2, 3) / (half // heads) ** 0.5
            answer = (logits.softmax(3) @ tokens[2]).transpose(2, 3).reshape(part[2].shape) + module.lepe[branch](
                part[2]
            )
            out[:, channels].narrow(axis, start, part[2].shape[axis]).copy_(answer)
    return module.proj(out)


@pytest.mark.parametrize("size", ((14, 14), (9, 16), (5, 3)), ids=str)
def test_stripes_are_those_of_the_paper(size: tuple[int, int]) -> None:
    """Also where stripes do not divide the map: the last one is narrower, and nothing looks beyond it."""
    module = fill_(CrossWindowAttention(32, num_heads=4, split=7).double()).eval()
    x = image((2, 32, *size))
    with torch.no_grad():
        assert rel_err(module(x), stripes(module, x)) < PARITY


def test_inline_weights_sum_to_one() -> None:
    """Values that are the same everywhere come back as they are, whatever queries and keys are."""
    module = fill_(InLineAttention(32, num_heads=2).double()).eval()
    with torch.no_grad():
        module.qkv.weight[64:].zero_()
        module.local.fc2.weight.zero_()
        module.local.fc2.bias.zero_()
        out = module(image((1, 32, 5, 6)))
        assert rel_err(out, module.proj(module.qkv.bias[64:].view(1, -1, 1, 1)).expand_as(out)) < PARITY


@pytest.mark.parametrize(
    "make",
    (lambda: SpatialReductionAttention(16, ratio=1), lambda: CrossWindowAttention(16, split=3)),
    ids=("reduction", "stripes"),
)
def test_a_batch_norm_goes_into_the_projections(make: Callable[[], nn.Module]) -> None:
    chain = fill_(nn.Sequential(nn.BatchNorm2d(16), make()).double()).eval()
    folded = fold(chain)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    x = image((2, 16, 5, 7))
    with torch.no_grad():
        assert rel_err(folded(x), chain(x)) < PARITY
