"""The zoo by name: variants become timm entrypoints, and names become models."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureListNet
from torch import nn

from ..blocks.deploy import redeploy
from . import (
    affnet,
    agent,
    biformer,
    cswin,
    deit,
    efficientvit,
    favit,
    fcaformer,
    ffnet,
    flowformer,
    inline,
    l2vit,
    mavit,
    metaformer,
    nalaformer,
    nat,
    pvt,
    ravlt,
    shvit,
    slab,
    soft,
    swin,
    van,
    weights,
)
from .download import fetch
from .errors import CheckpointError, DeployFormError, MixzooError, UnknownModelError, UnknownNameError
from .shell import Backbone, factory
from .spec import BackboneSpec, Variant, Weights

_MODULES = (
    metaformer,
    efficientvit,
    shvit,
    van,
    fcaformer,
    pvt,
    swin,
    affnet,
    deit,
    ravlt,
    mavit,
    cswin,
    inline,
    biformer,
    flowformer,
    agent,
    slab,
    nat,
    soft,
    ffnet,
    favit,
    l2vit,
    nalaformer,
)
FAMILIES = {m.__name__.rsplit(".", 1)[-1]: m for m in _MODULES}
VARIANTS: dict[str, Variant] = {v.name: v for module in FAMILIES.values() for v in module.VARIANTS}
_SHELL_OPTIONS = (
    "num_classes",
    "in_chans",
    "global_pool",
    "img_size",
    "mixer",
    "drop_rate",
    "drop_path_rate",
    "ffn_width",
)
_SPEC_OPTIONS = ("mixer_options",)
_EXTRACTOR_OPTIONS = ("features_only", "out_indices")
_TIMM_OPTIONS = (
    *_EXTRACTOR_OPTIONS,
    "device",
    "dtype",
    "feature_cls",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
)


def list_models(filter: str = "", family: str = "", pretrained: bool = False) -> list[str]:
    """Names of the zoo's models, as their papers have them.

    Args:
        filter: glob, as in ``"shvit_*"``; all by default.
        family: only this family.
        pretrained: only models with published weights.
    """
    variants = (v for v in VARIANTS.values() if not family or v.family == family)
    return [v.name for v in variants if fnmatch.fnmatch(v.name, filter or "*") and (v.has_weights or not pretrained)]


def get_variant(name: str) -> Variant:
    """The variant called ``name``, with or without a weights tag and with or without timm's ``mz_`` prefix.

    Raises:
        UnknownModelError: no such model; the message has near names.
    """
    base = name.split(".", 1)[0]
    found = VARIANTS.get(base) or VARIANTS.get(base.removeprefix("mz_"))
    if found is None:
        raise UnknownModelError(name, [*VARIANTS, *FAMILIES])
    return found


def timm_name(name: str) -> str:
    """The name under which `timm.create_model` builds ours: the paper's, or ``mz_<name>`` where timm has its own."""
    return _TIMM_NAMES[get_variant(name).name]


