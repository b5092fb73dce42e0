"""CSWin Transformer: attention in vertical and horizontal stripes, which widen from stage to stage.

Paper: arXiv:2107.00652 (CVPR 2022). Weights: MIT. Facts: github.com/microsoft/CSWin-Transformer at f111ae2
(models/cswin.py, README.md).

The stem is a 7x7 convolution of stride 4, stages are merged by 3x3 convolutions of stride 2, both with a LayerNorm
after them. Stripes are 1, 2 and 7 positions wide (12 in the third stage of a model for 384 x 384 images); the last
stage attends over the whole map. The layout takes its mixers and norms as arguments, and serves other families that
way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from timm.layers import LayerNorm2d

from ..blocks.block import MIXER, Branch, Factory, MixerSlot
from ..blocks.channel import mlp
from ..blocks.downsample import strided_conv
from ..blocks.init import pointwise_normal
from ..blocks.mixers import Mixer, MixerFactory
from ..blocks.stem import patch_stem
from .keys import KeyMap, Layout, Rule, View, linear_shape, rename
from .spec import BackboneSpec, StageSpec, Variant, Weights, resolve_mixer

layer_norm: Factory = partial(LayerNorm2d, eps=1e-5)
Members = Mapping[str, Factory | MixerSlot]

_LINEARS = View(r"((qkv|proj)|mlp\.fc[12])\.weight$", linear_shape)


def official_keys(*first: Rule, views: Sequence[View | Layout] = ()) -> KeyMap:
    """The official names.

    Args:
        first: rules for a family's own mixers, which come before these.
        views: shapes of a family's own mixers.
    """
    rules = rename(
        (r"^stem\.conv\.", "stage1_conv_embed.0."),
        (r"^stem\.norm\.", "stage1_conv_embed.2."),
        (r"^stages\.(\d+)\.downsample\.", r"merge\1."),
        (r"^stages\.(\d+)\.blocks\.", lambda m: f"stage{int(m[1]) + 1}."),
        (r"\.mix\.fn\.mixer\.lepe\.(\d+)\.", r".attns.\1.get_v."),
        (r"\.mix\.fn\.norm\.", ".norm1."),
        (r"\.mix\.fn\.mixer\.", "."),
        (r"\.ffn\.fn\.norm\.", ".norm2."),
        (r"\.ffn\.fn\.mlp\.", ".mlp."),
        (r"^head\.fc\.", "head."),
    )
    return KeyMap((*first, *rules), (*views, _LINEARS))


def stripe_mixers(
    dims: Sequence[int], head_dim: int = 32, splits: Sequence[int | None] = (1, 2, 7, None)
) -> list[Mixer]:
    """The paper's mixers per stage."""
    return [
        Mixer("cross_window", num_heads=dim // head_dim, split=split) for dim, split in zip(dims, splits, strict=True)
    ]


def build(
    depths: Sequence[int] = (1, 2, 21, 1),
    dims: Sequence[int] = (64, 128, 256, 512),
    mixers: Sequence[str | MixerFactory] | None = None,
    norm: Factory = layer_norm,
    mix: Sequence[Members] | None = None,
    img_size: int = 224,
    keys: KeyMap | None = None,
) -> BackboneSpec:
    """A CSWin Transformer of any depth, width and mixers.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        mixers: token mixer per stage; by default `stripe_mixers` with heads 32 wide, or less in narrow models.
        norm: of branches, of the stem and between stages, and of the last map.
        mix: members of the mixing branch per stage; by default ``norm`` and the mixer.
        img_size: side of the images that tables are made for.
        keys: official names; by default `official_keys`.
    """
    chosen = [resolve_mixer(m) for m in mixers or stripe_mixers(dims, min(32, dims[0] // 2))]
    members = mix or [{"norm": norm, "mixer": MIXER}] * len(chosen)
    ffn = Branch("ffn", {"norm": norm, "mlp": mlp(4.0)})
    merge = partial(strided_conv, post_norm=norm)
    stages = [
        StageSpec(depth, dim, (Branch("mix", part), ffn), mixer, merge if i else None)
        for i, (depth, dim, mixer, part) in enumerate(zip(depths, dims, chosen, members, strict=True))
    ]
    return BackboneSpec(
        stem=patch_stem(padding=2, norm=norm),
        stages=tuple(stages),
        norm=norm,
        img_size=img_size,
        init=pointwise_normal,
        keys={"official": keys or official_keys()},
    )


_RELEASES = "https://github.com/microsoft/CSWin-Transformer/releases/download/v0.1.0"
_HEADS, _WIDE_HEADS, _LARGE_HEADS = (2, 4, 8, 16), (4, 8, 16, 32), (6, 12, 24, 24)
# name: depths, width of the first stage, heads, image side, params (1e6), MACs (1e9), top-1 (%), drop path
_TABLE = {
    "cswin_tiny": ((1, 2, 21, 1), 64, _HEADS, 224, 22.320552, 4.3, 82.8, 0.2),
    "cswin_small": ((2, 4, 32, 2), 64, _HEADS, 224, 34.643304, 6.9, 83.6, 0.4),
    "cswin_base": ((2, 4, 32, 2), 96, _WIDE_HEADS, 224, 77.382184, 15.0, 84.2, 0.5),
    "cswin_base_384": ((2, 4, 32, 2), 96, _WIDE_HEADS, 384, 77.382184, 47.0, 85.5, 0.7),
    "cswin_large": ((2, 4, 32, 2), 144, _LARGE_HEADS, 224, 173.262664, 31.5, 86.5, 0.2),
    "cswin_large_384": ((2, 4, 32, 2), 144, _LARGE_HEADS, 384, 173.262664, 96.8, 87.5, 0.2),
}


def _variant(name: str) -> Variant:
    depths, width, heads, side, params, macs, top1, drop_path = _TABLE[name]
    splits = (1, 2, side // 32, None)
    mixers = [Mixer("cross_window", num_heads=n, split=split) for n, split in zip(heads, splits, strict=True)]
    spec = build(depths, [width * 2**i for i in range(4)], mixers, img_size=side)
    tag, crop = ("in22k_ft_in1k" if "large" in name else "in1k"), (0.9 if side == 224 else 1.0)
    url = f"{_RELEASES}/{name.removesuffix('_384')}_{side}.pth"
    file = Weights(tag, url, top1=top1, resolution=side, macs_g=macs, crop_pct=crop)
    return Variant(
        name, "cswin", spec, params, macs, top1, side, "2107.00652", "MIT", (file,), drop_path,
        description="CSWin Transformer",
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = tuple(_variant(name) for name in _TABLE)
