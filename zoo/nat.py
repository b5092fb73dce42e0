"""NAT and DiNAT: attention of every position to the k x k positions nearest to it, plain and dilated.

Papers: arXiv:2204.07143 (NAT, CVPR 2023) and arXiv:2209.15001 (DiNAT, DiNAT_s, isotropic NAT, DiNAT and ViT). Weights:
MIT. Facts: github.com/SHI-Labs/Neighborhood-Attention-Transformer at d334f5b, kernels of NATTEN 0.14.

Three layouts: a pyramid with overlapping convolutions (`build`), Swin's (`build_s`), and one of constant width at
stride 16 (`build_isotropic`). Every other block of a dilated model has a dilation that makes a window span the map at
the model's resolution. A map that is smaller than a window is zero-padded at the bottom and right up to it and the
padding takes part, as in NATTEN 0.14, which the weights were trained with; so images below a model's resolution cost no
less. For other resolutions, other dilations fit the same weights (``dilations=``), as the authors have it in dense
prediction. Norms have an epsilon of 1e-5. Layer scales are in nat_small, nat_base and dinat_base only.

``dinat_large_384_11x11`` has the weights of windows of 7 with bias tables resized bicubically to windows of 11, which
happens on loading as well. The isotropic models have one stage; their maps are those after its blocks. ViT's table of
biases belongs to a map of 14 x 14 and is resized bicubically for others; the authors' code runs at 224 only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from timm.layers import LayerNorm2d

from ..blocks.block import MIXER, Branch, Factory, MixerSlot, Parts
from ..blocks.channel import mlp
from ..blocks.downsample import strided_conv
from ..blocks.init import pointwise_normal
from ..blocks.mixers import Mixer
from ..blocks.scale import layer_scale
from ..blocks.stem import double_conv_stem, whole_patch_stem
from . import swin
from .keys import rename
from .spec import BackboneSpec, StageSpec, Variant, Weights

Dilations = Sequence[Sequence[int]]
PLAIN: Dilations = ((1,), (1,), (1,), (1,))
AT_224: Dilations = ((1, 8), (1, 4), (1, 2), (1,))
AT_384: Dilations = ((1, 13), (1, 6), (1, 3), (1,))
block_norm: Factory = partial(LayerNorm2d, eps=1e-5)

_MIXER = rename(
    (r"\.mix\.fn\.mixer\.bias\.table$", ".attn.rpb"),
    (r"\.mix\.fn\.scale\.gamma$", ".gamma1"),
    (r"\.ffn\.fn\.scale\.gamma$", ".gamma2"),
)
_CONVS = rename((r"^stem\.conv(\d)\.", lambda m: f"patch_embed.proj.{int(m[1]) - 1}."))
_PYRAMID = swin.official_keys(*_MIXER, *_CONVS)
_PYRAMID = replace(_PYRAMID, rules=(*_PYRAMID.rules, *rename((r"^layers\.", "levels."))))
_ISOTROPIC = swin.official_keys(*_MIXER, *rename((r"^stages\.0\.blocks\.", "layers.")))


def _block(ratio: float, scale: float | None = None) -> Parts:
    mix: dict[str, Factory | MixerSlot] = {"norm": block_norm, "mixer": MIXER}
    ffn: dict[str, Factory | MixerSlot] = {"norm": block_norm, "mlp": mlp(ratio)}
    if scale is not None:
        mix["scale"] = ffn["scale"] = layer_scale(scale)
    return Branch("mix", mix), Branch("ffn", ffn)


def _mixers(dilations: Dilations, kernel_size: int) -> list[Mixer]:
    return [Mixer("neighborhood", kernel_size=kernel_size, dilations=tuple(each)) for each in dilations]


def build(
    depths: Sequence[int] = (3, 4, 6, 5),
    dims: Sequence[int] = (64, 128, 256, 512),
    mlp_ratio: float = 3.0,
    dilations: Dilations = PLAIN,
    kernel_size: int = 7,
    scale: float | None = None,
) -> BackboneSpec:
    """A NAT, or with dilations a DiNAT, of any depth and width. Heads are 32 channels wide.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        mlp_ratio: expansion of the channel mixer.
        dilations: per stage, the dilations that its blocks take in turn.
        kernel_size: side of a window.
        scale: initial layer scale; None for none.
    """
    downsample = partial(strided_conv, post_norm=block_norm, bias=False)
    stages = tuple(
        StageSpec(depth, dim, _block(mlp_ratio, scale), mixer, downsample if i else None)
        for i, (depth, dim, mixer) in enumerate(zip(depths, dims, _mixers(dilations, kernel_size), strict=True))
    )
    return BackboneSpec(
        stem=double_conv_stem(block_norm),
        stages=stages,
        norm=block_norm,
        init=pointwise_normal,
        first_conv="stem.conv1",
        keys={"official": _PYRAMID},
    )


def build_s(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (96, 192, 384, 768),
    dilations: Dilations = AT_224,
    kernel_size: int = 7,
) -> BackboneSpec:
    """A DiNAT_s: Swin's layout of any depth and width. Arguments as in `build`."""
    return swin.build(depths, dims, _mixers(dilations, kernel_size), keys=swin.official_keys(*_MIXER))


