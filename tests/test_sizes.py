"""Any height and width from 32 up: right shapes, finite maps, and tables that follow the size in one way only."""

from __future__ import annotations

import copy
from functools import cache

import mixzoo
import pytest
import torch
from mixzoo.blocks.deploy import fold
from mixzoo.blocks.mixers import RandomMixer
from mixzoo.blocks.tables import GridModule
from mixzoo.zoo.errors import DeployFormError
from mixzoo.zoo.registry import VARIANTS
from mixzoo.zoo.shell import Backbone
from mixzoo.zoo.weights import to_official
from small import ISOTROPIC, KINDS, reductions, shallow
from support import TOLERANCE, image, rel_err
from timm.layers import DropPath
from timm.models._features import FeatureGetterNet
from torch import nn

EQUAL = TOLERANCE[torch.float64]
SIZES = ((32, 32), (33, 47), (64, 160), (193, 257))
FLOOR_PATCHES = ("flowformer", "inline_pvt", "biformer_stl", "pvt_tiny")
FLOOR_STEM = ("inline_cswin", "poolformer", "randformer", "identityformer", "convformer", "caformer", "metaformer")
every_kind = pytest.mark.parametrize("name", KINDS)
every_size = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")


@cache
def double(name: str) -> Backbone:
    """A shallow ``name`` in float64, with what its dense form has; not to be changed."""
    return shallow(name, dense=True).double()


def expected(name: str, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes of the maps after each stage, or block, for an image of ``size``, from the strides alone."""
    if name.startswith(FLOOR_PATCHES):  # non-overlapping, at every stage
        return [(size[0] // stride, size[1] // stride) for stride in reductions(name)]
    stride, *later = reductions(name)
    if name in ISOTROPIC:
        return [(-(-size[0] // stride), -(-size[1] // stride))] * (1 + len(later))
    floors = name.startswith(FLOOR_STEM)  # 7x7, stride 4, padding 2
    first = [(n - 3) // 4 + 1 if floors else -(-n // stride) for n in size]
    maps = [(first[0], first[1])]
    for _ in later:
        h, w = maps[-1]
        maps.append((-(-h // 2), -(-w // 2)))
    return maps


@every_size
@every_kind
def test_every_size_in_every_way(name: str, size: tuple[int, int]) -> None:
    model = double(name)
    x = image((2, 3, *size), seed=1)
    with torch.no_grad():
        both = model(x)
        last, maps = model.forward_intermediates(x)
        assert both.shape == (2, 10) and rel_err(model.forward_head(last), both) < EQUAL
        assert [(m.shape[2], m.shape[3]) for m in maps] == expected(name, size)
        assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
        assert all(bool(m.isfinite().all()) and m.dtype == torch.float64 for m in (both, last, *maps))
        features = FeatureGetterNet(copy.deepcopy(model), out_indices=tuple(range(len(maps))))(x[1:])
        assert all(rel_err(a, b[1:]) < EQUAL for a, b in zip(features, maps, strict=True))
        single = model(x[:1])
        assert rel_err(both[:1], single) < EQUAL < rel_err(both[1:], single)


@every_kind
@pytest.mark.parametrize("size", ((33, 47), (96, 64)), ids=str)
def test_the_deploy_form_takes_every_size(name: str, size: tuple[int, int]) -> None:
    model = shallow(name).double()
    x = image((2, 3, *size))
    with torch.no_grad():
        assert rel_err(mixzoo.deploy(model)(x), model(x)) < EQUAL


# tables that belong to a size

BOUND = (
    "efficientvit_m0",
    "fcaformer_l1",
    "randformer_s12",
    "metaformer_pppa_s12_224",
    "inline_pvt_tiny",
    "flowformer",
    "agent_swin_tiny",
    "vitrpb_small",
    "pvt_tiny",
)


def tables_of(model: nn.Module) -> list[torch.Tensor]:
    tables = [getattr(m, name) for m in model.modules() if isinstance(m, GridModule) for name in m.grid_tables]
    return tables + [m.weight for m in model.modules() if isinstance(m, RandomMixer)]


@pytest.mark.parametrize("size", (96, (64, 160), 288), ids=str)
@pytest.mark.parametrize("name", BOUND)
def test_tables_follow_the_size_in_one_way(name: str, size: int | tuple[int, int]) -> None:
    """Tables resized at run time, on loading, and by `set_input_size` give the same output."""
    height, width = (size, size) if isinstance(size, int) else size
    default = shallow(name).double()
    built = shallow(name, img_size=size).double()
    built.load_state_dict(to_official(default))
    moved = copy.deepcopy(default)
    moved.set_input_size(size)
    assert built.img_size == moved.img_size == (height, width)
    x = image((1, 3, height, width))
    with torch.no_grad():
        wanted = default(x)
        assert rel_err(built(x), wanted) < EQUAL
        assert rel_err(moved(x), wanted) < EQUAL
        assert rel_err(mixzoo.deploy(default)(x), wanted) < EQUAL
        for table in tables_of(default):
            table.mul_(1.5)
        assert rel_err(default(x), wanted) > 1e4 * EQUAL


@pytest.mark.parametrize("name", BOUND)
def test_tables_move_from_a_narrow_grid(name: str) -> None:
    """From a grid that is not square, and one cell wide: nothing in the tables' counts tells its sides."""
    narrow = shallow(name, img_size=(256, 64), drop_path_rate=0.3).double()
    narrow.set_grad_checkpointing()
    moved = copy.deepcopy(narrow)
    moved.set_input_size((96, 160))
    x = image((1, 3, 96, 160))
    with torch.no_grad():
        assert rel_err(moved(x), narrow(x)) < EQUAL
    drops = [[m.drop_prob for m in model.modules() if isinstance(m, DropPath)] for model in (narrow, moved)]
    assert bool(drops[0]) == (len(moved.stages) > 1) and drops[0] == drops[1]  # the first block never drops
    assert all(stage.grad_checkpointing for stage in moved.stages)
    with pytest.raises(DeployFormError, match="before"):
        fold(narrow).set_input_size(96)


def test_a_feature_extractor_changes_its_size() -> None:
    model = FeatureGetterNet(shallow("randformer_s12").double(), out_indices=(0, 2))
    x = image((1, 3, 96, 64))
    with torch.no_grad():
        before = model(x)
        model.model.set_input_size((96, 64))
        assert all(rel_err(a, b) < EQUAL for a, b in zip(model(x), before, strict=True))


@pytest.mark.parametrize("name", BOUND)
def test_tables_of_the_own_size_are_untouched(name: str) -> None:
    model = shallow(name)
    before = [t.clone() for t in tables_of(model)]
    model.set_input_size(VARIANTS[name].resolution)
    after = tables_of(model)
    assert before and all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_windows_keep_their_tables_at_every_size() -> None:
    """The dense FcaFormer's tables belong to its windows: the image size changes none of them."""
    shapes = [{tuple(t.shape) for t in tables_of(shallow("fcaformer_l1_dense", img_size=s))} for s in (224, 512)]
    assert shapes[0] == shapes[1] != {tuple(t.shape) for t in tables_of(shallow("fcaformer_l1", img_size=512))}


@pytest.mark.parametrize("name", ("shvit_s1", "van_b0", "poolformer_s12", "convformer_s18"))
def test_models_without_tables_do_not_depend_on_img_size(name: str) -> None:
    model = shallow(name, img_size=96)
    assert not tables_of(model)
    assert model.load_state_dict(shallow(name).state_dict())
