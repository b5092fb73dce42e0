"""PVT and PVT v2: pyramids whose attention looks at a spatially reduced map.

Papers: arXiv:2102.12122 (PVT, ICCV 2021) and arXiv:2106.13797 (PVT v2, CVM 2022). Weights: Apache-2.0. Facts:
github.com/whai362/PVT at 57e2dfa, classification.

PVT (`build`) has non-overlapping patch convolutions, a learned position table per stage, resized bilinearly for other
sizes, and no norm between stages. The published models have a class token in the last stage, which the classifier reads
(see `mixzoo.blocks.tokens`). PVT v2 (`build_v2`) has overlapping patches, a norm after each stage, and a depthwise
convolution in its channel mixer instead of position tables; ``pvt_v2_b2_li`` pools keys and values to 7 x 7. Rows and
columns that do not fill a patch or a reduction kernel are dropped, as in the official code. The norms in front of
branches have an epsilon of 1e-6, those of patches and reductions 1e-5.

Both layouts take their token mixers and norms as arguments, and serve other families that way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from timm.layers import LayerNorm2d
from torch import nn

from ..blocks.block import MIXER, Branch, Factory
from ..blocks.channel import ChannelFactory, depthwise_mlp, mlp
from ..blocks.downsample import strided_conv
from ..blocks.geometry import num_heads_for
from ..blocks.init import conv_normal, pointwise_normal
from ..blocks.mixers import Mixer, MixerFactory
from ..blocks.stage import TokenStage
from ..blocks.stem import patch_stem
from ..blocks.tables import PositionEmbedding
from ..blocks.tokens import ClassToken
from .keys import KeyMap, Layout, Rule, View, flat_grid, linear_shape, rename
from .spec import BackboneSpec, HeadSpec, StageSpec, Variant, Weights, resolve_mixer

block_norm: Factory = partial(LayerNorm2d, eps=1e-6)
patch_norm: Factory = partial(LayerNorm2d, eps=1e-5)
_position = partial(PositionEmbedding, mode="bilinear")
_token_position = partial(ClassToken, mode="bilinear")

# names in other code bases

_BLOCK = rename(
    (r"\.mix\.fn\.norm\.", ".norm1."),
    (r"\.mix\.fn\.mixer\.reduce\.conv\.", ".attn.sr."),
    (r"\.mix\.fn\.mixer\.reduce\.norm\.", ".attn.norm."),
    (r"\.mix\.fn\.mixer\.", ".attn."),
    (r"\.ffn\.fn\.norm\.", ".norm2."),
    (r"\.ffn\.fn\.mlp\.", ".mlp."),
    (r"^head\.fc\.", "head."),
)
_LINEARS = View(r"(attn\.(q|kv|proj)|mlp\.fc[12])\.weight$", linear_shape)
_TABLES = View(r"^(pos_embed\d|cls_token)(::\d)?$", flat_grid, transposed=True)
_TOKEN = rename(
    (r"^stages\.\d+\.position\.token$", "cls_token"),
    (r"^stages\.3\.position\.position$", "pos_embed4::0"),
    (r"^stages\.3\.position\.table$", "pos_embed4::1"),
)


def official_keys(*first: Rule, views: Sequence[View | Layout] = ()) -> KeyMap:
    """The official names of both layouts.

    Args:
        first: rules for a family's own mixers, which come before these.
        views: shapes of a family's own mixers.
    """
    places = rename(
        (r"^stem\.conv\.", "patch_embed1.proj."),
        (r"^stem\.norm\.", "patch_embed1.norm."),
        (r"^stages\.(\d+)\.downsample\.conv\.", lambda m: f"patch_embed{int(m[1]) + 1}.proj."),
        (r"^stages\.(\d+)\.downsample\.norm\.", lambda m: f"patch_embed{int(m[1]) + 1}.norm."),
        (r"^stages\.(\d+)\.position\.table$", lambda m: f"pos_embed{int(m[1]) + 1}"),
        (r"^stages\.(\d+)\.norm\.", lambda m: f"norm{int(m[1]) + 1}."),
        (r"^stages\.(\d+)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
        (r"\.mlp\.dwconv\.", ".mlp.dwconv.dwconv."),
    )
    return KeyMap((*first, *places[:-1], *_BLOCK, places[-1]), (*views, _LINEARS, _TABLES))


_TIMM_V2 = KeyMap(
    rename((r"^stem\.conv\.", "patch_embed.proj."), (r"^stem\.norm\.", "patch_embed.norm."))
    + rename((r"\.downsample\.conv\.", ".downsample.proj."))
    + _BLOCK,
    (_LINEARS,),
)

# the layouts


def reduction_mixers(
    dims: Sequence[int], ratios: Sequence[int] = (8, 4, 2, 1), norm: Factory = patch_norm
) -> list[Mixer]:
    """The papers' mixers per stage: heads as wide as the first stage, keys and values ``ratios`` times reduced."""
    return [
        Mixer("spatial_reduction", num_heads=num_heads_for(dim, dims[0]), ratio=ratio, norm=norm)
        for dim, ratio in zip(dims, ratios, strict=True)
    ]


