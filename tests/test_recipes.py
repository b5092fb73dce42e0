"""The recipes of the families against the figures that the authors publish."""

from __future__ import annotations

import fnmatch
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from mixzoo.train import Recipe, list_recipes, load_recipe
from mixzoo.train import recipe as recipes
from mixzoo.train.recipe import parse_recipe
from mixzoo.zoo.registry import FAMILIES, VARIANTS, get_variant
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import RandAugment

RECIPES = Path(__file__).resolve().parent.parent / "configs" / "recipes"
IMAGENET = [r for r in list_recipes() if load_recipe(r).data.source == "folder"]

WITHOUT_RECIPE = {
    "affnet": "the authors publish no training settings, neither in the repository nor with it",
    "deit": "it has no models of its own",
}

# images in a step, peak rate at that batch, weight decay, drop path: computed by hand from the authors' files
SETTINGS = """
poolformer_s12 poolformer_s24 metaformer_*                                                1024  1e-3   0.05  0.1
poolformer_s36                                                                            1024  1e-3   0.05  0.2
poolformer_m36                                                                            1024  1e-3   0.05  0.3
poolformer_m48                                                                            1024  1e-3   0.05  0.4
identityformer_s[12]* randformer_s[12]* poolformerv2_s[12]*                               4096  4e-3   0.05  0.1
identityformer_s36 randformer_s36 poolformerv2_s36                                        4096  4e-3   0.05  0.2
identityformer_m36 randformer_m36 poolformerv2_m36 randformer_m48                         4096  4e-3   0.05  0.3
identityformer_m48 poolformerv2_m48                                                       4096  4e-3   0.05  0.4
convformer_s18                                                                            4096  4e-3   0.05  0.2
convformer_s36                                                                            4096  4e-3   0.05  0.3
convformer_m36                                                                            4096  4e-3   0.05  0.4
convformer_b36                                                                            4096  4e-3   0.05  0.6
caformer_s18                                                                              4096  8e-3   0.05  0.15
caformer_s36                                                                              4096  8e-3   0.05  0.3
caformer_m36                                                                              4096  8e-3   0.05  0.4
caformer_b36                                                                              4096  8e-3   0.05  0.6
convformer_s18.in1k_384                                                                   1024  5e-5   0.05  0.3
convformer_s36.in1k_384                                                                   1024  5e-5   0.05  0.5
convformer_m36.in1k_384 convformer_b36.in1k_384                                           1024  5e-5   0.05  0.8
caformer_s18.in1k_384                                                                     1024  1e-4   0.05  0.3
caformer_s36.in1k_384                                                                     1024  1e-4   0.05  0.5
caformer_m36.in1k_384                                                                     1024  1e-4   0.05  0.7
caformer_b36.in1k_384                                                                     1024  1e-4   0.05  0.8
efficientvit_m*                                                                           2048  4e-3   0.025 0.0
shvit_s1 shvit_s1_distilled                                                               2048  4e-3   0.025 0.0
shvit_s2 shvit_s2_distilled                                                               2048  4e-3   0.032 0.0
shvit_s3 shvit_s3_distilled                                                               2048  4e-3   0.035 0.0
shvit_s4 shvit_s4_distilled                                                               2048  4e-3   0.03  0.0
van_b0 van_b1 van_b2                                                                      1024  1e-3   0.05  0.1
van_b3 van_b4 van_b5 van_b6                                                               1024  1e-3   0.05  0.2
fcaformer_l1 fcaformer_l1_dense                                                           1024  2e-3   0.05  0.0
fcaformer_l2 fcaformer_l2_dense                                                           1024  2e-3   0.05  0.1
fcaformer_l3 fcaformer_l3_dense                                                           1024  2e-3   0.05  0.2
fcaformer_l4 fcaformer_l4_dense                                                           1024  2e-3   0.05  0.4
pvt_tiny pvt_small pvt_v2_b0 pvt_v2_b1 pvt_v2_b2 pvt_v2_b2_li                             1024  1e-3   0.05  0.1
pvt_medium pvt_large pvt_v2_b3 pvt_v2_b4 pvt_v2_b5                                        1024  1e-3   0.05  0.3
ravlt_t mavit_t nalaformer_xt nalaformer_t favit_b*                                       1024  1e-3   0.05  0.1
ravlt_s mavit_s nalaformer_s                                                              1024  1e-3   0.05  0.15
ravlt_b mavit_b nalaformer_b                                                              1024  1e-3   0.05  0.4
ravlt_l mavit_l nalaformer_l                                                              1024  1e-3   0.05  0.55
cswin_tiny                                                                                2048  2e-3   0.05  0.2
cswin_small                                                                               2048  2e-3   0.05  0.4
cswin_base                                                                                1024  1e-3   0.1   0.5
cswin_base_384                                                                            256   5e-6   1e-8  0.7
cswin_large cswin_large_384                                                               512   2.5e-4 1e-8  0.2
inline_deit_tiny                                                                          4096  4e-3   0.05  0.1
inline_deit_small inline_pvt_tiny inline_pvt_small                                        1024  1e-3   0.05  0.1
inline_deit_base                                                                          512   5e-4   0.05  0.1
inline_pvt_medium inline_swin_small                                                       1024  1e-3   0.05  0.3
inline_pvt_large                                                                          512   5e-4   0.05  0.3
inline_swin_tiny inline_cswin_tiny                                                        1024  1e-3   0.05  0.2
inline_swin_base                                                                          512   5e-4   0.05  0.5
inline_cswin_small                                                                        1024  1e-3   0.05  0.4
inline_cswin_base                                                                         512   5e-4   0.1   0.5
inline_cswin_base_384 agent_cswin_base_384                                                256   2.5e-6 1e-8  0.7
agent_deit_tiny                                                                           4096  4e-3   0.05  0.0
agent_deit_small agent_pvt_tiny agent_pvt_small                                           1024  1e-3   0.05  0.1
agent_deit_small_448                                                                      512   5e-4   0.05  0.1
agent_deit_base agent_pvt_medium agent_swin_small                                         1024  1e-3   0.05  0.3
agent_pvt_medium_256 agent_pvt_large agent_swin_small_288                                 512   5e-4   0.05  0.3
agent_swin_tiny agent_cswin_tiny                                                          1024  1e-3   0.05  0.2
agent_swin_base                                                                           512   5e-4   0.05  0.5
agent_swin_base_384                                                                       256   1e-5   1e-8  0.5
agent_cswin_small                                                                         1024  1e-3   0.05  0.4
agent_cswin_base                                                                          512   5e-4   0.1   0.5
biformer_tiny biformer_base biformer_stl biformer_stl_nchw                                1024  1e-3   0.05  0.1
biformer_small                                                                            1024  1e-3   0.05  0.15
flowformer                                                                                768   7.5e-4 0.05  0.2
deit_t_prepbn deit_s_prepbn slab_deit_t slab_deit_s pvt_t_prepbn slab_pvt_t               1024  1e-3   0.05  0.0
swin_t_prepbn slab_pvt_v2_b0 slab_pvt_v2_b2                                               1024  1e-3   0.05  0.1
pvt_s_prepbn slab_pvt_s                                                                   512   5e-4   0.05  0.1
pvt_m_prepbn slab_swin_s slab_cswin_s                                                     1024  1e-3   0.05  0.3
slab_pvt_m                                                                                512   5e-4   0.05  0.3
slab_swin_t                                                                               1024  1e-3   0.05  0.2
slab_swin_b                                                                               512   5e-4   0.05  0.5
slab_cswin_t                                                                              2048  2e-3   0.05  0.1
nat_mini nat_tiny dinat_mini dinat_tiny dinat_s_tiny swinv2_tiny_*                        1024  1e-3   0.05  0.2
nat_small dinat_small dinat_s_small swinv2_small_*                                        1024  1e-3   0.05  0.3
nat_base dinat_base dinat_s_base swinv2_base_*                                            1024  1e-3   0.05  0.5
nat_isotropic_small dinat_isotropic_small vitrpb_small                                    1024  1e-3   0.05  0.1
nat_isotropic_base dinat_isotropic_base vitrpb_base                                       1024  1e-3   0.05  0.4
dinat_large dinat_s_large                                                                 512   5e-5   1e-4  0.35
dinat_large_384 dinat_large_384_11x11                                                     512   5e-5   1e-10 0.35
dinat_s_large_384                                                                         512   5e-5   1e-5  0.35
soft_tiny soft_small soft_norm_tiny soft_norm_small                                       1024  1e-3   0.05  0.1
soft_medium                                                                               1024  3.5e-4 0.05  0.1
soft_norm_medium                                                                          1024  4e-4   0.05  0.1
soft_large soft_norm_large                                                                1024  3.3e-4 0.05  0.1
soft_huge soft_norm_huge                                                                  1024  2.7e-4 0.05  0.1
ffnet_1 ffnet_1_deploy                                                                    1024  1e-3   0.05  0.1
ffnet_2 ffnet_2_deploy                                                                    1024  1e-3   0.05  0.15
ffnet_3 ffnet_3_deploy                                                                    1024  1e-3   0.05  0.35
ffnet_1.distilled_in1k                                                                    1024  1e-3   0.05  0.02
ffnet_2.distilled_in1k                                                                    1024  1e-3   0.05  0.08
ffnet_3.distilled_in1k                                                                    1024  1e-3   0.05  0.2
ffnet_3_384*                                                                              512   5e-6   1e-8  0.4
ffnet_4*                                                                                  512   5e-6   1e-8  0.5
l2vit_tiny l2vit_small                                                                    4096  4e-3   0.05  0.0
l2vit_base                                                                                4096  4e-3   0.05  0.3
l2vit_base.in22k_ft_in1k l2vit_base_384                                                   1024  4e-5   1e-8  0.2
"""
# what the registry says otherwise: it has 0 where the authors name no rate, recipes have the default of their scripts
DEFAULT_DROP_PATH = ("biformer_tiny", "biformer_base", "biformer_stl*", "favit_b[123]", "slab_pvt_v2_*")
# the authors squash images whole to the square at these sizes, the registry cuts the centre out
WHOLE_IMAGES = ("agent_swin_small_288", "agent_swin_base_384")

