"""MetaFormer: PoolFormer, and the baselines IdentityFormer, RandFormer, PoolFormerV2, ConvFormer and CAFormer.

Papers: arXiv:2111.11418 (PoolFormer, CVPR 2022) and arXiv:2210.13452 (baselines, TPAMI 2024). Weights: Apache-2.0.
Facts: github.com/sail-sg/poolformer at a075575, github.com/sail-sg/metaformer at 64c534a.

PoolFormer (v1) has GroupNorm over (C, H, W), layer scales and a norm before the pooling of the head. timm's model of
that name averages first and then normalises each vector, so with the same weights its logits differ from the authors';
its stages agree. Weights in timm's form load here into the official head, and give the official logits.

The baselines have norms without bias, StarReLU, scaled shortcuts in the last two stages, and normalise after pooling.
RandFormer's random matrices belong to the grid of ``img_size``; other maps resize them (`resize_mixing`).

The ``metaformer_*`` models are the hybrids of the PoolFormer paper's ablation: p pooling, a attention, f spatial
linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from timm.layers import GroupNorm1, LayerNorm2d
from torch import nn

from ..blocks.act import StarReLU
from ..blocks.block import MIXER, Branch, Factory
from ..blocks.channel import mlp
from ..blocks.downsample import strided_conv
from ..blocks.head import mlp_hidden
from ..blocks.init import trunc_normal
from ..blocks.mixers import Mixer, MixerFactory
from ..blocks.norm import GroupNorm1NoBias
from ..blocks.scale import layer_scale, residual_scale
from ..blocks.stem import patch_stem
from ..blocks.tables import PositionEmbedding
from .keys import KeyMap, Rewrite, View, linear_shape, rename
from .spec import BackboneSpec, HeadSpec, StageSpec, Variant, Weights, resolve_mixer

_V1, _BASELINES = "2111.11418", "2210.13452"
_layer_norm: Factory = partial(LayerNorm2d, eps=1e-6, bias=False)
_channel_norm: Factory = partial(LayerNorm2d, eps=1e-5)

# names in other code bases

_BLOCK = rename(
    (r"\.mix\.fn\.norm\.", ".norm1."),
    (r"\.mix\.fn\.mixer\.", ".token_mixer."),
    (r"\.ffn\.fn\.norm\.", ".norm2."),
    (r"\.ffn\.fn\.mlp\.", ".mlp."),
)
_RES_SCALES = rename(
    (r"\.mix\.shortcut\.gamma$", ".res_scale1.scale"), (r"\.ffn\.shortcut\.gamma$", ".res_scale2.scale")
)
_LINEARS = (View(r"(pwconv[12]|qkv|proj|fc[12])\.weight$", linear_shape),)

_BASELINE_KEYS = rename(
    (r"^stem\.conv", "downsample_layers.0.conv"),
    (r"^stem\.norm", "downsample_layers.0.post_norm"),
    (r"^stages\.(\d+)\.downsample\.conv", r"downsample_layers.\1.conv"),
    (r"^stages\.(\d+)\.downsample\.norm", r"downsample_layers.\1.pre_norm"),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"token_mixer\.weight$", "token_mixer.random_matrix"),
    (r"^head\.norm\.", "norm."),
    (r"^head\.hidden\.norm", "head.norm"),
)
_LINEAR_HEAD = rename((r"^head\.fc", "head"))
_MLP_HEAD = rename((r"^head\.fc", "head.fc2"), (r"^head\.hidden\.fc", "head.fc1"))
_TIMM_MLP_HEAD = rename(
    (r"^head\.fc", "head.fc.fc2"), (r"^head\.hidden\.fc", "head.fc.fc1"), (r"^head\.hidden", "head.fc")
)
_TIMM_RANDOM = rename((r"token_mixer\.weight$", "token_mixer.random_matrix"))


def _v1_keys(positions: Sequence[int] = ()) -> KeyMap:
    """Official names of v1, whose ``network`` list also counts the position embeddings before ``positions``."""

    def place(stage: str) -> int:
        return 2 * int(stage) + sum(1 for p in positions if p <= int(stage))

    moved: tuple[tuple[str, Rewrite], ...] = (
        (r"^stages\.(\d+)\.blocks", lambda m: f"network.{place(m[1])}"),
        (r"^stages\.(\d+)\.position\.table", lambda m: f"network.{place(m[1]) - 1}.pos_embed"),
        (r"^stages\.(\d+)\.downsample\.conv", lambda m: f"network.{place(str(int(m[1]) - 1)) + 1}.proj"),
    )
    same = rename((r"^stem\.conv", "patch_embed.proj"), (r"^head\.fc", "head"), *moved)
    scales = rename((r"\.mix\.fn\.scale\.gamma$", ".layer_scale_1"), (r"\.ffn\.fn\.scale\.gamma$", ".layer_scale_2"))
    spatial = rename((r"token_mixer\.weight$", "token_mixer.fc.weight"))
    return KeyMap(_BLOCK + scales + same + spatial, (View(r"token_mixer\.(qkv|proj)\.weight$", linear_shape),))


_V1_SCALES = rename(
    (r"\.mix\.fn\.scale\.gamma$", ".layer_scale1.scale"), (r"\.ffn\.fn\.scale\.gamma$", ".layer_scale2.scale")
)
_TIMM_V1 = KeyMap(_BLOCK + _V1_SCALES + rename((r"^norm\.", "head.norm.")))


# what the families are made of


def _block(norm: Factory, shortcut: Factory | None) -> tuple[Branch, ...]:
    ffn = mlp(4.0, StarReLU, bias=False)
    return Branch("mix", {"norm": norm, "mixer": MIXER}, shortcut), Branch("ffn", {"norm": norm, "mlp": ffn}, shortcut)


def build(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (64, 128, 320, 512),
    mixers: str | Sequence[str | MixerFactory] = "pool",
    norm: Factory = _layer_norm,
    hidden: Factory | None = None,
) -> BackboneSpec:
    """A MetaFormer baseline of any depth, width and mixers.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        mixers: one mixer for all stages, or one per stage: names or factories.
        norm: of the blocks.
        hidden: factory of a hidden layer in the head, as ConvFormer and CAFormer have (`mlp_hidden`).
    """
    chosen = [mixers] * len(dims) if isinstance(mixers, str) else list(mixers)
    stages = []
    for i, (depth, dim, mixer) in enumerate(zip(depths, dims, chosen, strict=True)):
        block = _block(norm, residual_scale if i >= 2 else None)
        downsample = partial(strided_conv, pre_norm=_layer_norm) if i else None
        stages.append(StageSpec(depth, dim, block, resolve_mixer(mixer), downsample))
    official = _BLOCK + _RES_SCALES + _BASELINE_KEYS + (_MLP_HEAD if hidden else _LINEAR_HEAD)
    in_timm = _BLOCK + _RES_SCALES + _TIMM_RANDOM + (_TIMM_MLP_HEAD if hidden else ())
    return BackboneSpec(
        stem=patch_stem(padding=2, norm=_layer_norm),
        stages=tuple(stages),
        head=HeadSpec(norm=partial(nn.LayerNorm, eps=1e-6), hidden=hidden),
        init=trunc_normal,
        keys={"official": KeyMap(official, _LINEARS), "timm": KeyMap(in_timm)},
    )


def _v1(
    depths: Sequence[int],
    dims: Sequence[int],
    scale: float = 1e-5,
    mixers: Sequence[str | MixerFactory] = ("pool",) * 4,
    norm: Factory = GroupNorm1,
    positions: Sequence[int] = (),
) -> BackboneSpec:
    block = (
        Branch("mix", {"norm": norm, "mixer": MIXER, "scale": layer_scale(scale)}),
        Branch("ffn", {"norm": norm, "mlp": mlp(4.0), "scale": layer_scale(scale)}),
    )
    stages = tuple(
        StageSpec(
            depth,
            dim,
            block,
            resolve_mixer(mixers[i]),
            strided_conv if i else None,
            position=PositionEmbedding if i in positions else None,
        )
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True))
    )
    return BackboneSpec(
        stem=patch_stem(padding=2),
        stages=stages,
        norm=norm,
        init=trunc_normal,
        keys={"official": _v1_keys(positions), "timm": _TIMM_V1},
    )


# variants: depths, dims, drop path

_SIZES = {
    "s12": ((2, 2, 6, 2), (64, 128, 320, 512), 0.1),
    "s24": ((4, 4, 12, 4), (64, 128, 320, 512), 0.1),
    "s36": ((6, 6, 18, 6), (64, 128, 320, 512), 0.2),
    "m36": ((6, 6, 18, 6), (96, 192, 384, 768), 0.3),
    "m48": ((8, 8, 24, 8), (96, 192, 384, 768), 0.4),
}
_LARGE_SIZES = {
    "s18": ((3, 3, 9, 3), (64, 128, 320, 512)),
    "s36": ((3, 12, 18, 3), (64, 128, 320, 512)),
    "m36": ((3, 12, 18, 3), (96, 192, 384, 576)),
    "b36": ((3, 12, 18, 3), (128, 256, 512, 768)),
}
_MIXERS = {
    "identityformer": ("identity",) * 4,
    "randformer": ("identity", "identity", "random", "random"),
    "poolformerv2": ("pool",) * 4,
    "convformer": ("sepconv",) * 4,
    "caformer": ("sepconv", "sepconv", "attention", "attention"),
}

# name: params (1e6), MACs (1e9) at 224, top-1 (%)
_V1_FIGURES = {
    "s12": (11.915176, 1.8, 77.2),
    "s24": (21.388968, 3.4, 80.3),
    "s36": (30.86276, 5.0, 81.4),
    "m36": (56.17252, 8.8, 82.1),
    "m48": (73.473448, 11.6, 82.5),
}
_FIGURES = {
    "identityformer": {
        "s12": (1.8, 74.6),
        "s24": (3.4, 78.2),
        "s36": (5.0, 79.3),
        "m36": (8.8, 80.0),
        "m48": (11.5, 80.4),
    },
    "randformer": {"s12": (1.9, 76.6), "s24": (3.5, 78.2), "s36": (5.2, 79.5), "m36": (9.0, 81.2), "m48": (11.9, 81.4)},
    "poolformerv2": {
        "s12": (1.8, 78.0),
        "s24": (3.4, 80.7),
        "s36": (5.0, 81.6),
        "m36": (8.8, 82.2),
        "m48": (11.5, 82.6),
    },
}
_PARAMS = {"s12": 11.891712, "s24": 21.341464, "s36": 30.791216, "m36": 56.077168, "m48": 73.346056}

# name: params; (MACs, top-1) of in1k, in1k at 384, in21k then in1k, the same at 384; drop path
_LARGE_FIGURES = {
    "convformer_s18": (26.774448, (3.9, 83.0), (11.6, 84.4), (3.9, 83.7), (11.6, 85.0), 0.2),
    "convformer_s36": (40.012152, (7.6, 84.1), (22.4, 85.4), (7.6, 85.4), (22.4, 86.4), 0.3),
    "convformer_m36": (57.05164, (12.8, 84.5), (37.7, 85.6), (12.8, 86.1), (37.7, 86.9), 0.4),
    "convformer_b36": (99.882616, (22.6, 84.8), (66.5, 85.7), (22.6, 87.0), (66.5, 87.6), 0.6),
    "caformer_s18": (26.341656, (4.1, 83.6), (13.4, 85.0), (4.1, 84.1), (13.4, 85.4), 0.15),
    "caformer_s36": (39.297102, (8.0, 84.5), (26.0, 85.7), (8.0, 85.8), (26.0, 86.9), 0.3),
    "caformer_m36": (56.204862, (13.2, 85.2), (42.0, 86.2), (13.2, 86.6), (42.0, 87.5), 0.4),
    "caformer_b36": (98.753614, (23.2, 85.5), (72.2, 86.4), (23.2, 87.4), (72.2, 88.1), 0.6),
}
_RELEASES = "https://github.com/sail-sg/poolformer/releases/download/v1.0"
_HUB = "https://huggingface.co/sail/dl/resolve/main"


def _poolformer(size: str) -> Variant:
    depths, dims, drop_path = _SIZES[size]
    params, macs, top1 = _V1_FIGURES[size]
    name, crop = f"poolformer_{size}", 0.9 if size[0] == "s" else 0.95
    file = Weights(
        "in1k", f"{_RELEASES}/{name}.pth.tar", f"timm/{name}.sail_in1k", top1=top1, macs_g=macs, crop_pct=crop
    )
    spec = _v1(depths, dims, 1e-5 if size in ("s12", "s24") else 1e-6)
    return _variant(name, spec, params, macs, top1, (file,), drop_path, _V1, "PoolFormer")


def _baseline(kind: str, size: str) -> Variant:
    depths, dims, drop_path = _SIZES[size]
    macs, top1 = _FIGURES[kind][size]
    name = f"{kind}_{size}"
    hub = f"timm/{name}.sail_in1k" if kind == "poolformerv2" else None
    file = Weights("in1k", f"{_HUB}/{kind}/{name}.pth", hub, top1=top1, macs_g=macs, crop_pct=1.0)
    spec = build(depths, dims, _MIXERS[kind], norm=GroupNorm1NoBias)
    rate = 0.3 if name == "randformer_m48" else drop_path
    return _variant(name, spec, _PARAMS[size], macs, top1, (file,), rate, _BASELINES, "MetaFormer baseline")


def _large(kind: str, size: str) -> Variant:
    name = f"{kind}_{size}"
    params, *figures, drop_path = _LARGE_FIGURES[name]
    tags = ("in1k", "in1k_384", "in21k_ft_in1k", "in21k_ft_in1k_384")
    suffixes = ("", "_384", "_in21ft1k", "_384_in21ft1k")
    files = [
        Weights(
            tag,
            f"{_HUB}/{kind}/{name}{suffix}.pth",
            f"timm/{name}.sail_{tag.replace('in21k', 'in22k')}",
            top1=top1,
            resolution=384 if "384" in tag else 224,
            macs_g=macs,
            crop_pct=1.0,
        )
        for tag, suffix, (macs, top1) in zip(tags, suffixes, figures, strict=True)
    ]
    in21k = replace(
        files[0], tag="in21k", url=f"{_HUB}/{kind}/{name}_in21k.pth", num_classes=21841, top1=None, macs_g=None
    )
    files.append(replace(in21k, hf_hub_id=f"timm/{name}.sail_in22k"))
    spec = build(*_LARGE_SIZES[size], _MIXERS[kind], hidden=mlp_hidden)
    macs, top1 = figures[0]
    return _variant(name, spec, params, macs, top1, tuple(files), drop_path, _BASELINES, "MetaFormer baseline")


def _hybrid(code: str, name: str, params: float, crop: float, positions: Sequence[int] = ()) -> Variant:
    """A hybrid of the PoolFormer ablation; ``code`` has a letter per stage."""
    mixers: dict[str, str | MixerFactory] = {
        "i": "identity",
        "p": "pool",
        "a": Mixer("attention", proj_bias=True),
        "f": "spatial_linear",
    }
    depths, dims, drop_path = _SIZES["s12"]
    norm = _channel_norm if "a" in code else GroupNorm1
    spec = _v1(depths, dims, mixers=[mixers[c] for c in code], norm=norm, positions=positions)
    file = Weights("in1k", f"{_RELEASES}/{name}.pth.tar", crop_pct=crop)
    return _variant(name, spec, params, None, None, (file,), drop_path, _V1, "PoolFormer ablation hybrid")


def _variant(
    name: str,
    spec: BackboneSpec,
    params: float,
    macs: float | None,
    top1: float | None,
    files: tuple[Weights, ...],
    drop_path: float,
    paper: str,
    description: str,
) -> Variant:
    return Variant(
        name,
        "metaformer",
        spec,
        params,
        macs,
        top1,
        224,
        paper,
        "Apache-2.0",
        files,
        drop_path,
        description=description,
    )


VARIANTS: tuple[Variant, ...] = (
    *(_poolformer(size) for size in _SIZES),
    *(_baseline(kind, size) for kind in _FIGURES for size in _SIZES),
    *(_large(kind, size) for kind in ("convformer", "caformer") for size in _LARGE_SIZES),
    _hybrid("iiii", "metaformer_id_s12", 11.915176, 0.9),
    _hybrid("pppa", "metaformer_pppa_s12_224", 14.03844, 0.95, positions=(3,)),
    _hybrid("ppaa", "metaformer_ppaa_s12_224", 16.535592, 0.95, positions=(2,)),
    _hybrid("pppf", "metaformer_pppf_s12_224", 11.919978, 0.9),
    _hybrid("ppff", "metaformer_ppff_s12_224", 12.150474, 0.95),
)
