"""RAVLT: rank-augmented linear attention on the two large maps, softmax attention on the two small ones.

Paper: arXiv:2411.07635 (CVPR 2025). Weights: MIT by their model card; the repository has no licence file. Facts:
github.com/qhfan/RALA at a86314f.

Every block is a depthwise 3x3, a gated attention with rotary positions, and an MLP with a depthwise 3x3 inside. The
last map is widened before the pooling. Any image size works unchanged, since rotary tables are made for the map at
hand; files hold their angles, which are not learned. The layout takes the mixers as arguments and serves MAViT and
NaLaFormer too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..blocks.block import MIXER, Branch
from ..blocks.channel import residual_depthwise_mlp
from ..blocks.conv import depthwise_conv, pointwise_norm_act
from ..blocks.downsample import strided_conv
from ..blocks.init import linear_trunc_normal
from ..blocks.mixers import Mixer, MixerFactory
from ..blocks.scale import layer_scale
from ..blocks.stem import deep_stem
from .keys import KeyMap, View, rename
from .spec import BackboneSpec, StageSpec, Variant, Weights, resolve_mixer


def _as_map(tensor: Tensor) -> Sequence[int]:
    return (1, *tensor.shape, 1, 1) if tensor.ndim == 1 else (*tensor.shape, 1, 1)


OFFICIAL = KeyMap(
    rename(
        (r"^stem\.conv(\d)\.", lambda m: f"patch_embed.proj.{3 * int(m[1]) - 3}."),
        (r"^stem\.norm(\d)\.", lambda m: f"patch_embed.proj.{3 * int(m[1]) - 2}."),
        (r"^stages\.(\d+)\.downsample\.conv\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.reduction."),
        (r"^stages\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),
        (r"^stages\.", "layers."),
        (r"\.pos\.fn\.dw\.", ".pos."),
        (r"\.mix\.fn\.norm\.", ".norm1.norm."),
        (r"\.mix\.fn\.mixer\.", ".attn."),
        (r"\.mix\.fn\.scale\.gamma$", ".gamma_1"),
        (r"\.ffn\.fn\.norm\.", ".norm2.norm."),
        (r"\.ffn\.fn\.mlp\.dwconv\.fn\.", ".ffn.dwconv."),
        (r"\.ffn\.fn\.mlp\.", ".ffn."),
        (r"\.ffn\.fn\.scale\.gamma$", ".gamma_2"),
        (r"^norm\.conv\.", "proj."),
        (r"^norm\.bn\.", "norm."),
        (r"^head\.fc\.", "head."),
    ),
    views=(View(r"(gamma_\d|^head\.weight)$", _as_map),),
    dropped=(r"RoPE\.angle$",),
)


def build(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (64, 128, 256, 512),
    heads: Sequence[int] = (1, 2, 4, 8),
    projection: int = 1024,
    scales: Sequence[float] = (1, 1, 1, 1),
    mixers: Sequence[str | MixerFactory] = ("rala", "rala", "rope_attention", "rope_attention"),
    mlp_ratio: float = 3.5,
) -> BackboneSpec:
    """A RAVLT of any depth and width.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        heads: attention heads per stage.
        projection: channels of the last map after its projection.
        scales: initial layer scale per stage.
        mixers: token mixer per stage.
        mlp_ratio: expansion of the channel mixer.
    """
    norm = partial(LayerNorm2d, eps=1e-6)
    stages = []
    for i, (depth, dim, scale) in enumerate(zip(depths, dims, scales, strict=True)):
        block = (
            Branch("pos", {"dw": depthwise_conv}),
            Branch("mix", {"norm": norm, "mixer": MIXER, "scale": layer_scale(scale)}),
            Branch("ffn", {"norm": norm, "mlp": residual_depthwise_mlp(mlp_ratio), "scale": layer_scale(scale)}),
        )
        downsample = partial(strided_conv, post_norm=nn.BatchNorm2d) if i else None
        stages.append(StageSpec(depth, dim, block, _mixer(mixers[i], dim, heads[i]), downsample))
    return BackboneSpec(
        stem=deep_stem,
        stages=tuple(stages),
        norm=partial(pointwise_norm_act, out_dim=projection),
        num_features=projection,
        init=linear_trunc_normal,
        first_conv="stem.conv1",
        weights_key="model",
        keys={"official": OFFICIAL},
    )


def _mixer(mixer: str | MixerFactory, dim: int, heads: int) -> MixerFactory:
    """A mixer of this layout by name with its heads, or any other one."""
    if isinstance(mixer, str) and mixer in ("rala", "mala", "rope_attention"):
        return Mixer(mixer, head_dim=dim // heads)
    return resolve_mixer(mixer)


# size: depths, dims, heads, layer scales, drop path
SIZES = {
    "t": ((2, 2, 6, 2), (64, 128, 256, 512), (1, 2, 4, 8), (1, 1, 1, 1), 0.1),
    "s": ((3, 5, 9, 3), (64, 128, 320, 512), (1, 2, 5, 8), (1, 1, 1, 1), 0.15),
    "b": ((4, 6, 12, 6), (96, 192, 384, 512), (1, 2, 6, 8), (1, 1, 1e-6, 1e-6), 0.4),
    "l": ((4, 7, 19, 8), (96, 192, 448, 640), (1, 2, 7, 10), (1e-6,) * 4, 0.55),
}
# size: params (1e6), MACs (1e9), top-1 (%)
_FIGURES = {
    "t": (14.897768, 2.4, 82.8),
    "s": (25.591208, 4.6, 84.4),
    "b": (48.241288, 9.9, 85.5),
    "l": (95.24244, 16.0, 85.8),
}
_HUB = "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_"


def _variant(size: str) -> Variant:
    depths, dims, heads, scales, drop_path = SIZES[size]
    params, macs, top1 = _FIGURES[size]
    return Variant(
        f"ravlt_{size}", "ravlt", build(depths, dims, heads, scales=scales), params, macs, top1, 224, "2411.07635",
        "MIT", (Weights("in1k", f"{_HUB}{size.upper()}.pth", top1=top1, macs_g=macs),), drop_path,
        description="RAVLT",
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = tuple(_variant(size) for size in SIZES)
