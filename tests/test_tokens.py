"""Class tokens: what timm's DeiT computes, at any size, and the whole contract of a model that has one."""

from __future__ import annotations

import copy
from typing import Any

import mixzoo
import pytest
import timm
import torch
from mixzoo.blocks.mixers import MIXERS, Blockwise, Mixer
from mixzoo.blocks.tokens import TokenPool, pack_tokens, unpack_tokens
from mixzoo.zoo.errors import MixzooError
from mixzoo.zoo.fill import fill_
from mixzoo.zoo.keys import join_parts, split_parts
from mixzoo.zoo.registry import FAMILIES
from mixzoo.zoo.weights import to_official
from support import TOLERANCE, image, rel_err
from timm.layers import get_notrace_functions, get_notrace_modules
from timm.models._features import FeatureGetterNet
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

EQUAL = TOLERANCE[torch.float64]
CHOICES = {"attention": None, "agent": ["agent"], "both": [Blockwise(Mixer("agent", agents=2), Mixer("attention"), 2)]}
every_mixer = pytest.mark.parametrize("mixer", CHOICES)


def deit(mixer: str = "attention", **options: Any) -> Any:
    """A small DeiT with a class token and filled weights, float64."""
    options = {"depth": 3, "dim": 64, "num_classes": 7, "img_size": 64, "mixers": CHOICES[mixer], **options}
    return fill_(mixzoo.create_model("deit", **options).double()).eval()


def test_timm_agrees() -> None:
    theirs = timm.create_model("deit_tiny_patch16_224", num_classes=5, depth=3).double().eval()
    ours = mixzoo.create_model("deit", depth=3, num_classes=5).double().eval()
    state = fill_(theirs).state_dict()
    ours.load_state_dict(state)
    back = to_official(ours)
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)
    x = image((2, 3, 224, 224))
    with torch.no_grad():
        assert rel_err(ours(x), theirs(x)) < EQUAL < rel_err(ours(x.flip(3)), theirs(x))
        assert rel_err(ours.forward_features(x), theirs.forward_features(x)) < EQUAL
        for pool in ("avg", "token", "max"):
            ours.reset_classifier(0, pool)
            theirs.reset_classifier(0, pool)
            theirs.fc_norm = nn.Identity()
            tokens = theirs.forward_features(x)
            assert rel_err(ours(x), theirs.pool(tokens, pool)) < EQUAL
        for norm in (False, True):
            wanted = theirs.forward_intermediates(x, norm=norm, intermediates_only=True)
            maps = ours.forward_intermediates(x, norm=norm, intermediates_only=True)
            # timm puts its norm on every map, the shell on the last, which is the only one it was trained for
            pairs = list(zip(maps, wanted, strict=True))[-1 if norm else 0 :]
            assert all(rel_err(a, b) < EQUAL for a, b in pairs)


