"""Swin: a pyramid whose attention runs in windows that shift from block to block.

Paper: arXiv:2103.14030. Facts: github.com/microsoft/Swin-Transformer at f82860b. The published variants of this first
version are timm's; here are the layout, which other families take with mixers, norms or merging of their own, and the
official names.

An image that does not divide into patches of 4 x 4 is zero-padded at the bottom and right, as are odd maps before they
are merged. Norms have an epsilon of 1e-5. Windows are 7 x 7 at any image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from timm.layers import LayerNorm2d

from ..blocks.channel import mlp
from ..blocks.downsample import DownsampleFactory, patch_merging
from ..blocks.init import trunc_normal
from ..blocks.mixers import Mixer, MixerFactory
from ..blocks.stage import MIXER, Branch, Factory, Parts
from ..blocks.stem import whole_patch_stem
from .keys import KeyMap, Layout, Rule, View, flat_grid, linear_shape, rename
from .spec import BackboneSpec, StageSpec, Variant, resolve_mixer

block_norm: Factory = partial(LayerNorm2d, eps=1e-5)

PLACES = rename(
    (r"^stem\.conv\.", "patch_embed.proj."),
    (r"^stem\.norm\.", "patch_embed.norm."),
    (r"^stages\.(\d+)\.downsample\.conv\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.reduction."),
    (r"^stages\.(\d+)\.downsample\.norm\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.norm."),
    (r"^stages\.", "layers."),
    (r"\.mix\.fn\.norm\.", ".norm1."),
    (r"\.mix\.fn\.mixer\.bias\.table$", ".attn.relative_position_bias_table"),
    (r"\.mix\.fn\.mixer\.", ".attn."),
    (r"\.ffn\.fn\.norm\.", ".norm2."),
    (r"\.ffn\.fn\.mlp\.", ".mlp."),
    (r"^head\.fc\.", "head."),
)
LAYOUT_VIEWS = (
    View(r"(qkv|proj|fc1|fc2|reduction)\.weight$", lambda t: linear_shape(t) if t.shape[-1] == 1 else t.shape),
    View(r"relative_position_bias_table$", flat_grid, transposed=True),
)


def official_keys(*first: Rule, views: Sequence[View | Layout] = ()) -> KeyMap:
    """The official names of the layout.

    Args:
        first: rules for a family's own mixers, which come before these.
        views: shapes of a family's own mixers.
    """
    return KeyMap((*first, *PLACES), (*views, *LAYOUT_VIEWS), (r"relative_position_index$", r"attn_mask$"))


def pre_norm(norm: Factory, ratio: float) -> Parts:
    """A block with a norm in front of each branch."""
    return Branch("mix", {"norm": norm, "mixer": MIXER}), Branch("ffn", {"norm": norm, "mlp": mlp(ratio)})


def window_mixers(num_heads: Sequence[int], window: int = 7) -> list[Mixer]:
    """The paper's mixers, per stage."""
    return [Mixer("window", num_heads=heads, window=window) for heads in num_heads]


def build(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (96, 192, 384, 768),
    mixers: Sequence[str | MixerFactory] | None = None,
    mlp_ratio: float = 4.0,
    norm: Factory = block_norm,
    block: Parts | None = None,
    merging: DownsampleFactory | None = None,
    keys: KeyMap | None = None,
) -> BackboneSpec:
    """A Swin of any depth and width.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        mixers: token mixer per stage; by default windows of 7 x 7 with heads 32 channels wide.
        mlp_ratio: expansion of the channel mixer.
        norm: of the patches, in front of branches and merging, and after the last stage.
        block: what each block is made of; by default `pre_norm`.
        merging: what runs between stages; by default `patch_merging` with the norm in front.
        keys: official names; by default `official_keys`.
    """
    chosen = [resolve_mixer(m) for m in mixers or window_mixers([max(1, dim // 32) for dim in dims])]
    merging = merging or partial(patch_merging, pre_norm=norm)
    parts = block or pre_norm(norm, mlp_ratio)
    stages = tuple(
        StageSpec(depth, dim, parts, mixer, merging if i else None)
        for i, (depth, dim, mixer) in enumerate(zip(depths, dims, chosen, strict=True))
    )
    return BackboneSpec(
        stem=whole_patch_stem(4, norm),
        stages=stages,
        norm=norm,
        init=trunc_normal,
        keys={"official": keys or official_keys()},
    )


VARIANTS: tuple[Variant, ...] = ()
