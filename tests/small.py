"""One small member of every family and kind of backbone, with weights that comparisons can be made on."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import timm
import torch
from mixzoo.zoo.fill import calibrate_, fill_
from mixzoo.zoo.registry import VARIANTS, timm_name
from mixzoo.zoo.shell import Backbone
from torch import nn

KINDS = (
    "shvit_s1", "shvit_s1_distilled", "efficientvit_m0", "van_b0", "fcaformer_l1", "fcaformer_l1_dense",
    "poolformer_s12", "poolformerv2_s12", "randformer_s12", "identityformer_s12", "convformer_s18", "caformer_s18",
    "metaformer_pppa_s12_224", "pvt_v2_b0", "pvt_v2_b2_li", "affnet_et",
    "ravlt_t", "mavit_t", "flowformer",
    "inline_pvt_tiny", "inline_cswin_tiny",
    "biformer_tiny", "biformer_stl_nchw",
    "agent_swin_tiny", "swinv2_tiny_window8_256",
    "slab_pvt_v2_b0", "slab_swin_t",
    "dinat_mini", "dinat_isotropic_small",
    "pvt_tiny", "inline_deit_tiny",
    "soft_tiny", "soft_norm_tiny",
    "ffnet_1",
    "favit_b0",
    "l2vit_tiny", "nalaformer_xt",
)  # fmt: skip
FROM_SIXTEEN = ("shvit_s1", "shvit_s1_distilled", "efficientvit_m0")  # three stages, at strides 16, 32, 64
TOKENS = ("pvt_tiny", "inline_deit_tiny", "soft_tiny", "soft_norm_tiny")  # a class token beside the last map
FROM_TWO = ("affnet_et",)  # five stages, at strides 2 to 32
PAIRS = ("fcaformer", "swin", "l2vit")  # in which a block depends on its place
ISOTROPIC = ("dinat_isotropic_small", "inline_deit_tiny")  # one stage at stride 16


def reductions(name: str) -> list[int]:
    """Strides of the maps that `features_only` gives by default."""
    if name in ISOTROPIC:
        return [16] * 3  # of the last three blocks
    first, last = (16, 64) if name in FROM_SIXTEEN else (2 if name in FROM_TWO else 4, 32)
    return [2**n for n in range(first.bit_length() - 1, last.bit_length())]


def make(name: str, **options: Any) -> nn.Module:
    """The zoo's ``name`` through `timm.create_model`."""
    return timm.create_model(timm_name(name), **options)


def shallow(name: str, dense: bool = False, **options: Any) -> Backbone:
    """``name`` in evaluation mode with filled weights, float32, with a block per stage, or two to hand tokens across,
    to shift windows or to take turns, or three where maps are taken after blocks.

    With ``dense``, it has what it has for `features_only` too.
    """
    return copy.deepcopy(
        _shallow(
            name, 3 if name in ISOTROPIC else 2 if any(f in name for f in PAIRS) else 1, dense, tuple(options.items())
        )
    )


@cache
def _shallow(name: str, depth: int, dense: bool, options: tuple[tuple[str, Any], ...]) -> Backbone:
    spec = VARIANTS[name].spec
    necks = spec.necks if dense else None
    spec = replace(spec, necks=necks, stages=tuple(replace(s, depth=min(s.depth, depth)) for s in spec.stages))
    return ready(Backbone(spec, **{"num_classes": 10, **dict(options)}))


def ready(model: Backbone) -> Backbone:
    """``model`` in evaluation mode with filled weights and batch norms that fit them."""
    side = 64 if len(model.stages) == 4 else 128  # the last map is 2 x 2: one position a sample tells no variance
    return calibrate_(fill_(model).eval(), (side, side), batch=4)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal float32 images (B, 3, H, W) that depend on ``seed`` only."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
