"""AFFNet: MobileNetV2 blocks, and adaptive frequency filters as global token mixers.

Paper: arXiv:2307.14008. Weights: MIT. Facts: github.com/microsoft/TokenMixers at 99dbe38, Adaptive Frequency Filters.

Each filter unit is norm, inverted bottleneck with its own shortcut, norm and frequency filter with its own shortcut, in
one residual branch. A stage of units ends in a norm and a 1x1 conv-BN, and a 1x1 conv-BN fuses the result with what
entered the units; the two widest models do without that fusion in their last two stages. Images are not normalised.
The first feature map has stride 2. Any image size works unchanged.

The settings of the published weights are not public. The models here have SiLU and a norm over channels and map
(GroupNorm of one group); ``*_relu_ln`` have what the authors' code takes by default, ReLU and a norm over channels that
divides by the standard deviation plus epsilon. The tensors have the same shapes in both, so a checkpoint loads into
either, and only accuracy tells which one it was trained as. ``affnet_base`` and ``affnet_large`` are defined by the
authors' code without published figures or weights.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from timm.layers import GroupNorm1
from torch import nn

from ..blocks.block import MIXER, Branch, Factory
from ..blocks.conv import conv_norm, conv_norm_act, inverted_bottleneck
from ..blocks.init import fan_out_normal
from ..blocks.mixers import Mixer
from ..blocks.norm import DeviationNorm2d
from ..blocks.residual import Residual
from ..blocks.stage import FusionStage, Stage
from .keys import KeyMap, rename
from .spec import BackboneSpec, StageSpec, Variant, Weights

Act = Callable[[], nn.Module]
_UNIT_RATIO = 2.0  # of the inverted bottleneck inside a unit


def _keys(depths: Sequence[int]) -> KeyMap:
    """Official names; the norm after the units counts as one more unit of the stage's ``depths``."""

    def layer(match: re.Match[str]) -> int:
        return int(match[1]) + 1

    def unit_norm(match: re.Match[str]) -> str:
        return f"layer_{layer(match)}.1.global_rep.{depths[int(match[1])]}."

    pairs = rename(
        (r"^stem\.pair\.", "conv_1.block."),
        (r"^stages\.0\.blocks\.(\d+)\.ffn\.fn\.mlp\.", lambda m: f"layer_1.{int(m[1]) + 1}."),
        (r"^stages\.1\.blocks\.(\d+)\.ffn\.fn\.mlp\.", lambda m: f"layer_2.{int(m[1]) + 1}."),
        (r"^stages\.(\d+)\.downsample\.", lambda m: f"layer_{layer(m)}.0."),
        (r"^stages\.(\d+)\.blocks\.(\d+)\.mix\.fn\.", lambda m: f"layer_{layer(m)}.1.global_rep.{m[2]}."),
        (r"\.mlp\.fn\.", ".mlp."),
        (r"\.mixer\.", ".filter."),
        (r"^stages\.(\d+)\.norm\.norm\.", unit_norm),
        (r"^stages\.(\d+)\.norm\.proj\.", lambda m: f"layer_{layer(m)}.1.conv_proj.block."),
        (r"^stages\.(\d+)\.fusion\.pair\.", lambda m: f"layer_{layer(m)}.1.fusion.block."),
        (r"^norm\.pair\.", "conv_1x1_exp.block."),
        (r"^head\.fc\.", "classifier.fc."),
    )
    parts = (("expand", "exp_1x1"), ("dw", "conv_3x3"), ("project", "red_1x1"))
    inner = rename(*((rf"\.{ours}\.(conv|bn)\.", rf".block.{theirs}.block.\1.") for ours, theirs in parts))
    return KeyMap(pairs + inner + rename((r"\.bn\.", ".norm.")))


def _unit_end(dim: int, norm: Factory) -> nn.Module:
    return nn.Sequential(OrderedDict(norm=norm(dim), proj=conv_norm(dim, dim)))


def _same_width(dim: int, ratio: float, act: Act) -> nn.Module:
    return inverted_bottleneck(dim, dim, ratio, act=act)


def _unit(norm: Factory, act: Act) -> Branch:
    def bottleneck(dim: int) -> nn.Module:
        return Residual(_same_width(dim, _UNIT_RATIO, act))

    return Branch("mix", {"norm1": norm, "mlp": bottleneck, "norm2": norm, "mixer": MIXER})


