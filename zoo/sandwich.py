"""What SHViT and EfficientViT share: stem, downsampling, norms, head, their names elsewhere, and distilled variants.

Sources: arXiv:2305.07027 and arXiv:2401.16456, whose code has the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from ..blocks.block import Branch
from ..blocks.downsample import sandwich_merging
from ..blocks.init import linear_trunc_normal
from ..blocks.mixers import Mixer
from ..blocks.stem import conv_stem
from .keys import KeyMap, Rewrite
from .spec import BackboneSpec, HeadSpec, StageSpec, Variant, Weights

Pairs = tuple[tuple[str, Rewrite], ...]
_DOWN = (("dw0", "0.0"), ("ffn0", "0.1"), ("dw1", "2.0"), ("ffn1", "2.1"))


def _in_next_stage(theirs: str) -> Rewrite:
    return lambda m: f"blocks{int(m[1]) + 1}.{theirs}.m."


def official_keys() -> Pairs:
    """The authors' names of stem, downsampling, channel mixers and head."""
    down: list[tuple[str, Rewrite]] = [
        (rf"^stages\.(\d+)\.downsample\.{ours}\.fn\.", _in_next_stage(theirs)) for ours, theirs in _DOWN
    ]
    return (
        (r"^stem\.conv(\d)\.", lambda m: f"patch_embed.{2 * (int(m[1]) - 1)}."),
        *down,
        (r"^stages\.(\d+)\.downsample\.merge\.", lambda m: f"blocks{int(m[1]) + 1}.1."),
        (r"^stages\.0\.blocks\.", "blocks1."),
        (r"^stages\.(\d+)\.blocks\.(\d+)", lambda m: f"blocks{int(m[1]) + 1}.{int(m[2]) + 3}"),
        (r"\.(fn\.mlp|m)\.fc([12])\.", r".m.pw\2."),
        (r"\.fn\.dw\.", ".m."),
        (r"^head\.norm_dist\.", "head_dist.bn."),
        (r"^head\.fc_dist\.", "head_dist.l."),
        (r"^head\.norm\.", "head.bn."),
        (r"^head\.fc\.", "head.l."),
        (r"\.conv\.weight$", ".c.weight"),
    )


def timm_keys(stem: tuple[str, Rewrite], downsample: Mapping[str, str], classifier: str) -> Pairs:
    """timm's names of the same parts.

    Args:
        stem: rule for the stem.
        downsample: our names of the parts of a downsampling, and timm's.
        classifier: timm's name of the last linear layer.
    """
    return (
        stem,
        *((rf"\.downsample\.{ours}\.(fn\.)?", f".downsample.{theirs}.") for ours, theirs in downsample.items()),
        (r"\.(fn\.mlp|m)\.fc([12])\.", r".m.pw\2."),
        (r"\.fn\.dw\.", ".m."),
        (r"^head\.norm\.", "head.bn."),
        (r"^head\.fc\.", f"head.{classifier}."),
    )


def sandwich_spec(
    depths: Sequence[int],
    dims: Sequence[int],
    block: Sequence[Branch],
    mixers: Sequence[Mixer | None],
    keys: Mapping[str, KeyMap],
) -> BackboneSpec:
    """A backbone of stride-16 convolutional stem, stages of ``block``, and batch norm before the classifier."""
    stages = tuple(
        StageSpec(depth, dim, block, mixer, sandwich_merging if i else None)
        for i, (depth, dim, mixer) in enumerate(zip(depths, dims, mixers, strict=True))
    )
    return BackboneSpec(
        stem=conv_stem(4, nn.ReLU),
        stages=stages,
        head=HeadSpec(norm=nn.BatchNorm1d),
        init=linear_trunc_normal,
        first_conv="stem.conv1.conv",
        weights_key="model",
        keys=keys,
    )


def with_distilled(variant: Variant) -> tuple[Variant, Variant]:
    """``variant``, and its form with a second norm and classifier for a teacher's labels; no weights are published."""
    dim = variant.spec.stages[-1].dim
    assert variant.params_m is not None
    return variant, replace(
        variant,
        name=f"{variant.name}_distilled",
        spec=replace(variant.spec, head=replace(variant.spec.head, distilled=True)),
        params_m=variant.params_m + (2 * dim + 1000 * dim + 1000) / 1e6,
        top1=None,
        licence=None,
        weights=(Weights(resolution=variant.resolution),),
        description=f"{variant.description} with a distillation head",
    )