def build_isotropic(depth: int = 12, dim: int = 384, mixer: Mixer | None = None) -> BackboneSpec:
    """Blocks of constant width on patches of 16 x 16, without class token or position embedding.

    Args:
        depth: number of blocks.
        dim: channels.
        mixer: token mixer; by default windows of 7 x 7.
    """
    stage = StageSpec(depth, dim, _block(4.0), mixer or Mixer("neighborhood"))
    return BackboneSpec(
        stem=whole_patch_stem(16, block_norm),
        stages=(stage,),
        norm=block_norm,
        init=pointwise_normal,
        keys={"official": _ISOTROPIC},
    )


_SITE = "https://shi-labs.com/projects"
_DIMS = {n: tuple(w * 2**i for i in range(4)) for n, w in (("mini", 64), ("tiny", 64), ("small", 96), ("base", 128))}
_DIMS["large"] = (192, 384, 768, 1536)
_DROP_PATH = {"mini": 0.2, "tiny": 0.2, "small": 0.3, "base": 0.5, "large": 0.35}

# model: size, dilations, kernel, layer scale, params (1e6), MACs (1e9), top-1 (%), resolution, file
_PYRAMIDS: dict[str, tuple[str, Dilations, int, float | None, float, float, float, int, str]] = {
    "nat_mini": ("mini", PLAIN, 7, None, 19.984174, 2.7, 81.8, 224, "nat/checkpoints/CLS/nat_mini"),
    "nat_tiny": ("tiny", PLAIN, 7, None, 27.901582, 4.3, 83.2, 224, "nat/checkpoints/CLS/nat_tiny"),
    "nat_small": ("small", PLAIN, 7, 1e-5, 50.743297, 7.8, 83.7, 224, "nat/checkpoints/CLS/nat_small"),
    "nat_base": ("base", PLAIN, 7, 1e-5, 89.769652, 13.7, 84.3, 224, "nat/checkpoints/CLS/nat_base"),
    "dinat_mini": ("mini", AT_224, 7, None, 19.984174, 2.7, 81.8, 224, "dinat_mini_in1k_224"),
    "dinat_tiny": ("tiny", AT_224, 7, None, 27.901582, 4.3, 82.7, 224, "dinat_tiny_in1k_224"),
    "dinat_small": ("small", AT_224, 7, None, 50.719681, 7.8, 83.8, 224, "dinat_small_in1k_224"),
    "dinat_base": ("base", AT_224, 7, 1e-5, 89.769652, 13.7, 84.4, 224, "dinat_base_in1k_224"),
    "dinat_large": ("large", AT_224, 7, None, 200.943514, 30.6, 86.6, 224, "dinat_large_in22k_in1k_224"),
    "dinat_large_384": ("large", AT_384, 7, None, 200.943514, 89.7, 87.4, 384, "dinat_large_in22k_in1k_384"),
    "dinat_large_384_11x11": (
        "large",
        AT_224,
        11,
        None,
        201.14425,
        92.4,
        87.5,
        384,
        "dinat_large_in22k_in1k_384_11x11",
    ),
}
# model: third depth, first width, dilations, drop path, params, MACs, top-1, resolution, file
_SWIN_LIKE: dict[str, tuple[int, int, Dilations, float, float, float, float, int, str]] = {
    "dinat_s_tiny": (6, 96, AT_224, 0.2, 28.288354, 4.5, 81.8, 224, "dinat_s_tiny_in1k_224"),
    "dinat_s_small": (18, 96, AT_224, 0.3, 49.606258, 8.7, 83.5, 224, "dinat_s_small_in1k_224"),
    "dinat_s_base": (18, 128, AT_224, 0.5, 87.768224, 15.4, 83.8, 224, "dinat_s_base_in1k_224"),
    "dinat_s_large": (18, 192, AT_224, 0.35, 196.532476, 34.5, 86.5, 224, "dinat_s_large_in1k_224"),
    "dinat_s_large_384": (18, 192, AT_384, 0.35, 196.532476, 101.5, 87.4, 384, "dinat_s_large_in1k_384"),
}
# model: width, mixer, drop path, params, MACs, top-1
_NEAR, _DILATED, _ALL = Mixer("neighborhood"), Mixer("neighborhood", dilations=(1, 2)), Mixer("relative_attention")
_CONSTANT: dict[str, tuple[int, Mixer, float, float, float, float]] = {
    "nat_isotropic_small": (384, _NEAR, 0.1, 21.999736, 4.3, 80.0),
    "dinat_isotropic_small": (384, _DILATED, 0.1, 21.999736, 4.3, 80.8),
    "vitrpb_small": (384, _ALL, 0.1, 22.080376, 4.6, 81.2),
    "nat_isotropic_base": (768, _NEAR, 0.4, 86.4658, 16.9, 81.6),
    "dinat_isotropic_base": (768, _DILATED, 0.4, 86.4658, 16.9, 82.1),
    "vitrpb_base": (768, _ALL, 0.4, 86.62708, 17.5, 82.5),
}