PUBLISHED = {  # top-1 of weights that the registry holds beside a model's first, %
    "convformer_s18.in1k_384": 84.4,
    "convformer_s36.in1k_384": 85.4,
    "convformer_m36.in1k_384": 85.6,
    "convformer_b36.in1k_384": 85.7,
    "caformer_s18.in1k_384": 85.0,
    "caformer_s36.in1k_384": 85.7,
    "caformer_m36.in1k_384": 86.2,
    "caformer_b36.in1k_384": 86.4,
    "ffnet_1.distilled_in1k": 82.1,
    "ffnet_2.distilled_in1k": 83.7,
    "ffnet_3.distilled_in1k": 84.5,
    "l2vit_base.in22k_ft_in1k": 86.0,
}
MODELS = [n for n, v in VARIANTS.items() if v.family not in WITHOUT_RECIPE] + list(PUBLISHED)

# model, epochs in all, warm-up epochs among them, rate that the warm-up starts from, least rate, how often it changes
SCHEDULES = [
    ("poolformer_s12", 310, 5, 1e-6, 1e-5, "epoch"),
    ("identityformer_s12", 310, 5, 1e-6, 1e-5, "epoch"),
    ("caformer_s36", 310, 20, 1e-6, 1e-5, "epoch"),
    ("efficientvit_m5", 300, 5, 1e-6, 1e-5, "epoch"),
    ("shvit_s4", 300, 5, 1e-6, 1e-5, "epoch"),
    ("van_b3", 310, 5, 1e-6, 1e-6, "epoch"),
    ("fcaformer_l2", 300, 20, 0.0, 1e-6, "step"),
    ("pvt_v2_b3", 300, 5, 1e-6, 1e-5, "epoch"),
    ("favit_b0", 300, 5, 1e-6, 1e-5, "epoch"),
    ("swinv2_base_window8_256", 300, 20, 1e-6, 1e-5, "step"),
    ("ravlt_b", 300, 5, 1e-6, 1e-5, "epoch"),
    ("mavit_b", 300, 5, 1e-6, 1e-5, "epoch"),
    ("nalaformer_b", 300, 5, 1e-6, 1e-5, "epoch"),
    ("cswin_base", 310, 20, 1e-6, 1e-5, "epoch"),
    ("inline_deit_tiny", 300, 20, 4e-6, 4e-5, "step"),
    ("inline_pvt_large", 310, 5, 1e-6, 1e-5, "step"),
    ("agent_cswin_tiny", 310, 20, 2e-6, 2e-5, "step"),
    ("agent_swin_base_384", 30, 5, 1e-8, 1e-7, "step"),
    ("biformer_small", 300, 5, 1e-6, 1e-5, "epoch"),
    ("flowformer", 300, 5, 1e-6, 1e-5, "epoch"),
    ("slab_deit_t", 300, 20, 1e-6, 1e-5, "step"),
    ("slab_pvt_m", 310, 5, 1e-6, 1e-5, "step"),
    ("slab_cswin_t", 310, 20, 4e-6, 4e-5, "step"),
    ("dinat_s_base", 310, 20, 1e-6, 5e-6, "step"),
    ("vitrpb_base", 310, 50, 1e-6, 5e-6, "step"),
    ("soft_norm_large", 300, 10, 1e-6, 5e-5, "epoch"),
    ("ffnet_3", 320, 5, 1e-6, 1e-5, "epoch"),
    ("l2vit_base", 300, 20, 0.0, 1e-6, "step"),
    ("l2vit_base_384", 30, 5, 4e-8, 4e-7, "step"),
]