def build(
    depths: Sequence[int] = (0, 2, 2, 4, 3),
    dims: Sequence[int] = (32, 48, 64, 104, 144),
    ratio: float = 2.0,
    fused: Sequence[bool] = (True, True, True),
    act: Act = nn.SiLU,
    norm: Factory = GroupNorm1,
) -> BackboneSpec:
    """An AFFNet of any depth and width.

    Args:
        depths: per stage, inverted bottlenecks after the first one (first two stages) or filter units (the others).
        dims: channels per stage.
        ratio: expansion of the inverted bottlenecks outside of the units.
        fused: whether a stage of units fuses its result with its input, for the last three stages.
        act: activation everywhere.
        norm: norm inside the units and after them.
    """
    down = partial(inverted_bottleneck, ratio=ratio, stride=2, act=act)
    local = (Branch("ffn", {"mlp": partial(_same_width, ratio=ratio, act=act)}),)
    first = partial(inverted_bottleneck, ratio=ratio, act=act)
    stages = [
        StageSpec(depths[0], dims[0], local, downsample=first),
        StageSpec(depths[1], dims[1], local, downsample=down),
    ]
    for depth, dim, fuse in zip(depths[2:], dims[2:], fused, strict=True):
        fusion = partial(FusionStage, fusion=partial(conv_norm_act, 2 * dim, dim, act=act))
        mixer, end = Mixer("frequency_filter", act=act), partial(_unit_end, norm=norm)
        stages.append(StageSpec(depth, dim, (_unit(norm, act),), mixer, down, end, make=fusion if fuse else Stage))
    width = min(4 * dims[-1], 960)
    return BackboneSpec(
        stem=partial(conv_norm_act, kernel_size=3, stride=2, act=act),
        stages=tuple(stages),
        norm=partial(conv_norm_act, out_dim=width, act=act),
        num_features=width,
        img_size=256,
        init=fan_out_normal,
        stem_dim=16,
        first_conv="stem.pair.conv",
        keys={"official": _keys(depths)},
    )


# name: depths, dims, ratio, params (1e6), MACs (1e9), top-1 (%), folder of the weights
_TABLE = {
    "affnet_et": ((0, 2, 2, 4, 3), (32, 48, 64, 104, 144), 2, 1.436264, 0.4, 73.0, "gRohpLEiih31-T24?e=KSOEZ5"),
    "affnet_t": ((0, 2, 2, 4, 3), (32, 48, 96, 160, 192), 4, 2.654232, 0.8, 77.0, "gR3bxUACGV1s-NCt?e=WrEVTC"),
    "affnet": ((0, 2, 2, 4, 3), (32, 64, 128, 256, 320), 4, 5.568696, 1.5, 79.8, "gRckRc6eJ4kB8dW3?e=7comla"),
    "affnet_base": ((0, 2, 2, 4, 3), (64, 128, 256, 512, 640), 4, 17.178104, None, None, None),
    "affnet_large": ((1, 5, 4, 18, 6), (64, 128, 256, 512, 768), 4, 46.068088, None, None, None),
}
_SETTINGS: dict[str, tuple[Act, Factory]] = {"": (nn.SiLU, GroupNorm1), "_relu_ln": (nn.ReLU, DeviationNorm2d)}
_DRIVE = "https://1drv.ms/f/s!AjKVODXuNei2"  # folders that only a browser opens: nothing to be downloaded from by code


def _variant(name: str, setting: str) -> Variant:
    depths, dims, ratio, params, macs, top1, folder = _TABLE[name]
    act, norm = _SETTINGS[setting]
    spec = build(depths, dims, ratio, (True, folder is not None, folder is not None), act, norm)
    published = top1 if not setting else None
    where = f"; weights, to be passed as checkpoint_path=, in {_DRIVE}{folder}" if folder else ""
    files = (Weights(top1=published, resolution=256, macs_g=macs, crop_pct=0.875),)
    return Variant(
        name + setting, "affnet", spec, params, macs, published, 256, "2307.14008", "MIT" if folder else None, files,
        0.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), f"AFFNet{where}",
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = tuple(_variant(name, setting) for setting in _SETTINGS for name in _TABLE)