def build(
    depths: Sequence[int] = (2, 2, 2, 2),
    dims: Sequence[int] = (64, 128, 320, 512),
    mixers: Sequence[str | MixerFactory] | None = None,
    mlp_ratios: Sequence[float] = (8, 8, 4, 4),
    norm: Factory = block_norm,
    embed_norm: Factory = patch_norm,
    class_token: bool = False,
    keys: KeyMap | None = None,
) -> BackboneSpec:
    """A PVT.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        mixers: token mixer per stage; by default `reduction_mixers`.
        mlp_ratios: expansion of the channel mixer, per stage.
        norm: in front of both branches; with a class token, also after the last block.
        embed_norm: of the patches.
        class_token: whether a learned token joins the last map and is what the classifier reads, as in the published
            models. Without one the last map is averaged, with no norm after it.
        keys: official names; by default `official_keys`.
    """
    stages = _stages(depths, dims, mixers, [mlp(r) for r in mlp_ratios], norm)
    downsample = partial(strided_conv, kernel_size=2, padding=0, post_norm=embed_norm)
    placed = [replace(s, downsample=downsample if i else None, position=_position) for i, s in enumerate(stages)]
    if class_token:
        placed[-1] = replace(placed[-1], make=TokenStage, position=_token_position, prefix=1)
    return BackboneSpec(
        stem=partial(strided_conv, kernel_size=4, stride=4, padding=0, post_norm=embed_norm),
        stages=tuple(placed),
        norm=norm if class_token else nn.Identity,
        head=HeadSpec(pool="token" if class_token else "avg"),
        init=pointwise_normal,
        keys={"official": keys or official_keys(*(_TOKEN if class_token else ()))},
    )


def build_v2(
    depths: Sequence[int] = (2, 2, 2, 2),
    dims: Sequence[int] = (64, 128, 320, 512),
    mixers: Sequence[str | MixerFactory] | None = None,
    mlp_ratios: Sequence[float] = (8, 8, 4, 4),
    channel: Callable[[float], ChannelFactory] = depthwise_mlp,
    norm: Factory = block_norm,
    embed_norm: Factory = patch_norm,
    keys: KeyMap | None = None,
) -> BackboneSpec:
    """A PVT v2.

    Args:
        depths, dims, mixers, mlp_ratios, embed_norm, keys: as in `build`.
        channel: channel mixer for an expansion.
        norm: in front of both branches, and after each stage.
    """
    stages = _stages(depths, dims, mixers, [channel(r) for r in mlp_ratios], norm)
    downsample = partial(strided_conv, post_norm=embed_norm)
    return BackboneSpec(
        stem=patch_stem(padding=3, norm=embed_norm),
        stages=tuple(replace(s, downsample=downsample if i else None, norm=norm) for i, s in enumerate(stages)),
        init=conv_normal,
        keys={"official": keys or official_keys(), "timm": _TIMM_V2},
    )