@every_mixer
@pytest.mark.parametrize("size", ((32, 32), (33, 47), (64, 160)), ids=str)
def test_any_size(size: tuple[int, int], mixer: str) -> None:
    model = deit(mixer)
    x = image((2, 3, *size))
    with torch.no_grad():
        out = model(x)
        last, maps = model.forward_intermediates(x)
        feature = maps[-1]
        assert feature.shape == (2, 64, -(-size[0] // 16), -(-size[1] // 16)) and out.shape == (2, 7)
        assert last.shape == (2, 1 + feature[0, 0].numel(), 64) and rel_err(model.forward_head(last), out) < EQUAL
        norm = model.norm(feature).flatten(2).transpose(1, 2)
        assert rel_err(norm, last[:, 1:]) < EQUAL
        assert rel_err(mixzoo.deploy(model)(x), out) < EQUAL
        assert rel_err(model(x[:1]), out[:1]) < EQUAL < rel_err(model(x[:1]), out[1:])
        for index in range(len(maps)):
            (getter,) = FeatureGetterNet(copy.deepcopy(model), out_indices=(index,))(x)
            assert rel_err(getter, maps[index]) < EQUAL


@every_mixer
@pytest.mark.parametrize("size", (96, (64, 160)), ids=str)
def test_tables_follow_the_size(size: int | tuple[int, int], mixer: str) -> None:
    model = deit(mixer)
    built = deit(mixer, img_size=size)
    built.load_state_dict(model.state_dict())
    if mixer == "attention":
        built.load_state_dict(to_official(model))
    moved = copy.deepcopy(model)
    moved.set_input_size(size)
    x = image((1, 3, *built.img_size))
    with torch.no_grad():
        assert rel_err(built(x), model(x)) < EQUAL and rel_err(moved(x), model(x)) < EQUAL


@every_mixer
def test_everything_takes_part_and_checkpointing_agrees(mixer: str) -> None:
    gradients = []
    for enable in (False, True):
        model = deit(mixer).train()
        model.set_grad_checkpointing(enable)
        tokens = model.forward_features(image((2, 3, 64, 64)))
        (model.forward_head(tokens).square().mean() + tokens.pow(3).mean()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert all(g is not None and bool(g.abs().max() > 0) for n, g in gradients[0].items())
    assert all(rel_err(gradients[1][n], g) < 1e-6 for n, g in gradients[0].items() if g.abs().max() > 1e-6)
    assert {f"stages.0.position.{n}" for n in ("token", "position", "table")} <= model.no_weight_decay()


@every_mixer
def test_graphs(mixer: str) -> None:
    model = deit(mixer)
    x = image((2, 3, 64, 96))
    with torch.no_grad():
        wanted = model(x)
        batch = torch.export.Dim("batch", min=1, max=8)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        assert rel_err(program.module()(x[:1]), wanted[:1]) < EQUAL
        compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
        assert rel_err(compiled(x), wanted) < EQUAL
        kwargs = {"leaf_modules": list(get_notrace_modules()), "autowrap_functions": list(get_notrace_functions())}
        traced = create_feature_extractor(model, ["head"], tracer_kwargs=kwargs)
        for size in ((64, 96), (48, 33)):
            x = image((2, 3, *size))
            assert rel_err(traced(x)["head"], model(x)) < EQUAL


def test_mixers_that_know_no_token_are_refused() -> None:
    with pytest.raises(MixzooError, match=r"pool mixer.*class_token=False"):
        mixzoo.create_model("deit", mixer="pool")
    assert mixzoo.create_model("deit", depth=1, mixer="pool", class_token=False).eval()(torch.zeros(1, 3, 48, 48)).shape
    assert "deit" in FAMILIES
    with pytest.raises(ValueError, match="'token', 'avg'"):
        TokenPool("catavgmax", 1)


@pytest.mark.parametrize("mixer", [m for m, cls in MIXERS.items() if getattr(cls, "takes_prefix", False)])
def test_every_mixer_that_knows_tokens_looks_at_them(mixer: str) -> None:
    model = deit(mixers=[mixer])
    x = image((2, 3, 47, 65))
    with torch.no_grad():
        out = model(x)
        assert rel_err(model(x[:1]), out[:1]) < EQUAL < rel_err(out[1:], out[:1])
        assert rel_err(mixzoo.deploy(model)(x), out) < EQUAL
        program = torch.export.export(model, (x,))
        assert rel_err(program.module()(x), out) < EQUAL
        last = model.forward_features(x)
        model.stages[0].position.token.mul_(-1)
        assert rel_err(model.forward_features(x)[:, 1:], last[:, 1:]) > 1e-6
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_one_block_folds_too() -> None:
    model, x = deit(depth=1), image((2, 3, 64, 64))
    with torch.no_grad():
        assert rel_err(mixzoo.deploy(model)(x), model(x)) < EQUAL


def test_packing_comes_back() -> None:
    tokens, x = image((2, 4, 3, 1)), image((2, 4, 5, 6), seed=1)
    packed = pack_tokens(tokens, x)
    assert packed.shape == (2, 4, 33, 1)
    assert all(torch.equal(a, b) for a, b in zip(unpack_tokens(packed, (5, 6)), (tokens, x), strict=True))


def test_parts_of_a_tensor_come_back() -> None:
    whole = {"pos": image((1, 7, 4)), "other": image((7, 4))}
    own = {"pos::0": torch.zeros(1, 4, 1, 1), "pos::1": torch.zeros(1, 4, 3, 3), "other": whole["other"]}
    parts = split_parts(whole, own)
    assert parts["pos::0"].shape == (1, 1, 4) and parts["pos::1"].shape == (1, 6, 4) and parts.keys() == own.keys()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in join_parts(parts).items())
