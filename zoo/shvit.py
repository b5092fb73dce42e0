"""SHViT: single-head attention on part of the channels, three stages from stride 16 on.

Paper: arXiv:2401.16456 (CVPR 2024). Weights: MIT. Facts: github.com/ysj9909/SHViT at 6a729cc.

Any image size works unchanged: there are no position parameters, and every strided convolution gives ceil(n / 2).
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
from .keys import KeyMap, Rewrite, rename
from .spec import BackboneSpec, HeadSpec, StageSpec, Variant, Weights

# names in other code bases; `sandwich_keys` also serve EfficientViT, which has the same stem, downsampling and head

_DOWN = (("dw0", "0.0"), ("ffn0", "0.1"), ("dw1", "2.0"), ("ffn1", "2.1"))


def _in_next_stage(theirs: str) -> Rewrite:
    return lambda m: f"blocks{int(m[1]) + 1}.{theirs}.m."


def sandwich_keys() -> tuple[tuple[str, Rewrite], ...]:
    """Official names of stem, downsampling, blocks and head."""
    down: list[tuple[str, Rewrite]] = [
        (rf"^stages\.(\d+)\.downsample\.{ours}\.fn\.", _in_next_stage(theirs)) for ours, theirs in _DOWN
    ]
    return (
        (r"^stem\.conv(\d)\.", lambda m: f"patch_embed.{2 * (int(m[1]) - 1)}."),
        *down,
        (r"^stages\.(\d+)\.downsample\.merge\.", lambda m: f"blocks{int(m[1]) + 1}.1."),
        (r"^stages\.0\.blocks\.", "blocks1."),
        (r"^stages\.(\d+)\.blocks\.(\d+)", lambda m: f"blocks{int(m[1]) + 1}.{int(m[2]) + 3}"),
        (r"\.(fn\.mlp|m)\.fc([12])\.", r".m.pw\2."),
        (r"\.fn\.dw\.", ".m."),
        (r"^head\.norm_dist\.", "head_dist.bn."),
        (r"^head\.fc_dist\.", "head_dist.l."),
        (r"^head\.norm\.", "head.bn."),
        (r"^head\.fc\.", "head.l."),
        (r"\.conv\.weight$", ".c.weight"),
    )


_MIXER_KEYS: tuple[tuple[str, Rewrite], ...] = (
    (r"\.mix\.fn\.mixer\.norm\.", ".mixer.m.pre_norm."),
    (r"\.mix\.fn\.mixer\.qkv\.", ".mixer.m.qkv."),
    (r"\.mix\.fn\.mixer\.proj\.", ".mixer.m.proj.1."),
)
_TIMM_DOWN = (("dw0", "0.m"), ("ffn0", "1.m"), ("merge", "2"), ("dw1", "3.m"), ("ffn1", "4.m"))
_OFFICIAL = KeyMap(rename(*_MIXER_KEYS, *sandwich_keys()))
_TIMM = KeyMap(
    rename(
        *_MIXER_KEYS,
        (r"^stem\.conv(\d)\.", lambda m: f"patch_embed.{2 * (int(m[1]) - 1)}."),
        *((rf"\.downsample\.{ours}\.(fn\.)?", f".downsample.{theirs}.") for ours, theirs in _TIMM_DOWN),
        (r"\.(fn\.mlp|m)\.fc([12])\.", r".m.pw\2."),
        (r"\.fn\.dw\.", ".m."),
        (r"^head\.norm\.", "head.bn."),
        (r"^head\.fc\.", "head.l."),
        (r"\.conv\.weight$", ".c.weight"),
    )
)


def build(
    depths: Sequence[int] = (2, 4, 5),
    dims: Sequence[int] = (128, 224, 320),
    partial_dims: Sequence[int | None] = (None, None, None),
    qk_dim: int = 16,
) -> BackboneSpec:
    """A SHViT of any depth and width; the first stage mixes by convolution only.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        partial_dims: channels that attend, per stage; None takes the paper's ratio. The first entry is not used.
        qk_dim: width of queries and keys.
    """
    block = (
        Branch("conv", {"dw": partial(depthwise_norm, bn_weight=0.0)}),
        Branch("mix", {"mixer": MixerSlot(foreign_norm=nn.BatchNorm2d)}),
        Branch("ffn", {"mlp": norm_mlp(2.0)}),
    )
    stages = tuple(
        StageSpec(
            depth,
            dim,
            block,
            Mixer("single_head", partial_dim=part, qk_dim=qk_dim) if i else None,
            sandwich_merging if i else None,
        )
        for i, (depth, dim, part) in enumerate(zip(depths, dims, partial_dims, strict=True))
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


# name: depths, dims, partial dims, resolution, params (1e6), MACs (1e9), top-1 (%)
_TABLE = {
    "shvit_s1": ((2, 4, 5), (128, 224, 320), (32, 48, 68), 224, 6.330808, 0.241, 72.8),
    "shvit_s2": ((2, 4, 5), (128, 308, 448), (32, 66, 96), 224, 11.483072, 0.366, 75.2),
    "shvit_s3": ((3, 5, 5), (192, 352, 448), (48, 75, 96), 224, 14.245, 0.601, 77.4),
    "shvit_s4": ((4, 7, 6), (224, 336, 448), (48, 72, 96), 256, 16.588484, 0.986, 79.4),
}
_RELEASES = "https://github.com/ysj9909/SHViT/releases/download/v1.0"


def distilled(spec: BackboneSpec) -> BackboneSpec:
    """``spec`` with a second classifier for a teacher's labels."""
    return replace(spec, head=replace(spec.head, distilled=True))


def _variants(name: str) -> tuple[Variant, Variant]:
    depths, dims, parts, resolution, params, macs, top1 = _TABLE[name]
    file = Weights(
        "in1k", f"{_RELEASES}/{name}.pth", f"timm/{name}.in1k", top1=top1, resolution=resolution, macs_g=macs
    )
    spec = replace(build(depths, dims, parts), img_size=resolution)
    plain = Variant(
        name, "shvit", spec, params, macs, top1, resolution, "2401.16456", "MIT", (file,), description="SHViT"
    )
    extra = (2 * dims[-1] + 1000 * dims[-1] + 1000) / 1e6
    return plain, replace(
        plain,
        name=f"{name}_distilled",
        spec=distilled(spec),
        params_m=params + extra,
        top1=None,
        licence=None,
        weights=(Weights(resolution=resolution),),
        description="SHViT with a distillation head",
    )


VARIANTS: tuple[Variant, ...] = tuple(v for name in _TABLE for v in _variants(name))
