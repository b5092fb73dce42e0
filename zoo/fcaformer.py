"""FcaFormer: two ConvNeXt stages, then two attention stages whose blocks hand cross tokens forward.

Paper: arXiv:2211.07198. Weights: none published under a licence. Facts: github.com/hkzhang-git/FcaFormer at 7dcd8e0.

The official classifier runs at its constructor's size only, a multiple of 32. Here any size runs: position tables and
cross-token scales are resized bicubically, and ``img_size=`` sets the size they are made for.

The authors' backbone for dense prediction is another model, offered as ``fcaformer_l*_dense`` with
``features_only=True``: attention stages run in windows of 14 and 7, zero-padded at the left and top in even blocks and
at the right and bottom in odd ones, so that windows move where the map does not divide; cross tokens stay in their
window; each stage's map goes through a 1x1 convolution and a LayerNorm. Its tables belong to the windows, so image size
never resizes them. Without ``features_only`` it classifies from the last map, which the authors' code does not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from timm.layers import LayerNorm2d
from torch import nn

from ..blocks.block import MIXER, Branch, Plain
from ..blocks.channel import mlp
from ..blocks.conv import depthwise_norm
from ..blocks.downsample import separable_downsample
from ..blocks.init import trunc_normal
from ..blocks.mixers import Mixer
from ..blocks.scale import layer_scale
from ..blocks.stage import CrossStage, Stage, WindowedCrossStage
from ..blocks.stem import conv_stem
from .keys import KeyMap, View, linear_shape, rename
from .spec import BackboneSpec, HeadSpec, StageSpec, Variant, Weights

_OFFICIAL = KeyMap(
    rename(
        (r"^stem\.conv1\.", "patch_embed.seq.0."),
        (r"^stem\.conv2\.", "patch_embed.seq.2."),
        (r"^stages\.(\d+)\.downsample\.", lambda m: f"layer_{int(m[1]) - 1}.downsample."),
        (r"^stages\.(\d+)\.blocks\.", r"layer_\1.blocks."),
        (r"\.cx\.fn\.mixer\.", ".dwconv."),
        (r"\.cx\.fn\.norm\.", ".norm."),
        (r"\.cx\.fn\.mlp\.fc", ".pwconv"),
        (r"\.cx\.fn\.scale\.gamma$", ".gamma"),
        (r"\.mix\.fn\.norm\.", ".norm1."),
        (r"\.mix\.fn\.mixer\.bias\.table$", ".attention_biases"),
        (r"\.mix\.fn\.mixer\.cross\.scale$", ".s_scale_factors"),
        (r"\.mix\.fn\.mixer\.cross\.bias$", ".s_token_bias"),
        (r"\.mix\.fn\.mixer\.cross\.norm\.", ".s_norm."),
        (r"\.mix\.fn\.mixer\.", "."),
        (r"\.mix\.fn\.scale\.gamma$", ".gamma_1"),
        (r"\.mix\.embed\.", ".dw_conv."),
        (r"\.local\.", ".local_conv."),
        (r"\.ffn\.fn\.norm\.", ".norm2."),
        (r"\.ffn\.fn\.mlp_norm\.", ".mlp.norm."),
        (r"\.ffn\.fn\.mlp\.", ".mlp."),
        (r"\.ffn\.fn\.scale\.gamma$", ".gamma_2"),
        (r"\.conv\.weight$", ".c.weight"),
        (r"^necks\.(\d)\.c\.", r"head\1."),
        (r"^necks\.(\d)\.norm\.", r"norm\1."),
        (r"^head\.norm\.", "norm_head."),
        (r"^head\.fc\.", "head."),
    ),
    (
        View(r"(pwconv[12]|qkv|blocks\.\d+\.proj|fc[12])\.weight$", linear_shape),
        View(r"attention_biases$", lambda t: (t.shape[0], t[0].numel())),
        View(r"s_scale_factors$", lambda t: (1, t.numel(), 1)),
        View(r"s_token_bias$", lambda t: (1, t.shape[0], 1, t[0].numel())),
    ),
    (r"attention_bias_idxs$",),
)
_WINDOWS = (14, 7)  # of the dense backbone's attention stages


def _neck(dim: int, out_dim: int) -> nn.Module:
    conv = nn.Conv2d(dim, out_dim, 1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=LayerNorm2d(out_dim, eps=1e-6)))


def build(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (64, 128, 192, 320),
    num_heads: Sequence[int] = (0, 0, 6, 10),
) -> BackboneSpec:
    """An FcaFormer of any depth and width.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        num_heads: attention heads per stage; 0 makes a ConvNeXt stage.
    """
    scale = layer_scale(1e-6)
    norm = partial(LayerNorm2d, eps=1e-5)
    convnext = (
        Branch("cx", {"mixer": MIXER, "norm": partial(LayerNorm2d, eps=1e-6), "mlp": mlp(4.0), "scale": scale}),
    )
    attention = (
        Branch("mix", {"norm": norm, "mixer": MIXER, "scale": scale}),
        Plain("local", depthwise_norm),
        Branch("ffn", {"norm": norm, "mlp_norm": norm, "mlp": mlp(4.0), "scale": scale}),
    )
    stages = tuple(
        StageSpec(
            depth,
            dim,
            attention if heads else convnext,
            Mixer("forward_cross", num_heads=heads) if heads else Mixer("depthwise"),
            separable_downsample if i else None,
            make=CrossStage if heads else Stage,
        )
        for i, (depth, dim, heads) in enumerate(zip(depths, dims, num_heads, strict=True))
    )
    return BackboneSpec(
        stem=conv_stem(2, nn.GELU),
        stages=stages,
        head=HeadSpec(norm=nn.LayerNorm),
        init=trunc_normal,
        first_conv="stem.conv1.conv",
        keys={"official": _OFFICIAL},
    )


def dense(spec: BackboneSpec, widths: tuple[int, ...] = (96, 192, 384, 768)) -> BackboneSpec:
    """The authors' backbone for dense prediction of the same depth and width (see the module's docstring)."""
    first, second, third, last = spec.stages
    windowed = [
        replace(s, make=partial(WindowedCrossStage, window=w), window=w)
        for s, w in zip((third, last), _WINDOWS, strict=True)
    ]
    return replace(spec, stages=(first, second, *windowed), necks=(_neck, widths))


# name: depths, dims, heads, params (1e6), MACs (1e9), top-1 (%), drop path
_TABLE = {
    "fcaformer_l1": ((2, 2, 6, 2), (64, 128, 192, 320), (0, 0, 6, 10), 6.18756, 1.4, 80.3, 0.0),
    "fcaformer_l2": ((2, 2, 7, 2), (96, 192, 320, 480), (0, 0, 10, 15), 16.27587, 3.6, 83.1, 0.1),
    "fcaformer_l3": ((3, 6, 12, 3), (96, 192, 320, 512), (0, 0, 10, 16), 27.894, 6.7, 84.2, 0.2),
    "fcaformer_l4": ((3, 6, 12, 3), (128, 256, 512, 768), (0, 0, 16, 24), 65.638204, 14.5, 84.9, 0.4),
}


def _variants(name: str) -> tuple[Variant, Variant]:
    depths, dims, heads, params, macs, top1, drop_path = _TABLE[name]
    plain = Variant(
        name, "fcaformer", build(depths, dims, heads), params, macs, top1, 224, "2211.07198", None, (Weights(),),
        drop_path, description="FcaFormer",
    )  # fmt: skip
    return plain, replace(
        plain,
        name=f"{name}_dense",
        spec=dense(plain.spec),
        top1=None,
        macs_g=None,
        description="FcaFormer backbone for dense prediction, with moving windows",
    )


VARIANTS: tuple[Variant, ...] = tuple(v for name in _TABLE for v in _variants(name))
