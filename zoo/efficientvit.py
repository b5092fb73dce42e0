"""EfficientViT (Microsoft): cascaded group attention in local windows, three stages from stride 16 on.

Paper: arXiv:2305.07027 (CVPR 2023). Weights: MIT. Facts: github.com/microsoft/Cream at 4a13c40, EfficientViT.

The official classifier runs at its constructor's square size only. Here any size runs: windows are at most 7 x 7 and
never larger than the map, and a bias table made for another window is resized bicubically, as the official fine-tuning
does when a checkpoint changes size. ``img_size=`` sets the size that the tables are made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from ..blocks.channel import norm_mlp
from ..blocks.conv import depthwise_norm
from ..blocks.downsample import sandwich_merging
from ..blocks.init import linear_trunc_normal
from ..blocks.mixers import Mixer
from ..blocks.stage import Branch, MixerSlot
from ..blocks.stem import conv_stem
from .keys import KeyMap, Rewrite, View, rename
from .shvit import distilled, sandwich_keys
from .spec import BackboneSpec, HeadSpec, StageSpec, Variant, Weights

_MIXER_KEYS: tuple[tuple[str, Rewrite], ...] = (
    (r"\.mix\.fn\.mixer\.bias\.table$", ".mixer.m.attn.attention_biases"),
    (r"\.mix\.fn\.mixer\.proj\.", ".mixer.m.attn.proj.1."),
    (r"\.mix\.fn\.mixer\.", ".mixer.m.attn."),
)
_TABLES = (View(r"attention_biases$", lambda t: (t.shape[0], t[0].numel())),)
_DROPPED = (r"attention_bias_idxs$",)
_TIMM_DOWN = (
    ("dw0", "res1.0.m"),
    ("ffn0", "res1.1.m"),
    ("merge", "patchmerge"),
    ("dw1", "res2.0.m"),
    ("ffn1", "res2.1.m"),
)
_OFFICIAL = KeyMap(rename(*_MIXER_KEYS, *sandwich_keys()), _TABLES, _DROPPED)
_TIMM = KeyMap(
    rename(
        *_MIXER_KEYS,
        (r"^stem\.conv(\d)\.", r"patch_embed.conv\1."),
        *((rf"\.downsample\.{ours}\.(fn\.)?", f".downsample.{theirs}.") for ours, theirs in _TIMM_DOWN),
        (r"\.(fn\.mlp|m)\.fc([12])\.", r".m.pw\2."),
        (r"\.fn\.dw\.", ".m."),
        (r"^head\.norm\.", "head.bn."),
        (r"^head\.fc\.", "head.linear."),
    ),
    _TABLES,
    _DROPPED,
)


def build(
    depths: Sequence[int] = (1, 2, 3),
    dims: Sequence[int] = (64, 128, 192),
    num_heads: Sequence[int] = (4, 4, 4),
    kernels: Sequence[int] = (5, 5, 5, 5),
    key_dim: int = 16,
    window: int = 7,
) -> BackboneSpec:
    """An EfficientViT of any depth and width.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        num_heads: heads of the cascade per stage; each divides the stage's channels.
        kernels: side of the depthwise kernel on the queries, per head, in all stages.
        key_dim: width of queries and keys of a head.
        window: side of the attention windows.
    """
    dw = partial(depthwise_norm, bn_weight=0.0)
    block = (
        Branch("dw0", {"dw": dw}),
        Branch("ffn0", {"mlp": norm_mlp(2.0)}),
        Branch("mix", {"mixer": MixerSlot(foreign_norm=nn.BatchNorm2d)}),
        Branch("dw1", {"dw": dw}),
        Branch("ffn1", {"mlp": norm_mlp(2.0)}),
    )
    stages = tuple(
        StageSpec(
            depth,
            dim,
            block,
            Mixer("cascaded_group", num_heads=heads, key_dim=key_dim, kernels=tuple(kernels), window=window),
            sandwich_merging if i else None,
        )
        for i, (depth, dim, heads) in enumerate(zip(depths, dims, num_heads, strict=True))
    )
    return BackboneSpec(
        stem=conv_stem(4, nn.ReLU),
        stages=stages,
        head=HeadSpec(norm=nn.BatchNorm1d),
        init=linear_trunc_normal,
        first_conv="stem.conv1.conv",
        weights_key="model",
        keys={"official": _OFFICIAL, "timm": _TIMM},
    )


# name: depths, dims, heads, kernels, params (1e6), MACs (1e9), top-1 (%)
_TABLE = {
    "efficientvit_m0": ((1, 2, 3), (64, 128, 192), (4, 4, 4), (5, 5, 5, 5), 2.349436, 0.079, 63.2),
    "efficientvit_m1": ((1, 2, 3), (128, 144, 192), (2, 3, 3), (7, 5, 3, 3), 2.981, 0.167, 68.4),
    "efficientvit_m2": ((1, 2, 3), (128, 192, 224), (4, 3, 2), (7, 5, 3, 3), 4.187554, 0.201, 70.8),
    "efficientvit_m3": ((1, 2, 3), (128, 240, 320), (4, 3, 4), (5, 5, 5, 5), 6.900722, 0.263, 73.4),
    "efficientvit_m4": ((1, 2, 3), (128, 256, 384), (4, 4, 4), (7, 5, 3, 3), 8.804, 0.299, 74.3),
    "efficientvit_m5": ((1, 3, 4), (192, 288, 384), (3, 3, 4), (7, 5, 3, 3), 12.473772, 0.522, 77.1),
}
_RELEASES = "https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0"


def _variants(name: str) -> tuple[Variant, Variant]:
    depths, dims, heads, kernels, params, macs, top1 = _TABLE[name]
    file = Weights("in1k", f"{_RELEASES}/{name}.pth", f"timm/{name}.r224_in1k", top1=top1, macs_g=macs)
    spec = build(depths, dims, heads, kernels)
    plain = Variant(
        name, "efficientvit", spec, params, macs, top1, 224, "2305.07027", "MIT", (file,), description="EfficientViT"
    )
    extra = (2 * dims[-1] + 1000 * dims[-1] + 1000) / 1e6
    return plain, replace(
        plain,
        name=f"{name}_distilled",
        spec=distilled(spec),
        params_m=params + extra,
        top1=None,
        licence=None,
        weights=(Weights(),),
        description="EfficientViT with a distillation head",
    )


VARIANTS: tuple[Variant, ...] = tuple(v for name in _TABLE for v in _variants(name))
