"""What the tables say of every published variant is what the zoo builds."""

from __future__ import annotations

import mixzoo
import pytest
import timm
import torch
from mixzoo.zoo.errors import UnknownModelError, UnknownNameError
from mixzoo.zoo.registry import FAMILIES, VARIANTS, get_variant, timm_name


@pytest.mark.parametrize("name", VARIANTS)
def test_published_parameters_and_maps(name: str) -> None:
    variant = VARIANTS[name]
    model = mixzoo.create_model(name, device="meta")
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(variant.params_m, abs=6e-4)
    cfg = model.pretrained_cfg
    assert cfg["input_size"] == (3, variant.resolution, variant.resolution)
    x = torch.empty(1, *cfg["input_size"], device="meta")
    (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
    prefix, sides = variant.spec.stages[-1].prefix, tuple(last.shape[-2:])
    assert cfg["pool_size"] == (None if prefix else sides)
    tokens, widened = (1, prefix + sides[0] * sides[1], model.num_features), (1, model.num_features, *sides)
    assert model.forward_features(x).shape == (tokens if prefix else widened)
    assert model.get_parameter(f"{cfg['first_conv']}.weight").shape[1] == 3


def test_every_listed_family_is_there() -> None:
    expected = {
        *(f"{f}_{s}" for f in ("identityformer", "randformer", "poolformer", "poolformerv2")
          for s in ("s12", "s24", "s36", "m36", "m48")),
        *(f"{f}_{s}" for f in ("convformer", "caformer") for s in ("s18", "s36", "m36", "b36")),
        *(f"efficientvit_m{i}{d}" for i in range(6) for d in ("", "_distilled")),
        *(f"shvit_s{i}{d}" for i in range(1, 5) for d in ("", "_distilled")),
        *(f"van_b{i}" for i in range(7)),
        *(f"fcaformer_l{i}" for i in range(1, 5)),
    }  # fmt: skip
    assert expected <= set(mixzoo.list_models())


def test_names_in_timm() -> None:
    assert timm_name("shvit_s1") == "mz_shvit_s1"
    assert timm_name("van_b2") == "van_b2"
    assert type(timm.create_model("shvit_s1")).__module__.startswith("timm.")
    assert isinstance(timm.create_model("mz_shvit_s1"), type(mixzoo.create_model("shvit_s1")))
    assert {timm_name(n) for n in VARIANTS} <= set(timm.list_models())


def test_list_models() -> None:
    assert mixzoo.list_models("shvit_s?") == ["shvit_s1", "shvit_s2", "shvit_s3", "shvit_s4"]
    assert "van_b4" not in mixzoo.list_models("van_*", pretrained=True)
    assert set(mixzoo.list_models(family="van")) == {f"van_b{i}" for i in range(7)}


def test_unknown_names_suggest_near_ones() -> None:
    with pytest.raises(UnknownModelError, match="shvit_s1"):
        mixzoo.create_model("shvit_s11")
    with pytest.raises(UnknownNameError, match="num_classes"):
        mixzoo.create_model("shvit_s1", num_class=3)
    with pytest.raises(UnknownNameError, match="large_kernel"):
        mixzoo.create_model("shvit_s1", mixer="large_kernal")
    with pytest.raises(UnknownNameError, match="in1k_384"):
        mixzoo.create_model("caformer_s18.in1k_385")
    with pytest.raises(TypeError):
        timm.create_model("mz_shvit_s1", not_an_option=1)


def test_families_build_members_of_any_size() -> None:
    model = mixzoo.create_model(
        "metaformer", depths=(1, 1, 1), dims=(16, 32, 48), mixers=["pool", "sepconv", "attention"], num_classes=7
    )
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    assert [s["reduction"] for s in model.feature_info] == [4, 8, 16]
    with pytest.raises(UnknownNameError, match="depths"):
        mixzoo.create_model("metaformer", depth=(1,))
    for family in FAMILIES:
        assert mixzoo.create_model(family, num_classes=5).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_tags_choose_the_evaluation_settings() -> None:
    cfg = mixzoo.create_model("caformer_s18.in1k_384", device="meta").pretrained_cfg
    assert cfg["input_size"] == (3, 384, 384)
    assert mixzoo.create_model("van_b0", device="meta").pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    assert get_variant("mz_shvit_s1").name == "shvit_s1"
