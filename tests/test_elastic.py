"""Nested FFN widths: the first hidden channels of a model are a model, at every width that it runs at."""

from __future__ import annotations

import copy
import re
from typing import Any

import mixzoo
import pytest
import timm
import torch
from mixzoo.blocks.elastic import Elastic, make_elastic, use_statistics, without_statistics
from mixzoo.blocks.ffn import Role, ffns, hidden_layers, hidden_size, nested_size
from mixzoo.blocks.nested import narrow_model, nested_blocks, nested_ffns, spread
from mixzoo.train import RecipeError, load_recipe
from mixzoo.train.elastic import drawn_width
from mixzoo.zoo.errors import MixzooError
from small import KINDS, images, shallow
from support import rel_err
from timm.layers import Mlp
from torch import nn

WIDTHS = (0.25, 0.5, 1.0)
SORTS = ("shvit_s1", "efficientvit_m0", "van_b0", "affnet_et", "ravlt_t", "ffnet_1", "poolformer_s12", "pvt_tiny")
VIT: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 10}


def vit(**options: Any) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **{**VIT, **options}).eval()


def running(model: nn.Module) -> Elastic:
    elastic: Any = model.elastic
    return elastic


# what a width is


@pytest.mark.parametrize("name", KINDS)
def test_every_family_is_built_with_narrower_ffns(name: str) -> None:
    """Built with a width, a model has the shapes that cutting leaves; nothing but FFNs of blocks is smaller."""
    whole, half = (mixzoo.create_model(name, device="meta", **o) for o in ({}, {"ffn_width": 0.5}))
    inside = tuple(f"{ffn}." for ffn in nested_ffns(whole))
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (whole, half)]
    assert {k for k in shapes[0] if shapes[0][k] != shapes[1][k]} == {
        f"{ffn}.{layer}.{leaf}"
        for ffn, module in nested_ffns(whole).items()
        for layer, role in hidden_layers(module).items()
        for leaf, tensor in module.get_submodule(layer).state_dict().items()
        if tensor.ndim > (role is Role.COLUMNS)
    }
    assert all(k.startswith(inside) for k in shapes[0] if shapes[0][k] != shapes[1][k])
    assert {k: v.shape for k, v in narrow_model(whole, 0.5).state_dict().items()} == shapes[1]


def test_a_width_is_that_of_another_ratio() -> None:
    half, other = (mixzoo.create_model("deit", depth=2, dim=64, **o) for o in ({"ffn_width": 0.5}, {"mlp_ratio": 2.0}))
    assert {k: v.shape for k, v in half.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}


@pytest.mark.parametrize(
    ("widths", "found"),
    [
        (0.5, [(0.5, 0.5), (), (0.5,)]),
        ([0.5], [(0.5, 0.5), (), (0.5,)]),
        ([0.25, 0.5, 1], [(0.25, 0.5), (), (1.0,)]),
        ([0.25, 0.5], None),
    ],
)
def test_widths_are_spread_over_blocks(widths: Any, found: Any) -> None:
    if found is None:
        with pytest.raises(ValueError, match=r"2 widths: give 1, 3 \(one per stage\) or 3 \(one per block\)"):
            spread(widths, [2, 0, 1])
    elif isinstance(widths, list) and len(widths) == 3:
        assert spread(widths, [2, 0, 1]) == [(0.25, 0.25), (), (1.0,)]  # by stages first
        assert spread(widths, [2, 1]) == found[::2]
    else:
        assert spread(widths, [2, 0, 1]) == found


@pytest.mark.parametrize("width", [0, 1.5, -1, [0.5, 2.0, 1.0, 1.0], "half", [0.5, 0.5, 0.5]])
def test_a_width_that_is_none_is_refused(width: Any) -> None:
    with pytest.raises(MixzooError, match=r"ffn_width=.* does not fit the model \("):
        mixzoo.create_model("van_b0", device="meta", ffn_width=width)


def test_a_width_keeps_one_channel_at_least() -> None:
    assert [nested_size(w, 10) for w in (0.001, 0.25, 0.5, 1)] == [1, 2, 5, 10]
    assert mixzoo.create_model("deit", depth=1, dim=64, ffn_width=1e-9).eval()(images(1, 3, 32, 32)).isfinite().all()


