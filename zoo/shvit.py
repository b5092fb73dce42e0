"""SHViT: single-head attention on part of the channels, three stages from stride 16 on.

Paper: arXiv:2401.16456 (CVPR 2024). Weights: MIT. Facts: github.com/ysj9909/SHViT at 6a729cc.

Any image size works unchanged: there are no position parameters, and every strided convolution gives ceil(n / 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from ..blocks.block import Branch, MixerSlot
from ..blocks.channel import norm_mlp
from ..blocks.conv import depthwise_norm
from ..blocks.mixers import Mixer
from .keys import KeyMap, Rewrite, rename
from .sandwich import official_keys, sandwich_spec, timm_keys, with_distilled
from .spec import BackboneSpec, Variant, Weights

_MIXER_KEYS: tuple[tuple[str, Rewrite], ...] = (
    (r"\.mix\.fn\.mixer\.norm\.", ".mixer.m.pre_norm."),
    (r"\.mix\.fn\.mixer\.qkv\.", ".mixer.m.qkv."),
    (r"\.mix\.fn\.mixer\.proj\.", ".mixer.m.proj.1."),
)
_TIMM_STEM: tuple[str, Rewrite] = (r"^stem\.conv(\d)\.", lambda m: f"patch_embed.{2 * (int(m[1]) - 1)}.")
_TIMM_DOWN = {"dw0": "0.m", "ffn0": "1.m", "merge": "2", "dw1": "3.m", "ffn1": "4.m"}
_TIMM = (*timm_keys(_TIMM_STEM, _TIMM_DOWN, "l"), (r"\.conv\.weight$", ".c.weight"))
_KEYS = {
    "official": KeyMap(rename(*_MIXER_KEYS, *official_keys())),
    "timm": KeyMap(rename(*_MIXER_KEYS, *_TIMM)),
}


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
    attention = [Mixer("single_head", partial_dim=part, qk_dim=qk_dim) for part in partial_dims[1:]]
    return sandwich_spec(depths, dims, block, [None, *attention], _KEYS)


# name: depths, dims, partial dims, resolution, params (1e6), MACs (1e9), top-1 (%)
_TABLE = {
    "shvit_s1": ((2, 4, 5), (128, 224, 320), (32, 48, 68), 224, 6.330808, 0.241, 72.8),
    "shvit_s2": ((2, 4, 5), (128, 308, 448), (32, 66, 96), 224, 11.483072, 0.366, 75.2),
    "shvit_s3": ((3, 5, 5), (192, 352, 448), (48, 75, 96), 224, 14.245, 0.601, 77.4),
    "shvit_s4": ((4, 7, 6), (224, 336, 448), (48, 72, 96), 256, 16.588484, 0.986, 79.4),
}
_RELEASES = "https://github.com/ysj9909/SHViT/releases/download/v1.0"


def _variants(name: str) -> tuple[Variant, Variant]:
    depths, dims, parts, resolution, params, macs, top1 = _TABLE[name]
    file = Weights(
        "in1k", f"{_RELEASES}/{name}.pth", f"timm/{name}.in1k", top1=top1, resolution=resolution, macs_g=macs
    )
    spec = replace(build(depths, dims, parts), img_size=resolution)
    return with_distilled(
        Variant(name, "shvit", spec, params, macs, top1, resolution, "2401.16456", "MIT", (file,), description="SHViT")
    )


VARIANTS: tuple[Variant, ...] = tuple(v for name in _TABLE for v in _variants(name))
