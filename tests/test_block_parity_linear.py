"""Linear attention mixers compute what the authors' modules compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mixzoo.blocks.mixers import (
    FlowAttention,
    LinearAttention,
    MagnitudeAwareAttention,
    RankAugmentedAttention,
    RopeAttention,
)
from mixzoo.zoo.keys import KeyMap, rename
from support import PARITY, golden, image, official_state, rel_err
from torch import Tensor, nn

SLA = KeyMap(rename((r"^local\.", "dwc."), (r"^position\.table$", "positional_encoding")))


def sla(split_queries: bool) -> LinearAttention:
    return LinearAttention(64, (14, 14), "sla", split_queries=split_queries, local=5, position=True)


MIXERS: dict[str, tuple[Callable[[], nn.Module], KeyMap]] = {
    "rala": (lambda: RankAugmentedAttention(64, head_dim=32), KeyMap()),
    "mala": (lambda: MagnitudeAwareAttention(64, head_dim=32), KeyMap()),
    "rope_gated_softmax": (lambda: RopeAttention(64, head_dim=32), KeyMap()),
    "flow_cv": (lambda: FlowAttention(64, num_heads=4), KeyMap()),
    "flow_core": (lambda: FlowAttention(64, num_heads=4, guard=0.0), KeyMap(rename((r"^proj\.", "out_projection.")))),
    "sla_pvt": (lambda: sla(True), SLA),
    "sla_swin": (lambda: sla(False), SLA),
}


def load(module: nn.Module, name: str, keys: KeyMap) -> None:
    """Fill ``module`` from the fixture's official state dict; every official tensor must be used."""
    state = _joined(official_state(golden("blocks_linear")[0][name]))
    own = module.state_dict()
    names = {key: keys.foreign(key) for key in own}
    assert set(names.values()) == set(state)
    module.load_state_dict({key: _shaped(state[theirs], own[key]) for key, theirs in names.items()})


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with separate projections of queries, keys and values, if it has those, in one."""
    parts = ("query", "key", "value")
    for leaf in ("weight", "bias") if "query_projection.weight" in state else ():
        state[f"qkv.{leaf}"] = torch.cat([state.pop(f"{part}_projection.{leaf}") for part in parts])
    return state


def _shaped(tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.ndim == 3 and like.ndim == 4:  # (1, N, C) tokens -> (1, C, h, w)
        tensor = tensor.transpose(1, 2)
    return tensor.reshape(like.shape)


@pytest.mark.parametrize("name", MIXERS)
def test_mixer_is_the_authors(name: str) -> None:
    make, keys = MIXERS[name]
    meta, arrays = golden("blocks_linear")
    module = make().double().eval()
    load(module, name, keys)
    x = image(meta[name]["input"], meta[name]["seed"])
    with torch.inference_mode():
        assert rel_err(module(x)[:, ::4], arrays[f"{name}/out"]) <= PARITY
    assert sum(p.numel() for p in module.parameters()) == meta[name]["params"]


def test_parity_sees_the_rotation() -> None:
    """The comparison above can fail: rows and columns exchanged are far outside the tolerance."""
    meta, arrays = golden("blocks_linear")
    module = MIXERS["rala"][0]().double().eval()
    load(module, "rala", KeyMap())
    module.rope.register_forward_hook(lambda _, __, tables: tuple(t.roll(t.shape[-1] // 2, -1) for t in tables))
    with torch.inference_mode():
        out = module(image(meta["rala"]["input"], meta["rala"]["seed"]))
    assert rel_err(out[:, ::4], arrays["rala/out"]) > 1e-3