# model, dotted key, value: what sets a family or a variant apart
APART = [
    ("shvit_s3", "optim.clip_mode", "agc"),
    ("shvit_s3", "optim.clip_grad", 0.02),
    ("shvit_s3", "ema.decay", 0.99996),
    ("shvit_s3", "compute.precision", "no"),
    ("shvit_s3_distilled", "distillation.kind", "hard"),
    ("caformer_s18", "optim.optimizer", "lamb"),
    ("caformer_s18", "regularisation.dropout", None),
    ("caformer_m36", "regularisation.dropout", 0.4),
    ("caformer_b36", "regularisation.dropout", 0.5),
    ("convformer_b36", "regularisation.dropout", None),
    ("caformer_m36.in1k_384", "regularisation.dropout", 0.4),
    ("convformer_m36.in1k_384", "regularisation.dropout", 0.5),
    ("convformer_m36.in1k_384", "schedule.schedule", "constant"),
    ("pvt_small", "optim.clip_grad", None),
    ("pvt_v2_b4", "optim.clip_grad", 1.0),
    ("pvt_v2_b4", "data.repeats", 3),
    ("flowformer", "data.repeats", 1),
    ("flowformer", "augment.random_erasing", 0.0),
    ("agent_pvt_tiny", "optim.clip_grad", None),
    ("agent_pvt_medium_256", "optim.clip_grad", 1.0),
    ("agent_swin_tiny", "optim.clip_grad", 5.0),
    ("agent_swin_tiny", "ema.decay", None),
    ("agent_cswin_small", "ema.decay", 0.99984),
    ("agent_cswin_base", "ema.decay", 0.99992),
    ("agent_cswin_base_384", "optim.clip_grad", None),
    ("inline_cswin_small", "ema.decay", 0.9999),
    ("inline_cswin_base", "ema.decay", 0.99995),
    ("cswin_large", "augment.cutmix", 0.3),
    ("cswin_base_384", "augment.cutmix", 0.1),
    ("slab_deit_s", "schedule.prepbn_steps", 60000),
    ("slab_swin_b", "schedule.prepbn_steps", 60000),
    ("slab_cswin_s", "schedule.prepbn_steps", 120000),
    ("slab_pvt_s", "schedule.prepbn_steps", 300000),
    ("deit_s_prepbn", "schedule.prepbn_steps", 300000),
    ("deit_t_prepbn", "schedule.prepbn_steps", None),
    ("swin_t_prepbn", "schedule.prepbn_steps", None),
    ("nat_isotropic_base", "ema.decay", 0.9998),
    ("nat_base", "ema.decay", None),
    ("dinat_large", "schedule.schedule", "poly"),
    ("dinat_large", "schedule.decay_rate", 1.0),
    ("dinat_large", "augment.mixup", 0.0),
    ("ffnet_2", "augment.mixup", 0.2),
    ("ffnet_3", "augment.mixup", 0.8),
    ("ffnet_2.distilled_in1k", "augment.mixup", 0.8),
    ("ravlt_s", "compute.sync_bn", True),
    ("ravlt_s", "ema.decay", 0.99992),
    ("l2vit_base_384", "data.crop_mode", "squash"),
]


