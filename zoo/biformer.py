"""BiFormer: regions of the map attend to the few regions that they match best.

Paper: arXiv:2303.08810 (CVPR 2023). Weights: MIT. Facts: github.com/rayleizhu/BiFormer at 1697bbb.

At 224 px the map is cut into 7 x 7 regions, of which each attends to 1, 4 and 16 in the first three stages; the last
stage attends to everything. Any image size works: where the map does not divide into regions there is padding, which
takes part in the attention as in the authors' code (see `BiLevelRoutingAttention`). For larger images the authors take
more regions: 8 a side at 512 px, 16 for detection, which is ``num_regions`` of `build`.

`build_stl` is the layout of Swin-T with this attention, for comparisons. ``biformer_stl_nchw`` has the mixers of the
authors' second version of the code. ``maxvit_stl``, which they publish no figures for, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from timm.layers import LayerNorm2d
from torch import nn

from ..blocks.block import MIXER, Branch
from ..blocks.channel import mlp
from ..blocks.downsample import strided_conv
from ..blocks.init import pointwise_normal
from ..blocks.mixers import Mixer
from ..blocks.stem import conv_stem
from .keys import KeyMap, Rewrite, View, linear_shape, rename
from .spec import BackboneSpec, StageSpec, Variant, Weights

_norm = partial(LayerNorm2d, eps=1e-6)
_LINEARS = View(r"(attn\.(qkv|qkv\.qkv|wo|proj)|mlp\.\d)\.weight$", linear_shape)
_Pair = tuple[str, Rewrite]
_LAST = r"^(stages\.3\..*)\.mix\.fn\.mixer\."  # its attention has other names than that of the stages before


def _keys(first: Sequence[_Pair], qkv: str, proj: str, mlp_out: int, views: tuple[View, ...] = ()) -> KeyMap:
    """Official names; ``first`` are rules of the layout, ``qkv`` and ``proj`` the projections of routing attention."""
    return KeyMap(
        rename(
            *first,
            (_LAST, r"\1.attn."),
            (r"\.mix\.fn\.mixer\.qkv\.", f".attn.{qkv}."),
            (r"\.mix\.fn\.mixer\.proj\.", f".attn.{proj}."),
            (r"\.mix\.fn\.mixer\.", ".attn."),
            (r"\.mix\.fn\.norm\.", ".norm1."),
            (r"\.ffn\.fn\.norm\.", ".norm2."),
            (r"\.ffn\.fn\.mlp\.fc1\.", ".mlp.0."),
            (r"\.ffn\.fn\.mlp\.fc2\.", f".mlp.{mlp_out}."),
            (r"^head\.fc\.", "head."),
        ),
        views,
    )


_PYRAMID: tuple[_Pair, ...] = (
    (r"^stem\.conv1\.conv\.", "downsample_layers.0.0."),
    (r"^stem\.conv1\.norm\.", "downsample_layers.0.1."),
    (r"^stem\.conv2\.conv\.", "downsample_layers.0.3."),
    (r"^stem\.conv2\.norm\.", "downsample_layers.0.4."),
    (r"^stages\.(\d+)\.downsample\.conv\.", r"downsample_layers.\1.0."),
    (r"^stages\.(\d+)\.downsample\.norm\.", r"downsample_layers.\1.1."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
    (r"\.position\.fn\.dwconv\.", ".pos_embed."),
)
_SWIN_LIKE: tuple[_Pair, ...] = (
    (r"^stem\.conv\.", "downsample_layers.0.0."),
    (r"^stem\.norm\.", "downsample_layers.0.1."),
    (r"^stages\.(\d+)\.downsample\.norm\.", r"downsample_layers.\1.0."),
    (r"^stages\.(\d+)\.downsample\.conv\.", r"downsample_layers.\1.1."),
)
_OFFICIAL = _keys(_PYRAMID, "qkv.qkv", "wo", 3, (_LINEARS,))
_OFFICIAL_STL = _keys(_SWIN_LIKE, "qkv.qkv", "wo", 2, (_LINEARS,))
_OFFICIAL_STL_NCHW = _keys(_SWIN_LIKE, "qkv_linear", "output_linear", 2)


def routing_mixers(dims: Sequence[int], num_regions: int = 7, first_version: bool = True) -> list[Mixer]:
    """The papers' mixers of four stages.

    Args:
        dims: channels per stage.
        num_regions: along each side of the map.
        first_version: which version of the authors' code; they differ in padding, and in the last stage.
    """
    routing = [
        Mixer("bilevel_routing", topk=topk, num_regions=num_regions, pad_input=first_version) for topk in (1, 4, 16)
    ]
    return [*routing, Mixer("enhanced_attention", head_dim=dims[3] // 8, enhance_input=first_version)]


def _depthwise(dim: int) -> nn.Module:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


def build(
    depths: Sequence[int] = (2, 2, 8, 2),
    dims: Sequence[int] = (64, 128, 256, 512),
    mlp_ratio: float = 3,
    num_regions: int = 7,
) -> BackboneSpec:
    """A BiFormer of any depth and width.

    Args:
        depths: blocks per stage, four.
        dims: channels per stage.
        mlp_ratio: expansion of the channel mixer.
        num_regions: along each side of the map; more for larger images.
    """
    block = (
        Branch("position", {"dwconv": _depthwise}),
        Branch("mix", {"norm": _norm, "mixer": MIXER}),
        Branch("ffn", {"norm": _norm, "mlp": mlp(mlp_ratio)}),
    )
    down = partial(strided_conv, post_norm=nn.BatchNorm2d)
    mixers = routing_mixers(dims, num_regions)
    return BackboneSpec(
        stem=conv_stem(2, nn.GELU, down),
        stages=tuple(
            StageSpec(depth, dim, block, mixer, down if i else None)
            for i, (depth, dim, mixer) in enumerate(zip(depths, dims, mixers, strict=True))
        ),
        norm=nn.BatchNorm2d,
        init=pointwise_normal,
        first_conv="stem.conv1.conv",
        keys={"official": _OFFICIAL},
    )


def build_stl(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (96, 192, 384, 768),
    mlp_ratio: float = 4,
    first_version: bool = True,
) -> BackboneSpec:
    """The layout of Swin-T: patches of 4 x 4, then of 2 x 2, and no depthwise convolution in front of the blocks.

    Args:
        depths, dims, mlp_ratio: as in `build`.
        first_version: which version of the authors' code, see `routing_mixers`.
    """
    block = (Branch("mix", {"norm": _norm, "mixer": MIXER}), Branch("ffn", {"norm": _norm, "mlp": mlp(mlp_ratio)}))
    down = partial(strided_conv, kernel_size=2, padding=0, pre_norm=nn.BatchNorm2d)
    mixers = routing_mixers(dims, first_version=first_version)
    return BackboneSpec(
        stem=partial(strided_conv, kernel_size=4, stride=4, padding=0, post_norm=nn.BatchNorm2d),
        stages=tuple(
            StageSpec(depth, dim, block, mixer, down if i else None)
            for i, (depth, dim, mixer) in enumerate(zip(depths, dims, mixers, strict=True))
        ),
        norm=nn.BatchNorm2d,
        init=pointwise_normal,
        keys={"official": _OFFICIAL_STL if first_version else _OFFICIAL_STL_NCHW},
    )


# name: spec, params (1e6), MACs (1e9), top-1 (%), drop path, share of the weights
_TABLE: dict[str, tuple[BackboneSpec, float, float, float, float, str]] = {
    "biformer_tiny": (build(), 13.14276, 2.2, 81.4, 0.0, "s!AkBbczdRlZvChHEOoGkgwgQzEDlM"),
    "biformer_small": (build((4, 4, 18, 4)), 25.536232, 4.5, 83.8, 0.15, "s!AkBbczdRlZvChHDyM-x9KWRBZ832"),
    "biformer_base": (
        build((4, 4, 18, 4), (96, 192, 384, 768)), 56.804968, 9.8, 84.3, 0.0, "s!AkBbczdRlZvChHI_XPhoadjaNxtO",
    ),
    "biformer_stl": (build_stl(), 28.372552, 4.6, 82.7, 0.0, "s!AkBbczdRlZvChSf-m7ujkvx9lIQ1"),
    "biformer_stl_nchw": (
        build_stl(first_version=False), 28.372552, 4.6, 82.7, 0.0, "s!AkBbczdRlZvChWYrKbWbMgqd2Ai0",
    ),
}  # fmt: skip


def _variant(name: str) -> Variant:
    spec, params, macs, top1, drop_path, share = _TABLE[name]
    file = Weights("in1k", f"https://api.onedrive.com/v1.0/shares/{share}/root/content", top1=top1, macs_g=macs)
    return Variant(
        name, "biformer", spec, params, macs, top1, 224, "2303.08810", "MIT", (file,), drop_path,
        description="BiFormer",
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = tuple(_variant(name) for name in _TABLE)