def _variant(
    name: str,
    spec: BackboneSpec,
    figures: tuple[float, float, float],
    drop_path: float,
    file: str,
    resolution: int = 224,
) -> Variant:
    params, macs, top1 = figures
    paper = "2204.07143" if name in ("nat_mini", "nat_tiny", "nat_small", "nat_base") else "2209.15001"
    tag = "in22k_ft_in1k" if "large" in name else "in1k"
    crop = 1.0 if resolution == 384 else 0.875
    weights = Weights(tag, f"{_SITE}/{file}.pth", top1=top1, resolution=resolution, macs_g=macs, crop_pct=crop)
    spec = replace(spec, img_size=resolution)
    return Variant(
        name, "nat", spec, params, macs, top1, resolution, paper, "MIT", (weights,), drop_path,
        description="Neighborhood attention",
    )  # fmt: skip


def _pyramid(name: str) -> Variant:
    size, dilations, kernel, scale, params, macs, top1, resolution, file = _PYRAMIDS[name]
    depths = (3, 4, 6 if size == "mini" else 18, 5)
    ratio = 3.0 if size in ("mini", "tiny") else 2.0
    spec = build(depths, _DIMS[size], ratio, dilations, kernel, scale)
    file = file if "/" in file else f"dinat/checkpoints/imagenet1k/{file}"
    return _variant(name, spec, (params, macs, top1), _DROP_PATH[size], file, resolution)


def _swin_like(name: str) -> Variant:
    depth, width, dilations, drop_path, params, macs, top1, resolution, file = _SWIN_LIKE[name]
    spec = build_s((2, 2, depth, 2), tuple(width * 2**i for i in range(4)), dilations)
    return _variant(name, spec, (params, macs, top1), drop_path, f"dinat/checkpoints/imagenet1k/{file}", resolution)


def _constant(name: str) -> Variant:
    dim, mixer, drop_path, *figures = _CONSTANT[name]
    file = f"dinat/checkpoints/isotropic/{name}_in1k_224"
    return _variant(name, build_isotropic(12, dim, mixer), (figures[0], figures[1], figures[2]), drop_path, file)


VARIANTS: tuple[Variant, ...] = (
    *map(_pyramid, _PYRAMIDS),
    *map(_swin_like, _SWIN_LIKE),
    *map(_constant, _CONSTANT),
)
