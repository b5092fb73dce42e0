"""SOFT and SOFT++: attention by a Gaussian kernel of low rank, without a softmax, and softmax attention at the end.

Papers: arXiv:2110.11945 (SOFT, NeurIPS 2021) and arXiv:2207.03341 (SOFT++, IJCV 2024; ``soft_norm_*``, whose inverse is
normalised). Weights: MIT. Facts: github.com/fudan-zvg/SOFT at d3febc3.

Blocks of the first three stages normalise after each branch, with an epsilon of 1e-5; those of the last stage, where a
class token joins the map, before, with 1e-6. The GELU of the former is its tanh approximation. Each stage has a learned
position table, resized bilinearly for other image sizes. The official code takes sides that divide by 32; here the map
is zero-padded for the landmarks alone where it does not.

Two things differ from the official code. In SOFT++ the inverse starts from a maximum over the whole batch there, so
that an image's logits depend on the images beside it (2e-5 relative); here it is that of the image, and equal for a
batch of one. And the drop path rate drops single numbers in the first three stages there, here whole branches.

``soft_small`` and ``soft_norm_small`` follow the code: 20 blocks in the third stage, 38.9 M parameters. The papers say
24 M, which 7 blocks would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from timm.layers import LayerNorm2d
from torch import nn

from ..blocks.block import MIXER, Branch, Plain
from ..blocks.channel import mlp
from ..blocks.downsample import strided_conv
from ..blocks.init import conv_normal
from ..blocks.mixers import Mixer, MixerFactory
from ..blocks.projection import SplitProjection
from ..blocks.stage import Stage, TokenStage
from ..blocks.stem import deep_stem
from ..blocks.tables import PositionEmbedding
from ..blocks.tokens import ClassToken
from .keys import KeyMap, View, flat_grid, linear_shape, rename
from .spec import BackboneSpec, HeadSpec, StageSpec, Variant, Weights, resolve_mixer

_OFFICIAL = KeyMap(
    rename(
        (r"^stem\.conv(\d)\.", lambda m: f"patch_embed1.proj.{3 * int(m[1]) - 3}."),
        (r"^stem\.norm(\d)\.", lambda m: f"patch_embed1.proj.{3 * int(m[1]) - 2}."),
        (r"^stages\.(\d+)\.downsample\.conv\.", lambda m: f"patch_embed{int(m[1]) + 1}.proj.0."),
        (r"^stages\.(\d+)\.downsample\.norm\.", lambda m: f"patch_embed{int(m[1]) + 1}.proj.1."),
        (r"^stages\.3\.position\.token$", "cls_token"),
        (r"^stages\.3\.position\.position$", "pos_embed4::0"),
        (r"^stages\.3\.position\.table$", "pos_embed4::1"),
        (r"^stages\.(\d+)\.position\.table$", lambda m: f"pos_embed{int(m[1]) + 1}"),
        (r"^stages\.3\.blocks\.", "block4."),
        (r"^block4\.(\d+)\.mix\.fn\.norm\.", r"block4.\1.norm1."),
        (r"^block4\.(\d+)\.mix\.fn\.mixer\.(qkv\.)?", r"block4.\1.attn."),
        (r"^block4\.(\d+)\.ffn\.fn\.norm\.", r"block4.\1.norm2."),
        (r"^block4\.(\d+)\.ffn\.fn\.", r"block4.\1."),
        (r"^stages\.(\d+)\.blocks\.(\d+)\.", lambda m: f"block{int(m[1]) + 1}.{m[2]}.att."),
        (r"\.mix\.fn\.mixer\.([qv])\.", r".mha.W_\1."),
        (r"\.mix\.fn\.mixer\.proj\.", ".mha.ff."),
        (r"\.mix\.fn\.mixer\.local\.", ".mha.attn.conv."),
        (r"\.mix\.fn\.mixer\.landmarks\.conv\.", ".mha.attn.Qlandmark_op."),
        (r"\.mix\.fn\.mixer\.landmarks\.norm\.", ".mha.attn.Qnorm_act.0."),
        (r"\.ffn\.fn\.mlp\.fc", ".ff"),
        (r"^head\.fc\.", "head."),
    ),
    (
        View(r"(W_[qv]|mha\.ff|ff[12]|attn\.(q|kv|proj)|mlp\.fc[12])\.weight$", linear_shape),
        View(r"^(pos_embed\d|cls_token)(::\d)?$", flat_grid, transposed=True),
    ),
)
_RATIOS, _KERNELS = (8, 4, 2), (9, 5, 3)  # of landmarks, and of the values' convolution, per stage


def soft_mixers(dims: Sequence[int], symmetric: bool = False) -> list[MixerFactory]:
    """The papers' mixers: heads 32 wide, softmax attention in the last stage.

    Args:
        dims: channels per stage.
        symmetric: the inverse of SOFT++.
    """
    last = Mixer("attention", head_dim=32, projection=SplitProjection, proj_bias=True)
    mixers = [
        Mixer("soft", ratio=ratio, kernel_size=kernel, symmetric=symmetric)
        for ratio, kernel, _ in zip(_RATIOS, _KERNELS, dims[:-1], strict=True)
    ]
    return [*mixers, last]


def build(
    depths: Sequence[int] = (1, 2, 3, 2),
    dims: Sequence[int] = (64, 128, 320, 512),
    mixers: Sequence[str | MixerFactory] | None = None,
    class_token: bool = True,
) -> BackboneSpec:
    """A SOFT of any depth and width, of four stages.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        mixers: token mixer per stage; by default `soft_mixers`.
        class_token: whether a learned token joins the last map and is what the classifier reads; the mixer of the last
            stage then has to know of it.
    """
    norm, last_norm = partial(LayerNorm2d, eps=1e-5), partial(LayerNorm2d, eps=1e-6)
    act = partial(nn.GELU, approximate="tanh")
    post = (
        Branch("mix", {"mixer": MIXER}), Plain("norm1", norm),
        Branch("ffn", {"mlp": mlp(4.0, act)}), Plain("norm2", norm),
    )  # fmt: skip
    pre = Branch("mix", {"norm": last_norm, "mixer": MIXER}), Branch("ffn", {"norm": last_norm, "mlp": mlp(4.0)})
    downsample = partial(strided_conv, post_norm=nn.BatchNorm2d, act=nn.ReLU)
    chosen = [resolve_mixer(m) for m in mixers or soft_mixers(dims)]
    position = partial(PositionEmbedding, mode="bilinear")
    stages = [
        StageSpec(depth, dim, post, mixer, downsample if i else None, position=position)
        for i, (depth, dim, mixer) in enumerate(zip(depths[:-1], dims[:-1], chosen[:-1], strict=True))
    ]
    make, last_position = (TokenStage, partial(ClassToken, mode="bilinear")) if class_token else (Stage, position)
    stages.append(
        StageSpec(
            depths[-1],
            dims[-1],
            pre,
            chosen[-1],
            downsample,
            make=make,
            position=last_position,
            prefix=int(class_token),
        )
    )
    return BackboneSpec(
        stem=partial(deep_stem, act=nn.ReLU, hidden=32, strides=(2, 1, 2), last_act=True),
        stages=tuple(stages),
        norm=last_norm,
        head=HeadSpec(pool="token" if class_token else "avg"),
        init=conv_normal,
        first_conv="stem.conv1",
        keys={"official": _OFFICIAL},
    )


# size: depths, width of the third stage, params (1e6), MACs (1e9), top-1 of SOFT and SOFT++ (%), their files
_TABLE: dict[str, tuple[tuple[int, ...], int, float, float, tuple[float, float], tuple[str | None, str | None]]] = {
    "tiny": (
        (1, 2, 3, 2), 320, 13.069056, 1.9, (79.3, 79.4),
        ("1S04DCotIOkP0DaBb8WStQ513z82qT9de", "1Isy5b9v_4pyIXDqhKPNRq3WKH0etDlfl"),
    ),
    "small": ((1, 3, 20, 4), 320, 38.858462, 3.3, (82.2, 82.4), (None, "1OBjn7FzVdNP1Urqxq7X0yDykyPhxAAW1")),
    "medium": ((1, 3, 29, 5), 288, 45.812707, 7.2, (82.9, 83.1), (None, "1K2C6daaJn3jwurWh38uvV7rexirWjuzh")),
    "large": ((1, 3, 40, 5), 320, 64.700646, 11.0, (83.1, 83.3), (None, "1aRYuF_gbBGyiXUDKEcpHJmM04SdvTUdP")),
    "huge": ((1, 5, 49, 5), 352, 87.108273, 16.3, (83.3, 83.4), (None, None)),
}  # fmt: skip
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


def _variant(size: str, symmetric: bool) -> Variant:
    depths, width, params, macs, accuracies, files = _TABLE[size]
    dims, top1, file = (64, 128, width, 512), accuracies[symmetric], files[symmetric]
    weights = Weights("in1k" if file else "", file and _DRIVE + file, top1=top1, macs_g=macs)
    return Variant(
        f"soft_{'norm_' * symmetric}{size}", "soft", build(depths, dims, soft_mixers(dims, symmetric)), params, macs,
        top1, 224, "2207.03341" if symmetric else "2110.11945", "MIT" if file else None, (weights,), 0.1,
        description="SOFT++" if symmetric else "SOFT",
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = tuple(_variant(size, symmetric) for symmetric in (False, True) for size in _TABLE)