def test_initial_weights_are_drawn_for_the_width() -> None:
    """SHViT's convolutions begin as PyTorch's, which looks at how many channels they read."""
    torch.manual_seed(0)
    block: Any = mixzoo.create_model("shvit_s1", ffn_width=0.25).stages[0].blocks[0]  # type: ignore[union-attr, index]
    weight = block.ffn.fn.mlp.fc2.conv.weight
    assert weight.abs().max().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.05)


# what runs at a width


@torch.no_grad()
@pytest.mark.parametrize("name", SORTS)
def test_a_model_at_a_width_is_the_model_cut_to_it(name: str) -> None:
    model, x = shallow(name), images(1, 3, 64, 64)
    whole, elastic = copy.deepcopy(model), make_elastic(model, WIDTHS)
    full = whole(x)
    for index, width in enumerate(WIDTHS):
        elastic.choose(index)
        cut = narrow_model(copy.deepcopy(whole), width)
        assert torch.equal(model(x), cut(x))
        assert (rel_err(cut(x), full) > 1e-3) == (width < 1)
    assert rel_err(mixzoo.deploy(cut)(x), full) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["shvit_s1", "pvt_tiny"])
def test_it_is_so_in_double_precision(name: str) -> None:
    model, x = shallow(name).double(), images(1, 3, 64, 64).double()
    cut = narrow_model(copy.deepcopy(model), 0.5)
    make_elastic(model, WIDTHS).choose(1)
    assert rel_err(model(x), cut(x)) <= 1e-12
    assert rel_err(mixzoo.deploy(cut)(x), cut(x)) < 1e-9


def test_what_timm_makes_of_its_own_mlp_is_nested_too() -> None:
    model, x = vit().double(), images(2, 3, 32, 32).double()
    nn.init.normal_(model.head.weight)  # type: ignore[union-attr, arg-type]
    whole, elastic = copy.deepcopy(model), make_elastic(model, WIDTHS)
    elastic.choose(1)
    cut = narrow_model(copy.deepcopy(whole), 0.5)
    assert rel_err(model(x), cut(x)) <= 1e-12 and rel_err(model(x), whole(x)) > 1e-3
    mixed = narrow_model(copy.deepcopy(whole), [0.25, 0.5, 1])
    assert [hidden_size(ffn) for ffn in ffns(mixed).values()] == [48, 96, 192]


def test_blocks_have_widths_of_their_own() -> None:
    model, x = shallow("poolformer_s12").double(), images(1, 3, 64, 64).double()
    cut = narrow_model(copy.deepcopy(model), [0.25, 0.5, 0.5, 1.0])
    elastic = make_elastic(model, WIDTHS)
    assert [len(stage) for stage in nested_blocks(model)] == [1, 1, 1, 1]
    for dial, width in zip(elastic.dials, (0.25, 0.5, 0.5, 1.0), strict=True):
        dial.used = nested_size(width, dial.hidden)
    assert rel_err(model(x), cut(x)) <= 1e-12


@pytest.mark.parametrize("name", SORTS)
def test_every_parameter_gets_a_gradient_which_is_zero_where_it_is_not_in_use(name: str) -> None:
    model, x = shallow(name), images(2, 3, 64, 64)
    make_elastic(model, WIDTHS).choose(0)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for ffn in nested_ffns(model).values():
        count = nested_size(0.25, hidden_size(ffn))
        for layer, role in hidden_layers(ffn).items():
            gradient = ffn.get_submodule(layer).weight.grad.transpose(0, int(role is Role.COLUMNS))  # type: ignore
            assert gradient[:count].any() and not gradient[count:].any()


