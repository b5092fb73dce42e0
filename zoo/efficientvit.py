"""EfficientViT (Microsoft): cascaded group attention in local windows, three stages from stride 16 on.

Paper: arXiv:2305.07027 (CVPR 2023). Weights: MIT. Facts: github.com/microsoft/Cream at 4a13c40, EfficientViT.

The official classifier runs at its constructor's square size only. Here any size runs: windows are at most 7 x 7 and
never larger than the map, and a bias table made for another window is resized bicubically, as the official fine-tuning
does when a checkpoint changes size. ``img_size=`` sets the size that the tables are made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from ..blocks.block import Branch, MixerSlot
from ..blocks.channel import norm_mlp
from ..blocks.conv import depthwise_norm
from ..blocks.mixers import Mixer
from .keys import KeyMap, Rewrite, View, rename
from .sandwich import official_keys, sandwich_spec, timm_keys, with_distilled
from .spec import BackboneSpec, Variant, Weights

_MIXER_KEYS: tuple[tuple[str, Rewrite], ...] = (
    (r"\.mix\.fn\.mixer\.bias\.table$", ".mixer.m.attn.attention_biases"),
    (r"\.mix\.fn\.mixer\.proj\.", ".mixer.m.attn.proj.1."),
    (r"\.mix\.fn\.mixer\.", ".mixer.m.attn."),
)
_TABLES = (View(r"attention_biases$", lambda t: (t.shape[0], t[0].numel())),)
_DROPPED = (r"attention_bias_idxs$",)
_TIMM_STEM: tuple[str, Rewrite] = (r"^stem\.conv(\d)\.", r"patch_embed.conv\1.")
_TIMM_DOWN = {
    "dw0": "res1.0.m", "ffn0": "res1.1.m", "merge": "patchmerge", "dw1": "res2.0.m", "ffn1": "res2.1.m",
}  # fmt: skip
_TIMM = timm_keys(_TIMM_STEM, _TIMM_DOWN, "linear")
_KEYS = {
    "official": KeyMap(rename(*_MIXER_KEYS, *official_keys()), _TABLES, _DROPPED),
    "timm": KeyMap(rename(*_MIXER_KEYS, *_TIMM), _TABLES, _DROPPED),
}


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
    options = {"key_dim": key_dim, "kernels": tuple(kernels), "window": window}
    mixers = [Mixer("cascaded_group", num_heads=heads, **options) for heads in num_heads]
    return sandwich_spec(depths, dims, block, mixers, _KEYS)


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
    return with_distilled(
        Variant(name, "efficientvit", spec, params, macs, top1, 224, "2305.07027", "MIT", (file,),
                description="EfficientViT")
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = tuple(v for name in _TABLE for v in _variants(name))