@pytest.fixture(autouse=True)
def files_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's name is looked up in every file: they are parsed once for all tests."""
    monkeypatch.setattr(recipes, "recipe_variants", parsed_variants)


parsed_variants = cache(recipes.recipe_variants)


@cache
def rows() -> dict[str, tuple[float, ...]]:
    """Model -> (batch, rate, weight decay, drop path) of `SETTINGS`; each model must be in one row."""
    found: dict[str, tuple[float, ...]] = {}
    for line in SETTINGS.strip().splitlines():
        *patterns, batch, rate, decay, path = line.split()
        for name in [m for p in patterns for m in MODELS if fnmatch.fnmatchcase(m, p)]:
            assert name not in found, f"{name} is in two rows"
            found[name] = (float(batch), float(rate), float(decay), float(path))
    return found


@cache
def text(recipe: str) -> str:
    return (RECIPES / f"{recipe}.yaml").read_text()


def header(recipe: str) -> str:
    """The comment above a recipe, as one line."""
    return " ".join(line.lstrip("# ") for line in text(recipe).split("\nmodel:")[0].splitlines())


def section(recipe: str, word: str) -> str:
    found = re.search(rf"\b{word} (.*?)(?= (?:Result|Source|Cost|Differs) |$)", header(recipe))
    assert found, f"{recipe} has no {word}"
    return found[1].strip()


