"""VAN: large kernel attention, a decomposed 21 x 21 convolution that gates its input.

Paper: arXiv:2202.09741. Weights: Apache-2.0. Facts: github.com/Visual-Attention-Network/VAN-Classification at e19779b.

Images are normalised with mean and std 0.5. Each stage ends in a LayerNorm; any image size works unchanged. B4 to B6
are defined by the authors' code without published figures or weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from timm.layers import LayerNorm2d
from torch import nn

from ..blocks.block import MIXER, Branch
from ..blocks.channel import depthwise_mlp
from ..blocks.downsample import strided_conv
from ..blocks.init import fan_out_normal
from ..blocks.mixers import Mixer
from ..blocks.scale import layer_scale
from ..blocks.stem import patch_stem
from .keys import KeyMap, rename
from .spec import BackboneSpec, StageSpec, Variant, Weights

_OFFICIAL = KeyMap(
    rename(
        (r"^stem\.conv\.", "patch_embed1.proj."),
        (r"^stem\.norm\.", "patch_embed1.norm."),
        (r"^stages\.(\d+)\.downsample\.conv\.", lambda m: f"patch_embed{int(m[1]) + 1}.proj."),
        (r"^stages\.(\d+)\.downsample\.norm\.", lambda m: f"patch_embed{int(m[1]) + 1}.norm."),
        (r"^stages\.(\d+)\.norm\.", lambda m: f"norm{int(m[1]) + 1}."),
        (r"^stages\.(\d+)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
        (r"\.mix\.fn\.norm\.", ".norm1."),
        (r"\.mix\.fn\.mixer\.gate\.", ".attn.spatial_gating_unit."),
        (r"\.mix\.fn\.mixer\.", ".attn."),
        (r"\.mix\.fn\.scale\.gamma$", ".layer_scale_1"),
        (r"\.ffn\.fn\.norm\.", ".norm2."),
        (r"\.ffn\.fn\.mlp\.dwconv\.", ".mlp.dwconv.dwconv."),
        (r"\.ffn\.fn\.mlp\.", ".mlp."),
        (r"\.ffn\.fn\.scale\.gamma$", ".layer_scale_2"),
        (r"^head\.fc\.", "head."),
    )
)


def build(
    depths: Sequence[int] = (3, 3, 5, 2),
    dims: Sequence[int] = (32, 64, 160, 256),
    mlp_ratios: Sequence[float] = (8, 8, 4, 4),
) -> BackboneSpec:
    """A VAN of any depth and width.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        mlp_ratios: expansion of the channel mixer, per stage.
    """
    stages = []
    for i, (depth, dim, ratio) in enumerate(zip(depths, dims, mlp_ratios, strict=True)):
        scale = layer_scale(1e-2)
        block = (
            Branch("mix", {"norm": nn.BatchNorm2d, "mixer": MIXER, "scale": scale}),
            Branch("ffn", {"norm": nn.BatchNorm2d, "mlp": depthwise_mlp(ratio), "scale": scale}),
        )
        downsample = partial(strided_conv, post_norm=nn.BatchNorm2d) if i else None
        stages.append(StageSpec(depth, dim, block, Mixer("large_kernel"), downsample, partial(LayerNorm2d, eps=1e-6)))
    return BackboneSpec(
        stem=patch_stem(padding=3, norm=nn.BatchNorm2d),
        stages=tuple(stages),
        init=fan_out_normal,
        weights_key="state_dict",
        keys={"official": _OFFICIAL},
    )


# name: depths, dims, params (1e6), MACs (1e9), top-1 (%), drop path, file on the hub
_TABLE = {
    "van_b0": ((3, 3, 5, 2), (32, 64, 160, 256), 4.1058, 0.9, 75.4, 0.1, "Tiny-original/resolve/main/van_tiny_754"),
    "van_b1": ((2, 2, 4, 2), (64, 128, 320, 512), 13.862, 2.5, 81.1, 0.1, "Small-original/resolve/main/van_small_811"),
    "van_b2": (
        (3, 3, 12, 3),
        (64, 128, 320, 512),
        26.578472,
        5.0,
        82.8,
        0.1,
        "Base-original/resolve/main/van_base_828",
    ),
    "van_b3": (
        (3, 5, 27, 3),
        (64, 128, 320, 512),
        44.765608,
        9.0,
        83.9,
        0.2,
        "Large-original/resolve/main/van_large_839",
    ),
    "van_b4": ((3, 6, 40, 3), (64, 128, 320, 512), 60.283176, None, None, 0.2, None),
    "van_b5": ((3, 3, 24, 3), (96, 192, 480, 768), 89.968, None, None, 0.2, None),
    "van_b6": ((6, 6, 90, 6), (96, 192, 384, 768), 199.829416, None, None, 0.2, None),
}
_HUB = "https://huggingface.co/Visual-Attention-Network/VAN-"


def _variant(name: str) -> Variant:
    depths, dims, params, macs, top1, drop_path, file = _TABLE[name]
    url = f"{_HUB}{file}.pth.tar" if file else None
    files = (Weights("in1k" if url else "", url, top1=top1, macs_g=macs, crop_pct=0.9),)
    half = (0.5, 0.5, 0.5)
    return Variant(
        name, "van", build(depths, dims), params, macs, top1, 224, "2202.09741", "Apache-2.0" if url else None,
        files, drop_path, half, half, "VAN",
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = tuple(_variant(name) for name in _TABLE)