def create_model(
    name: str,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model by its paper's name, or a new member of a family by the family's name.

    Args:
        name: a variant ("van_b2", or with a weights tag "caformer_s18.in1k_384"), or a family ("metaformer"). Where a
            variant has its family's name, it is the family's if an option of ``build`` is given.
        pretrained: load the published weights.
        checkpoint_path: a local file in any form (official, timm, mixzoo, deploy); see `mixzoo.zoo.weights`. A deploy
            form gives a model in deploy form.
        options: those of `Backbone` (num_classes, in_chans, img_size, mixer, ffn_width, ...), timm's (features_only,
            out_indices, ...), for a variant ``mixer_options`` (see `BackboneSpec.with_mixer_options`), and for a family
            name those of its ``build`` (depths, dims, mixers, ...).

    Raises:
        UnknownModelError: no such model or family.
        MixzooError: an unknown option.
        CheckpointError: weights that cannot be had or do not fit.
    """
    if name in FAMILIES and (name not in VARIANTS or set(options) & set(_build_options(name))):
        return _create_custom(name, options, pretrained, checkpoint_path)
    variant = get_variant(name)
    _check_options(options, (*_SHELL_OPTIONS, *_SPEC_OPTIONS, *_TIMM_OPTIONS), variant.name)
    tag = name.partition(".")[2]
    if tag:
        _weights_by_tag(variant, tag)
        options.setdefault("pretrained_cfg", tag)
    if checkpoint_path is None:
        return timm.create_model(timm_name(variant.name), pretrained=pretrained, **options)
    overlay = {**(options.pop("pretrained_cfg_overlay", None) or {}), "file": str(checkpoint_path), "custom_load": True}
    try:
        return timm.create_model(timm_name(variant.name), pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except DeployFormError:
        model = redeploy(cast(Backbone, timm.create_model(timm_name(variant.name), **options)), "folded")
        weights.fit(model, weights.load_checkpoint_file(checkpoint_path), str(checkpoint_path))
        return model


def _build_options(family: str) -> tuple[str, ...]:
    code = FAMILIES[family].build.__code__
    return tuple(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def _create_custom(
    family: str, options: dict[str, Any], pretrained: bool, checkpoint: str | Path | None
) -> Backbone | FeatureGetterNet:
    if pretrained:
        raise CheckpointError(f"A {family} of your own design has no published weights: drop pretrained=True.")
    names = _build_options(family)
    _check_options(options, (*names, *_SHELL_OPTIONS, *_EXTRACTOR_OPTIONS), family)
    dense, indices = options.pop("features_only", False), options.pop("out_indices", None)
    model = _custom_backbone(family, names, options)
    model.head_optional = dense
    if checkpoint:
        weights.load(model, checkpoint)
    return FeatureGetterNet(model, _every_map(model.spec) if indices is None else indices) if dense else model


def _custom_backbone(family: str, names: tuple[str, ...], options: dict[str, Any]) -> Backbone:
    """A backbone of the family's ``build``; ``names`` are its options, and the others are the shell's."""
    build: Callable[..., BackboneSpec] = FAMILIES[family].build
    shell = {k: options.pop(k) for k in _SHELL_OPTIONS if k in options and k not in names}
    try:
        spec = build(**options)
    except (TypeError, ValueError) as error:  # unknown, missing, or of unequal lengths
        raise MixzooError(
            f"create_model({family!r}) needs other options ({error}): it takes {', '.join(names)}."
        ) from error
    model = Backbone(spec, **shell)
    model.pretrained_cfg = model.default_cfg = _cfg(  # type: ignore[assignment]
        Variant(name=family, family=family, spec=spec, resolution=model.img_size[0]), Weights()
    ) | {"architecture": family, "num_classes": model.num_classes, "input_size": (model.in_chans, *model.img_size)}
    return model


def _check_options(options: dict[str, Any], known: tuple[str, ...], owner: str) -> None:
    for option in options:
        if option not in known:
            raise UnknownNameError("option", option, known, f"{owner} takes {', '.join(known)}.")


def _weights_by_tag(variant: Variant, tag: str) -> Weights:
    for item in variant.weights:
        if item.tag == tag:
            return item
    raise UnknownNameError(f"weights tag of {variant.name}", tag, [w.tag for w in variant.weights if w.tag])


# timm


def _cfg(variant: Variant, item: Weights) -> dict[str, Any]:
    """timm's description of a variant with one set of weights."""
    heads = ("head.fc", "head.fc_dist") if variant.spec.head.distilled else "head.fc"
    stride = {1: 16, 3: 64}.get(len(variant.spec.stages), 32)
    resolution = item.resolution or variant.resolution
    return {
        "url": item.url or "",
        "hf_hub_id": item.hf_hub_id,
        "custom_load": True,
        "num_classes": item.num_classes,
        "input_size": (3, resolution, resolution),
        "pool_size": None if variant.spec.stages[-1].prefix else (-(-resolution // stride),) * 2,
        "crop_pct": item.crop_pct,
        "interpolation": "bicubic",
        "mean": variant.mean,
        "std": variant.std,
        "first_conv": variant.spec.first_conv,
        "classifier": heads,
        "license": variant.licence,
        "paper_ids": f"arXiv:{variant.paper}",
        "paper_name": variant.description or None,
    }


def _entrypoint(variant: Variant, name: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        dense = bool(options.get("features_only"))
        spec = variant.spec.with_mixer_options(options.pop("mixer_options", None))
        spec = spec if dense else replace(spec, necks=None)
        _check_extractor(spec, name, options.get("feature_cls"))
        overlay = dict(options.pop("pretrained_cfg_overlay", None) or {})
        if pretrained and not any(overlay.get(k) for k in ("file", "url", "state_dict", "hf_hub_id")):
            item = _selected(variant, options.get("pretrained_cfg"))
            overlay |= {"file": str(fetch(variant.name, item, options.get("cache_dir")))}
        if overlay.get("file") or overlay.get("url"):
            overlay.setdefault("custom_load", True)
        placement: dict[str, Any] = {k: options.pop(k) for k in ("device", "dtype") if k in options}
        return build_model_with_cfg(
            partial(_construct, spec, placement, dense),
            name,
            pretrained,
            pretrained_cfg_overlay=overlay or None,
            feature_cfg={"out_indices": _every_map(spec), "feature_cls": "getter", "flatten_sequential": True},
            **options,
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{variant.name}: {variant.description} (arXiv:{variant.paper})"
    return build


def _every_map(spec: BackboneSpec) -> int | tuple[int, ...]:
    """The maps that an extractor gives where none are named: those of all stages, or of one stage's last blocks."""
    return min(3, spec.stages[0].depth) if spec.isotropic else tuple(range(len(spec.stages)))


def _construct(spec: BackboneSpec, placement: dict[str, Any], dense: bool, **options: Any) -> Backbone:
    with factory(**placement):
        model = Backbone(spec, **options)
    model.head_optional = dense  # timm drops the head of a feature extractor after its weights are loaded
    return model


def _check_extractor(spec: BackboneSpec, name: str, extractor: Any) -> None:
    """Refuse timm's extractors that take maps from inside the model, where a model makes them beside its stages."""
    beside = spec.necks or spec.stages[-1].prefix
    chained = spec.isotropic and extractor in ("list", "dict", FeatureListNet, FeatureDictNet)
    if chained:
        raise MixzooError(f"{name} gives the maps after its blocks, which {extractor!r} cannot reach: use the getter.")
    if beside and extractor not in (None, "getter", FeatureGetterNet):
        raise MixzooError(f"{name} gives its maps through the getter only: leave out feature_cls={extractor!r}.")


def _selected(variant: Variant, cfg: Any) -> Weights:
    tag = cfg if isinstance(cfg, str) else (getattr(cfg, "tag", None) or (cfg or {}).get("tag") if cfg else None)
    return _weights_by_tag(variant, tag) if tag else variant.weights[0]


def _register_all() -> dict[str, str]:
    """Register every variant with timm, beside timm's own; returns paper name -> name in timm."""
    owned = set(timm.list_models())
    names = {v.name: f"mz_{v.name}" if v.name in owned else v.name for v in VARIANTS.values()}
    for family, module in FAMILIES.items():
        members = [v for v in VARIANTS.values() if v.family == family]
        cfgs: dict[str, Any] = {f"{names[v.name]}.{w.tag}".rstrip("."): _cfg(v, w) for v in members for w in v.weights}
        vars(module).update(default_cfgs=generate_default_cfgs(cfgs))
        for variant in members:
            entry = _entrypoint(variant, names[variant.name])
            entry.__module__ = module.__name__
            setattr(sys.modules[module.__name__], entry.__name__, entry)
            register_model(entry)
    return names


_TIMM_NAMES = _register_all()