@cache
def base_and_variants(recipe: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    tree = yaml.safe_load(text(recipe))
    variants = tree.pop("variants")
    return parse_recipe(tree, recipe).model_dump(), variants


def value(recipe: Recipe | dict[str, Any], dotted: str) -> Any:
    found: Any = recipe if isinstance(recipe, dict) else recipe.model_dump()
    for key in dotted.split("."):
        found = found[key]
    return found


@cache
def home(model: str) -> str:
    """The recipe that a model's name stands for."""
    exact = [r for r in IMAGENET if model in base_and_variants(r)[1]]
    listed = exact or [r for r in IMAGENET if any(fnmatch.fnmatchcase(model, g) for g in base_and_variants(r)[1])]
    assert len(listed) == 1, f"{model} is listed by {listed}"
    return listed[0]


def test_every_family_has_a_recipe_or_a_reason() -> None:
    with_recipe = {get_variant(m).family for m in MODELS}
    assert with_recipe.isdisjoint(WITHOUT_RECIPE)
    assert with_recipe | set(WITHOUT_RECIPE) == set(FAMILIES)
    assert {home(m) for m in MODELS} == set(IMAGENET)


@pytest.mark.parametrize("name", MODELS)
def test_a_models_recipe_has_the_authors_figures(name: str) -> None:
    recipe, variant = load_recipe(name), get_variant(name)
    batch, rate, decay, path = rows()[name]
    assert recipe.model.name == name and recipe.data.batch == batch
    assert recipe.optim.lr_batch and recipe.optim.lr * batch / recipe.optim.lr_batch == pytest.approx(rate, rel=1e-9)
    assert (recipe.optim.weight_decay, recipe.regularisation.drop_path) == (decay, path)
    weights = next((w for w in variant.weights if name.endswith(f".{w.tag}")), variant.weights[0])
    assert recipe.data.size == (weights.resolution or variant.resolution)
    assert (recipe.data.mean, recipe.data.std) == (variant.mean, variant.std)
    assert recipe.data.crop_pct == (1.0 if name in WHOLE_IMAGES else weights.crop_pct)


def test_the_registry_has_the_same_drop_path_where_the_authors_name_one() -> None:
    others = {n for n in MODELS if n in VARIANTS and VARIANTS[n].drop_path != rows()[n][3]}
    assert others == {n for n in MODELS for p in DEFAULT_DROP_PATH if fnmatch.fnmatchcase(n, p)}
    assert all(VARIANTS[n].drop_path == 0 for n in others)


@pytest.mark.parametrize(("name", "epochs", "warmup", "start", "least", "per"), SCHEDULES)
def test_a_schedule_is_the_authors(name: str, epochs: int, warmup: int, start: float, least: float, per: str) -> None:
    recipe = load_recipe(name)
    plan = recipe.schedule
    scale = recipe.data.batch / (recipe.optim.lr_batch or 1) if plan.scale_ends else 1.0
    assert (plan.total_epochs, plan.warmup_epochs, plan.per) == (epochs, warmup, per)
    assert (plan.warmup_lr * scale, plan.min_lr * scale) == pytest.approx((start, least), rel=1e-9)


@pytest.mark.parametrize(("name", "key", "expected"), APART)
def test_what_sets_a_model_apart(name: str, key: str, expected: Any) -> None:
    assert value(load_recipe(name), key) == expected


@pytest.mark.parametrize("recipe", IMAGENET)
def test_variants_are_alive_and_say_only_what_differs(recipe: str) -> None:
    base, variants = base_and_variants(recipe)
    own = [m for m in MODELS if home(m) == recipe]
    for pattern, delta in variants.items():
        assert any(fnmatch.fnmatchcase(m, pattern) for m in own), f"{pattern} matches no model of {recipe}"
        same = [k for k, v in delta.items() if value(base, k) == v]
        assert not same, f"{pattern}: {same} are as in the recipe itself"


@pytest.mark.parametrize("recipe", IMAGENET)
def test_timm_takes_the_augmentation(recipe: str) -> None:
    found = load_recipe(recipe)
    transform = create_transform(
        found.data.size,
        is_training=True,
        scale=found.augment.crop_scale,
        ratio=found.augment.crop_ratio,
        hflip=found.augment.flip,
        color_jitter=found.augment.color_jitter,
        auto_augment=found.augment.auto_augment,
        interpolation=found.data.interpolation,
        re_prob=found.augment.random_erasing,
        re_mode=found.augment.random_erasing_mode,
        mean=found.data.mean,
        std=found.data.std,
    )
    assert any(isinstance(t, RandAugment) for t in transform.transforms)
    random.seed(0)
    np.random.seed(0)
    assert transform(Image.new("RGB", (300, 200), (200, 90, 30))).shape == (3, found.data.size, found.data.size)


def test_teachers_are_known_with_weights() -> None:
    teachers = {load_recipe(m).distillation.teacher for m in MODELS} - {None}
    assert teachers and teachers <= set(timm.list_pretrained())


@pytest.mark.parametrize("recipe", IMAGENET)
def test_a_header_lists_the_published_accuracies(recipe: str) -> None:
    figures = {n: float(f) for n, f in re.findall(r"([a-z][\w.]*) (\d\d\.\d)\b", section(recipe, "Result"))}
    own = {m: PUBLISHED.get(m, get_variant(m).top1) for m in MODELS if home(m) == recipe}
    assert figures == {m: top1 for m, top1 in own.items() if top1 is not None}


@pytest.mark.parametrize("recipe", IMAGENET)
def test_a_header_names_command_source_and_cost(recipe: str) -> None:
    assert all(f"# {word} " in text(recipe) for word in ("Command", "Result", "Source", "Cost"))
    command = section(recipe, "Command").split("; ")[0].split()
    assert command[:3] == ["mixzoo", "train", recipe]
    chosen = load_recipe(recipe, [word for word in command[3:] if "=" in word])
    assert chosen.data.root and home(chosen.model.name) == recipe
    commit = re.search(r" at ([0-9a-f]{7,})\b", section(recipe, "Source"))
    for variant in [get_variant(m) for m in MODELS if home(m) == recipe]:
        assert variant.paper in section(recipe, "Source")
        assert commit and commit[1] in (FAMILIES[variant.family].__doc__ or "")
    epochs = re.match(r"(\d+) epochs of 1.28 million images", section(recipe, "Cost"))
    assert epochs and int(epochs[1]) == load_recipe(recipe).schedule.total_epochs
