"""Swin and Swin V2: pyramids whose attention runs in windows that shift from block to block.

Papers: arXiv:2103.14030 (ICCV 2021) and arXiv:2111.09883 (CVPR 2022). Weights: MIT. Facts:
github.com/microsoft/Swin-Transformer at f82860b.

The published variants of the first version are timm's; here are its layout (`build`), which other families take with
mixers, norms or merging of their own, and the official names. Swin V2 (`build_v2`) compares by cosine, has a bias that
is defined for every window, norms at the end of branches, which start at zero, and the norm of merging after it.

An image that does not divide into patches of 4 x 4 is zero-padded at the bottom and right, as are odd maps before they
are merged; the authors' code takes sizes that divide. Norms have an epsilon of 1e-5. Windows keep their side at any
image size; where a map is smaller, Swin V2 measures its offsets in the smaller window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from timm.layers import LayerNorm2d
from torch import nn

from ..blocks.block import MIXER, Branch, Factory, Parts
from ..blocks.channel import mlp
from ..blocks.downsample import DownsampleFactory, patch_merging
from ..blocks.init import trunc_normal
from ..blocks.mixers import Mixer, MixerFactory
from ..blocks.stem import whole_patch_stem
from .keys import KeyMap, Layout, Rule, View, flat_grid, linear_shape, rename
from .spec import BackboneSpec, StageSpec, Variant, Weights, resolve_mixer

block_norm: Factory = partial(LayerNorm2d, eps=1e-5)

PLACES = rename(
    (r"^stem\.conv\.", "patch_embed.proj."),
    (r"^stem\.norm\.", "patch_embed.norm."),
    (r"^stages\.(\d+)\.downsample\.conv\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.reduction."),
    (r"^stages\.(\d+)\.downsample\.norm\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.norm."),
    (r"^stages\.", "layers."),
    (r"\.mix\.fn\.norm\.", ".norm1."),
    (r"\.mix\.fn\.mixer\.bias\.table$", ".attn.relative_position_bias_table"),
    (r"\.mix\.fn\.mixer\.bias\.mlp\.", ".attn.cpb_mlp."),
    (r"\.mix\.fn\.mixer\.log_scale$", ".attn.logit_scale"),
    (r"\.mix\.fn\.mixer\.qkv\.conv\.", ".attn.qkv."),
    (r"\.mix\.fn\.mixer\.qkv\.([qv]_bias)$", r".attn.\1"),
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
    constants = (r"relative_position_index$", r"relative_coords_table$", r"attn_mask$")
    return KeyMap((*first, *PLACES), (*views, *LAYOUT_VIEWS), constants)


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


def zero_norm(dim: int) -> nn.Module:
    """A LayerNorm at the end of a branch, which starts as zero."""
    norm = block_norm(dim)
    nn.init.zeros_(norm.get_parameter("weight"))
    return norm


def build_v2(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (96, 192, 384, 768),
    mixers: Sequence[str | MixerFactory] | None = None,
    window: int = 8,
    mlp_ratio: float = 4.0,
) -> BackboneSpec:
    """A Swin V2 of any depth and width, made for images of 256 x 256.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        mixers: token mixer per stage; by default cosine windows with heads 32 channels wide.
        window: side of the windows.
        mlp_ratio: expansion of the channel mixer.
    """
    own = [Mixer("cosine_window", num_heads=max(1, dim // 32), window=window) for dim in dims]
    block = (
        Branch("mix", {"mixer": MIXER, "norm": zero_norm}),
        Branch("ffn", {"mlp": mlp(mlp_ratio), "norm": zero_norm}),
    )
    merging = partial(patch_merging, post_norm=block_norm)
    return replace(build(depths, dims, mixers or own, mlp_ratio, block=block, merging=merging), img_size=256)


# name: depth of the third stage, width of the first, window, params (1e6), MACs (1e9), top-1 (%), drop path
_TABLE_V2 = {
    "swinv2_tiny_window8_256": (6, 96, 8, 28.347154, 5.9, 81.8, 0.2),
    "swinv2_small_window8_256": (18, 96, 8, 49.728418, 11.5, 83.7, 0.3),
    "swinv2_base_window8_256": (18, 128, 8, 87.918816, 20.3, 84.2, 0.5),
    "swinv2_tiny_window16_256": (6, 96, 16, 28.347154, 6.6, 82.8, 0.2),
    "swinv2_small_window16_256": (18, 96, 16, 49.728418, 12.6, 84.1, 0.3),
    "swinv2_base_window16_256": (18, 128, 16, 87.918816, 21.8, 84.6, 0.5),
}
_RELEASES = "https://github.com/SwinTransformer/storage/releases/download/v2.0.0"


def _v2(name: str) -> Variant:
    depth, width, window, params, macs, top1, drop_path = _TABLE_V2[name]
    spec = build_v2((2, 2, depth, 2), [width * 2**i for i in range(4)], window=window)
    file = name.replace("_window", "_patch4_window")
    weights = Weights("in1k", f"{_RELEASES}/{file}.pth", top1=top1, resolution=256, macs_g=macs)
    return Variant(
        name, "swin", spec, params, macs, top1, 256, "2111.09883", "MIT", (weights,), drop_path, description="Swin V2",
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = tuple(_v2(name) for name in _TABLE_V2)