def _stages(
    depths: Sequence[int],
    dims: Sequence[int],
    mixers: Sequence[str | MixerFactory] | None,
    channels: Sequence[ChannelFactory],
    norm: Factory,
) -> list[StageSpec]:
    chosen = [resolve_mixer(m) for m in mixers or reduction_mixers(dims)]
    return [
        StageSpec(
            depth, dim, (Branch("mix", {"norm": norm, "mixer": MIXER}), Branch("ffn", {"norm": norm, "mlp": c})), m
        )
        for depth, dim, m, c in zip(depths, dims, chosen, channels, strict=True)
    ]


# name: depths, params (1e6), MACs (1e9), top-1 (%), drop path
_TABLE = {
    "pvt_tiny": ((2, 2, 2, 2), 13.229288, 1.9, 75.1, 0.1),
    "pvt_small": ((3, 4, 6, 3), 24.485864, 3.8, 79.8, 0.1),
    "pvt_medium": ((3, 4, 18, 3), 44.208104, 6.7, 81.2, 0.3),
    "pvt_large": ((3, 8, 27, 3), 61.36932, 9.8, 81.7, 0.3),
}
# name: depths, width of the first stage, params, MACs, top-1, drop path
_TABLE_V2 = {
    "pvt_v2_b0": ((2, 2, 2, 2), 32, 3.66676, 0.6, 70.5, 0.1),
    "pvt_v2_b1": ((2, 2, 2, 2), 64, 14.009, 2.1, 78.7, 0.1),
    "pvt_v2_b2": ((3, 4, 6, 3), 64, 25.362856, 4.04, 82.0, 0.1),
    "pvt_v2_b2_li": ((3, 4, 6, 3), 64, 22.553512, 3.9, 82.1, 0.1),
    "pvt_v2_b3": ((3, 4, 18, 3), 64, 45.238696, 6.9, 83.1, 0.3),
    "pvt_v2_b4": ((3, 8, 27, 3), 64, 62.556072, 10.1, 83.6, 0.3),
    "pvt_v2_b5": ((3, 6, 40, 3), 64, 81.956008, 11.8, 83.8, 0.3),
}
_RELEASES = "https://github.com/whai362/PVT/releases/download/v2"


def _pooled_v2(depths: Sequence[int], dims: Sequence[int]) -> BackboneSpec:
    """The linear form: keys and values from a 7 x 7 map, and a ReLU in front of the depthwise convolution."""
    mixers = [Mixer("pooled_attention", num_heads=num_heads_for(dim, dims[0])) for dim in dims]
    return build_v2(depths, dims, mixers, channel=partial(depthwise_mlp, inner_act=nn.ReLU))


def _v1(name: str) -> Variant:
    depths, params, macs, top1, drop_path = _TABLE[name]
    file = Weights("in1k", f"{_RELEASES}/{name}.pth", top1=top1, macs_g=macs)
    return Variant(
        name, "pvt", build(depths, class_token=True), params, macs, top1, 224, "2102.12122", "Apache-2.0", (file,),
        drop_path, description="PVT",
    )  # fmt: skip


def _v2(name: str) -> Variant:
    depths, width, params, macs, top1, drop_path = _TABLE_V2[name]
    dims = (width, 2 * width, 5 * width, 8 * width)
    ratios = (4, 4, 4, 4) if name == "pvt_v2_b5" else (8, 8, 4, 4)
    spec = _pooled_v2(depths, dims) if name.endswith("_li") else build_v2(depths, dims, mlp_ratios=ratios)
    file = Weights("in1k", f"{_RELEASES}/{name}.pth", f"timm/{name}.in1k", top1=top1, macs_g=macs)
    return Variant(
        name, "pvt", spec, params, macs, top1, 224, "2106.13797", "Apache-2.0", (file,), drop_path,
        description="PVT v2",
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = (*(_v1(name) for name in _TABLE), *(_v2(name) for name in _TABLE_V2))
