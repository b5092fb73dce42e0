"""FFNet: MetaMixer, attention's query-key-value frame filled with convolutions, from 3x3 to 7x7.

Paper: arXiv:2406.02021. Weights: Apache-2.0. Facts: github.com/ysj9909/FFNet at f3c3e4c.

The large kernels have a small one beside them in training, and a batch norm each; `mixzoo.deploy` makes one convolution
of them, and takes in norms, shortcuts around single layers and layer scales. The authors' own deploy form does the same
but for the scales: ``ffnet_*_deploy`` have its tensors, and its checkpoints load into the models by their paper's name
too, which then come back in deploy form. Published parameter counts are those of the deploy form; here every form has
its own. Any image size works unchanged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from ..blocks.block import Branch, Factory, MixerSlot
from ..blocks.channel import local_mlp
from ..blocks.conv import DepthwiseConv2d
from ..blocks.forms import MERGED, SMALL, TRAINED, Layers
from ..blocks.init import trunc_normal
from ..blocks.mixers import Mixer
from ..blocks.scale import layer_scale
from .keys import KeyMap, View, rename
from .spec import BackboneSpec, StageSpec, Variant, Weights


def _stem(in_chans: int, dim: int, layers: Layers) -> nn.Module:
    first, second = layers.conv(in_chans, 64, 3, 2), layers.conv(64, dim, 3, 2)
    return nn.Sequential(OrderedDict(conv1=first, act=nn.GELU(), conv2=second))


def _merging(dim: int, out_dim: int, layers: Layers) -> nn.Module:
    """Depthwise 7x7 of stride 2, each channel giving out_dim / dim new ones, then a 1x1 convolution."""
    return nn.Sequential(OrderedDict(dw=layers.large(dim, out_dim, 7, 2, dim), point=layers.point(out_dim)))


def _spatial(dim: int, kernel_size: int, layers: Layers) -> nn.Module:
    if kernel_size == SMALL:
        return DepthwiseConv2d(dim, kernel_size)
    return layers.large(dim, dim, kernel_size, groups=dim)


def _local(dim: int, kernel_size: int, layers: Layers) -> nn.Module:
    make = layers.conv if kernel_size == SMALL else layers.large
    return make(dim, dim, kernel_size, groups=dim)


def _keys(layers: Layers) -> KeyMap:
    pairs = rename(
        (r"^stem\.conv1\.", "patch_embed.0."),
        (r"^stem\.conv2\.", "patch_embed.2."),
        (r"^stages\.(\d+)\.downsample\.dw\.", r"stages.\1.0.proj.0."),
        (r"^stages\.(\d+)\.downsample\.point\.(fn\.)?", r"stages.\1.0.proj.1."),
        (r"^stages\.0\.blocks\.", "stages.0."),
        (r"^stages\.(\d+)\.blocks\.(\d+)", lambda m: f"stages.{m[1]}.{int(m[2]) + 1}"),
        (r"\.mix\.fn\.mixer\.", ".token_mixer.0.main."),
        (r"\.mix\.fn\.scale\.gamma$", ".token_mixer.0.layer_scale"),
        (r"\.se\.", ".token_mixer.1."),
        (r"\.ffn\.fn\.mlp\.local\.", ".channel_mixer.main.conv."),
        (r"\.ffn\.fn\.mlp\.", ".channel_mixer.main."),
        (r"\.ffn\.fn\.scale\.gamma$", ".channel_mixer.layer_scale"),
        (r"^head\.fc\.", "head."),
    )
    trained = rename(
        (r"\.conv\.(weight|bias)$", r".c.\1"),
        (r"\.proj\.1\.(c|bn)\.", r".proj.1.conv.\1."),
        (r"\.large\.", ".conv."),
        (r"\.small\.", ".conv1."),
    )
    scales = View(r"layer_scale$", lambda t: (t.numel(), 1, 1))
    return KeyMap(pairs + (trained if layers is TRAINED else ()), (scales,))


def block(mlp_kernel: int = 7, scale_init: float | None = None, layers: Layers = TRAINED) -> tuple[Branch, Branch]:
    """The two branches of a block: token mixer, and channel mixer with a depthwise kernel of side ``mlp_kernel``."""
    scale: dict[str, Factory] = {} if scale_init is None else {"scale": layer_scale(scale_init)}
    mlp = local_mlp(partial(_local, kernel_size=mlp_kernel, layers=layers), 3.0)
    return (
        Branch("mix", {"mixer": MixerSlot(foreign_norm=nn.BatchNorm2d), **scale}),
        Branch("ffn", {"mlp": mlp, **scale}),
    )


def mixer(kernel_size: int, layers: Layers = TRAINED) -> Mixer:
    """The token mixer of a stage."""
    project = None if layers is TRAINED else layers.point
    return Mixer(
        "ffnified_attention", kernel_size=kernel_size, project=project, spatial=partial(_spatial, layers=layers)
    )


def build(
    depths: Sequence[int] = (2, 2, 8, 2),
    dims: Sequence[int] = (80, 160, 320, 640),
    kernels: Sequence[int] = (3, 3, 7, 7),
    mlp_kernel: int = 3,
    scale_init: float | None = None,
    layers: Layers = TRAINED,
) -> BackboneSpec:
    """An FFNet of any depth and width.

    Args:
        depths: blocks per stage.
        dims: channels per stage, each a multiple of the one before.
        kernels: sides of the token mixers' kernels, per stage.
        mlp_kernel: side of the channel mixers' depthwise kernel.
        scale_init: initial layer scale; None for no scales.
        layers: `TRAINED`, or `MERGED` for the tensors of the authors' deploy form.
    """
    parts = block(mlp_kernel, scale_init, layers)
    down = partial(_merging, layers=layers)
    stages = tuple(
        StageSpec(depth, dim, parts, mixer(kernel, layers), down if i else None)
        for i, (depth, dim, kernel) in enumerate(zip(depths, dims, kernels, strict=True))
    )
    first = "stem.conv1" if layers is MERGED else "stem.conv1.conv"
    return BackboneSpec(
        stem=partial(_stem, layers=layers),
        stages=stages,
        norm=nn.BatchNorm2d,
        img_size=256,
        init=trunc_normal,
        first_conv=first,
        weights_key="state_dict",
        keys={"official": _keys(layers)},
        merged=None if layers is MERGED else build(depths, dims, kernels, mlp_kernel, scale_init, MERGED),
    )


# name: depths, dims, side of the channel mixer's kernel, initial scale, resolution, crop, params of both forms (1e6),
# MACs (1e9), drop path, file: (tag, top-1, name)
_WIDE = ((4, 4, 22, 5), (96, 192, 384, 768))
_TABLE = {
    "ffnet_1": ((2, 2, 8, 2), (80, 160, 320, 640), 3, None, 256, 0.9, (13.775656, 13.660152), 2.9, 0.1,
                (("in1k", 81.3, "ffnet_1"), ("distilled_in1k", 82.1, "ffnet_1_distillation"))),
    "ffnet_2": ((3, 3, 15, 3), (88, 176, 352, 704), 7, None, 256, 0.9, (27.208408, 26.90844), 6.0, 0.15,
                (("in1k", 82.9, "ffnet_2"), ("distilled_in1k", 83.7, "ffnet_2_distillation"))),
    "ffnet_3": (*_WIDE, 7, 1e-6, 256, 0.95, (48.817896, 48.330632), 10.1, 0.35,
                (("in1k", 83.9, "ffnet_3"), ("distilled_in1k", 84.5, "ffnet_3_distillation"))),
    "ffnet_3_384": (*_WIDE, 7, 1e-6, 384, 0.95, (48.817896, 48.330632), 22.8, 0.4, (("in1k", 84.5, "ffnet_3_384"),)),
    "ffnet_4": ((4, 4, 27, 3), (128, 256, 512, 1024), 7, 1e-6, 384, 0.95, (79.868968, 79.20036), 43.1, 0.5,
                (("in1k", 85.3, "ffnet_4_384"),)),
}  # fmt: skip
_RELEASE = "https://github.com/ysj9909/FFNet/releases/download/v1.0"


def _variant(name: str) -> Variant:
    depths, dims, mlp_kernel, scale, side, crop, params, macs, drop_path, published = _TABLE[name]
    files = tuple(
        Weights(tag, f"{_RELEASE}/{file}.pth.tar", top1=top1, resolution=side, macs_g=macs, crop_pct=crop)
        for tag, top1, file in published
    )
    spec = replace(build(depths, dims, mlp_kernel=mlp_kernel, scale_init=scale), img_size=side)
    return Variant(
        name, "ffnet", spec, params[0], macs, files[0].top1, side, "2406.02021", "Apache-2.0", files, drop_path,
        description="FFNet",
    )  # fmt: skip


def _merged(variant: Variant) -> Variant:
    assert variant.spec.merged is not None
    return replace(
        variant,
        name=f"{variant.name}_deploy",
        spec=variant.spec.merged,
        params_m=_TABLE[variant.name][6][1],
        weights=(replace(variant.weights[0], tag="", url=None),),
        description="FFNet with the tensors of the authors' deploy form",
    )


_TRAINED = tuple(_variant(name) for name in _TABLE)
VARIANTS: tuple[Variant, ...] = (*_TRAINED, *(_merged(v) for v in _TRAINED))
