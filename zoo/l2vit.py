"""L2ViT: attention in windows and linear attention over the whole map, in turns.

Paper: arXiv:2501.16182. Weights: MIT. Facts: github.com/ChuanyangZheng/L2ViT at fad0341.

Even blocks attend inside windows that stay where they are, odd ones linearly to everything, followed by a branch of two
depthwise 7x7 convolutions that brings back what is near. Depthwise 3x3 convolutions give positions, so that nothing is
bound to a map size. Images that do not divide into patches, and maps that do not divide into windows, are zero-padded
at the bottom and right as in the official code; the padding of windows takes part in their attention. An exported graph
leaves height and width open where it is made at a size whose last map is more than one window, as 256 x 256.

The weights pretrained on ImageNet-22k have the classes of the authors' own copy of it, of which their code says 21,841.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from timm.layers import LayerNorm2d
from torch import nn

from ..blocks.block import MIXER, Alternate, Branch, Factory
from ..blocks.channel import mlp
from ..blocks.conv import depthwise_conv
from ..blocks.downsample import padded_conv
from ..blocks.init import trunc_normal
from ..blocks.mixers import Alternating, Mixer, MixerFactory
from ..blocks.mixers.conv import LocalConcentrationMixer
from ..blocks.stem import deep_stem, padded_stem
from .keys import KeyMap, View, linear_shape, rename
from .spec import BackboneSpec, StageSpec, Variant, Weights, resolve_mixer

OFFICIAL = KeyMap(
    rename(
        (r"^stem\.conv(\d)\.", lambda m: f"downsample_layers.0.proj.proj.{3 * int(m[1]) - 3}."),
        (r"^stem\.norm(\d)\.", lambda m: f"downsample_layers.0.proj.proj.{3 * int(m[1]) - 2}."),
        (r"^stem\.norm\.", "downsample_layers.0.norm."),
        (r"^stages\.(\d+)\.downsample\.norm\.", r"downsample_layers.\1.norm."),
        (r"^stages\.(\d+)\.downsample\.conv\.", r"downsample_layers.\1.proj."),
        (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
        (r"\.pos\.fn\.dw\.", ".cpe.0.proj."),
        (r"\.pos2\.fn\.dw\.", ".cpe.1.proj."),
        (r"\.mix\.fn\.norm\.", ".norm1."),
        (r"\.mix\.fn\.mixer\.", ".attn."),
        (r"\.local\.fn\.norm\.", ".norm3."),
        (r"\.local\.fn\.mixer\.", ".local_mp."),
        (r"\.ffn\.fn\.norm\.", ".norm2."),
        (r"\.ffn\.fn\.mlp\.", ".mlp."),
        (r"^head\.fc\.", "head."),
    ),
    (View(r"(attn\.(qkv|proj)|mlp\.fc[12])\.weight$", linear_shape),),
)
_norm: Factory = partial(LayerNorm2d, eps=1e-5)


def _block(mlp_ratio: float) -> Alternate:
    position = Branch("pos", {"dw": depthwise_conv})
    mix = Branch("mix", {"norm": _norm, "mixer": MIXER})
    again = Branch("pos2", position.members)
    local = Branch("local", {"norm": _norm, "mixer": LocalConcentrationMixer})
    ffn = Branch("ffn", {"norm": _norm, "mlp": mlp(mlp_ratio)})
    return Alternate(even=(position, mix, again, ffn), odd=(position, mix, local, ffn))


def build(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (96, 192, 384, 768),
    head_dim: int = 32,
    window: int = 7,
    mlp_ratio: float = 4.0,
    mixers: Sequence[str | MixerFactory] | None = None,
) -> BackboneSpec:
    """An L2ViT of any depth and width.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        head_dim: width of a head.
        window: side of the windows.
        mlp_ratio: expansion of the channel mixer.
        mixers: token mixer per stage; by default windows and linear attention in turns.
    """
    near, far = Mixer("padded_window", head_dim=head_dim, window=window), Mixer("linear_global", head_dim=head_dim)
    chosen = [resolve_mixer(m) for m in mixers or [Alternating(near, far)] * len(depths)]
    merging = partial(padded_conv, pre_norm=_norm)
    stages = tuple(
        StageSpec(depth, dim, _block(mlp_ratio), mixer, merging if i else None)
        for i, (depth, dim, mixer) in enumerate(zip(depths, dims, chosen, strict=True))
    )
    return BackboneSpec(
        stem=padded_stem(4, partial(deep_stem, act=nn.ReLU, strides=(2, 2)), _norm),
        stages=stages,
        norm=_norm,
        init=trunc_normal,
        first_conv="stem.conv1",
        weights_key="model",
        keys={"official": OFFICIAL},
    )


_FILES = "https://github.com/ChuanyangZheng/L2ViT/releases/download/v1.0/L2ViT"
_LARGER = (
    Weights("in22k_ft_in1k", f"{_FILES}-Base-22k21k-finetune-224-checkpoint-best.pth", top1=86.0, macs_g=15.9),
    Weights("in22k", f"{_FILES}-Base-22k-pretrain-checkpoint-best.pth", num_classes=21841, macs_g=15.9),
)
_AT_384 = Weights(
    "in22k_ft_in1k_384", f"{_FILES}-Base-22k21k-finetune-384-checkpoint-best.pth", top1=87.0, resolution=384,
    macs_g=47.5, crop_pct=1.0,
)  # fmt: skip


def _variant(
    size: str, depth: int, width: int, params: float, macs: float, top1: float, drop_path: float, *more: Weights
) -> Variant:
    spec = build((2, 2, depth, 2), [width * 2**i for i in range(4)])
    weights = Weights("in1k", f"{_FILES}-{size.title()}-checkpoint-best-ema.pth", top1=top1, macs_g=macs)
    return Variant(
        f"l2vit_{size}", "l2vit", spec, params, macs, top1, 224, "2501.16182", "MIT", (weights, *more), drop_path,
        description="L2ViT",
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = (
    _variant("tiny", 6, 96, 28.596781, 4.7, 83.1, 0.0),
    _variant("small", 18, 96, 50.199157, 9.0, 84.1, 0.0),
    _variant("base", 18, 128, 88.577188, 15.9, 84.4, 0.3, *_LARGER),
    Variant(
        "l2vit_base_384", "l2vit", build((2, 2, 18, 2), (128, 256, 512, 1024), window=12), 88.577188, 47.5, 87.0, 384,
        "2501.16182", "MIT", (_AT_384,), 0.2, description="L2ViT, pretrained on ImageNet-22k, for 384 x 384",
    ),
)  # fmt: skip