@pytest.mark.parametrize("name", ["shvit_s1", "affnet_et"])
def test_batch_norms_have_statistics_for_each_width(name: str) -> None:
    model, x = shallow(name), images(4, 3, 64, 64)
    whole, elastic = copy.deepcopy(model), make_elastic(model, WIDTHS)
    before = copy.deepcopy(model.state_dict())
    elastic.choose(0)
    model.train()(x)
    after, plain = model.state_dict(), whole.state_dict()
    assert all(torch.equal(after[key], plain[key]) for key in plain if "num_batches" not in key)
    _, narrow = without_statistics(after)
    assert narrow and all(not torch.equal(t[0], before[k][0]) for k, t in narrow.items())
    assert all(torch.equal(t[1], before[k][1]) for k, t in narrow.items())  # those of the other width
    cut = narrow_model(whole, 0.25)
    with_other = rel_err(cut(x), model.eval()(x))
    use_statistics(cut, narrow, 0)
    assert rel_err(cut(x), model(x)) == 0 < 1e-3 < with_other


def test_a_copy_has_a_width_of_its_own() -> None:
    model, x = vit(), images(1, 3, 32, 32)
    nn.init.normal_(model.head.weight)  # type: ignore[union-attr, arg-type]
    make_elastic(model, WIDTHS)
    other = copy.deepcopy(model)
    running(model).choose(0)
    assert rel_err(model(x), other(x)) > 1e-3
    running(other).choose(0)
    assert torch.equal(model(x), other(x))


def test_names_of_parameters_stay_and_other_models_are_not_touched() -> None:
    model = shallow("shvit_s1")
    names, other = set(model.state_dict()), copy.deepcopy(model)
    make_elastic(model, WIDTHS)
    plain, narrow = without_statistics(model.state_dict())
    assert set(plain) == names and all(k.endswith(("narrow_mean", "narrow_var")) for k in narrow)
    assert not any("elastic" in type(m).__module__ for m in other.modules())


@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv2d(3, 3, 1)), Mlp(4, 8, norm_layer=nn.LayerNorm)])
def test_what_cannot_be_nested_says_why(model: nn.Module) -> None:
    wrapped = nn.Sequential(model)
    known = "has no FFN|its blocks have no FFN" if not ffns(wrapped) else r"FFN 0, norm \(LayerNorm\) mixes the hidden"
    with pytest.raises(ValueError, match=known):
        make_elastic(wrapped, WIDTHS)


def test_a_batch_norm_of_another_kind_is_refused() -> None:
    odd = nn.Sequential(Mlp(4, 8), nn.BatchNorm3d(4))
    with pytest.raises(ValueError, match=r"1 \(BatchNorm3d\) cannot have statistics for several widths"):
        make_elastic(odd, WIDTHS)


# what a recipe says of it


def test_widths_are_drawn_by_the_step_alone_as_often_as_the_recipe_says() -> None:
    equal = load_recipe("shvit_digits", ["elastic.widths=[0.25,0.5,1]"])
    drawn = [drawn_width(equal, step) for step in range(3000)]
    assert drawn == [drawn_width(equal, step) for step in range(3000)]
    assert all(900 < drawn.count(index) < 1100 for index in range(3))
    other = load_recipe("shvit_digits", ["elastic.widths=[0.25,0.5,1]", "seed=1"])
    assert drawn != [drawn_width(other, step) for step in range(3000)]
    uneven = load_recipe("shvit_digits", ["elastic.widths=[0.5,1]", "elastic.probabilities=[0.9,0.1]"])
    assert 2600 < [drawn_width(uneven, step) for step in range(3000)].count(0) < 2800


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["elastic.widths=[0.5]"], "must be two shares or more"),
        (["elastic.widths=[0.5, 0.25, 1]"], "rising"),
        (["elastic.widths=[0, 1]"], "above 0"),
        (["elastic.widths=[0.25, 0.5]"], "the last of them 1"),
        (["elastic.widths=[0.5, 1]", "elastic.probabilities=[0.5]"], "one positive number for each"),
        (["elastic.widths=[0.5, 1]", "elastic.probabilities=[0.5, 0.6]"], "a sum of 1"),
        (["elastic.widths=[0.5, 1]", "tuning.train=head"], "and tuning.train=head do not go together"),
        (["elastic.widths=[0.5, 1]", "model.kwargs.ffn_width=0.5"], "and model.kwargs.ffn_width do not go together"),
        (["elastic.width=[0.5, 1]"], "'elastic.widths'"),
    ],
)
def test_a_wrong_section_is_one_sentence(changes: list[str], says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)):
        load_recipe("shvit_digits", changes)
