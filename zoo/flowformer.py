"""Flowformer for images: a pyramid of linear attention by conserved flow.

Paper: arXiv:2202.06258 (ICML 2022). Weights: MIT. Facts: github.com/thuml/Flowformer at 61f5d8c, folder Flowformer_CV.

Twelve heads in every stage, a layer scale on the channel mixer alone, patches of 4 x 4 and then 2 x 2 without norms or
overlap, and one learned position table, after the first patches. The official model takes one image size; here the
table is resized bicubically for others, and rows and columns that do not fill a patch are dropped. The weights lie in a
folder that only a browser opens (cloud.tsinghua.edu.cn/d/82d93375f97f4ca58886): give the file as ``checkpoint_path=``.
The paper's "41 MB" are 43.3 million parameters divided by 2^20.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from timm.layers import LayerNorm2d

from ..blocks.block import MIXER, Branch, Factory
from ..blocks.channel import mlp
from ..blocks.downsample import strided_conv
from ..blocks.init import pointwise_normal
from ..blocks.mixers import Mixer
from ..blocks.scale import layer_scale
from ..blocks.tables import PositionEmbedding
from .keys import KeyMap, View, flat_grid, linear_shape, rename
from .spec import BackboneSpec, StageSpec, Variant, Weights

_OFFICIAL = KeyMap(
    rename(
        (r"^stem\.conv\.", "patch_embed.0.proj."),
        (r"^stages\.(\d+)\.downsample\.conv\.", r"patch_embed.\1.proj."),
        (r"^stages\.0\.position\.table$", "pos_embed"),
        (r"^stages\.(\d+)\.blocks\.", r"blocks.\1."),
        (r"\.mix\.fn\.norm\.", ".norm1."),
        (r"\.mix\.fn\.mixer\.", ".attn."),
        (r"\.ffn\.fn\.norm\.", ".norm2."),
        (r"\.ffn\.fn\.mlp\.", ".mlp."),
        (r"\.ffn\.fn\.scale\.gamma$", ".gamma"),
        (r"^head\.fc\.", "head."),
    ),
    (
        View(r"(attn\.(qkv|proj)|mlp\.fc[12])\.weight$", linear_shape),
        View(r"^pos_embed$", flat_grid, transposed=True),
    ),
)
_norm: Factory = partial(LayerNorm2d, eps=1e-6)


def build(
    depths: Sequence[int] = (3, 3, 10, 3), dims: Sequence[int] = (96, 192, 384, 768), num_heads: int = 12
) -> BackboneSpec:
    """A Flowformer of any depth and width.

    Args:
        depths: blocks per stage.
        dims: channels per stage, multiples of ``num_heads``.
        num_heads: heads in every stage.
    """
    block = (
        Branch("mix", {"norm": _norm, "mixer": MIXER}),
        Branch("ffn", {"norm": _norm, "mlp": mlp(4.0), "scale": layer_scale(1e-5)}),
    )
    mixer = Mixer("flow", num_heads=num_heads)
    patches = partial(strided_conv, kernel_size=2, stride=2, padding=0)
    stages = tuple(
        StageSpec(depth, dim, block, mixer, patches if i else None, position=None if i else PositionEmbedding)
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True))
    )
    return BackboneSpec(
        stem=partial(strided_conv, kernel_size=4, stride=4, padding=0),
        stages=stages,
        norm=_norm,
        init=pointwise_normal,
        keys={"official": _OFFICIAL},
    )


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "flowformer", "flowformer", build(), 43.311304, 6.3, 80.6, 224, "2202.06258", "MIT",
        (Weights(top1=80.6, macs_g=6.3),), 0.2, description="Flowformer",
    ),
)  # fmt: skip
