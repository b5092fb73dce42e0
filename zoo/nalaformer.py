"""NaLaFormer: norm-aware linear attention on the two large maps, softmax attention on the two small ones.

Paper: arXiv:2506.21137 (ICML 2026, "Norm x Direction"). Code: MIT; no weights are published. Facts:
github.com/ZacharyMeng/NaLaFormer at 1f1c10a.

RAVLT's network with a second depthwise 3x3 before the MLP, and a LayerNorm and a SiLU around the gate of both
attentions; see `ravlt` for the layout. MACs and accuracy are those of the repository's tables, which fit its code, and
so what is here, within 2.2 % for S, B and L. They do not for XT (8M parameters and 1.0 GMACs in the tables; 6.1 and
0.64 in the code) and T (15M and 2.7; 15.9 and 2.86).

A query that is a zero vector has no direction, for which the authors' code gives NaN; here it attends to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from timm.layers import LayerNorm2d
from torch import nn

from ..blocks.block import Branch, Parts
from ..blocks.mixers import Mixer, MixerFactory
from . import ravlt
from .keys import KeyMap, View, linear_shape, rename
from .spec import BackboneSpec, StageSpec, Variant, resolve_mixer

OFFICIAL = KeyMap(
    (
        *rename(
            (r"\.pos\.fn\.dw\.", ".cpe1."),
            (r"\.pos2\.fn\.dw\.", ".cpe2."),
            (r"\.mix\.fn\.mixer\.qkvo\.", ".attn.qkvg."),
            (r"\.mix\.fn\.mixer\.norm\.", ".attn.ln."),
            (r"\.mix\.fn\.mixer\.proj\.", ".attn.out_proj."),
        ),
        *ravlt.OFFICIAL.rules,
    ),
    (View(r"(qkvg|out_proj|fc[12]|^proj)\.weight$", linear_shape), *ravlt.OFFICIAL.views),
    ravlt.OFFICIAL.dropped,
)
_GATED = {"norm": partial(LayerNorm2d, eps=1e-5), "gate": nn.SiLU}  # around the gate of softmax attention


def build(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (64, 128, 256, 512),
    heads: Sequence[int] = (1, 2, 4, 8),
    projection: int = 1024,
    scales: Sequence[float] = (1, 1, 1, 1),
    mlp_ratio: float = 3.5,
    mixers: Sequence[str] = ("nala", "nala", "rope_attention", "rope_attention"),
) -> BackboneSpec:
    """A NaLaFormer of any depth and width; see `ravlt.build` for the arguments."""
    chosen = [_mixer(name, dim // n) for name, dim, n in zip(mixers, dims, heads, strict=True)]
    spec = ravlt.build(depths, dims, heads, projection, scales, chosen, mlp_ratio)
    stages = tuple(replace(stage, block=_block(stage)) for stage in spec.stages)
    return replace(spec, stages=stages, keys={"official": OFFICIAL})


def _mixer(name: str, head_dim: int) -> MixerFactory:
    """A mixer of this family by name with the width of its heads, or any other one."""
    if name == "rope_attention":
        return Mixer(name, head_dim=head_dim, **_GATED)
    return Mixer(name, head_dim=head_dim) if name == "nala" else resolve_mixer(name)


def _block(stage: StageSpec) -> Parts:
    """The block of RAVLT with the second depthwise convolution."""
    assert isinstance(stage.block, tuple)
    position, mix, ffn = stage.block
    return position, mix, Branch("pos2", position.members), ffn


# size: depths, dims, heads, MLP ratio, initial layer scales
_SIZES = {
    "xt": ((2, 2, 2, 2), (32, 64, 128, 384), (1, 2, 4, 12), 3.5, (1, 1, 1, 1)),
    "t": ((2, 2, 6, 2), (64, 128, 256, 512), (1, 2, 4, 8), 4.0, (1, 1, 1, 1)),
    "s": ((3, 5, 9, 3), (64, 128, 320, 512), (1, 2, 5, 8), 3.5, (1, 1, 1, 1)),
    "b": ((4, 6, 12, 6), (96, 192, 384, 512), (1, 2, 6, 8), 4.0, (1, 1, 1e-6, 1e-6)),
    "l": ((4, 7, 19, 8), (96, 192, 448, 640), (1, 2, 7, 10), 3.5, (1e-6,) * 4),
}
# size: params (1e6), MACs (1e9), top-1 (%), drop path
_FIGURES = {
    "xt": (6.142248, 1.0, 79.1, 0.1),
    "t": (15.907752, 2.7, 82.6, 0.1),
    "s": (25.654184, 5.1, 84.3, 0.15),
    "b": (52.002952, 12.0, 85.2, 0.4),
    "l": (95.42676, 18.0, 85.7, 0.55),
}


def _variant(size: str) -> Variant:
    depths, dims, heads, ratio, scales = _SIZES[size]
    params, macs, top1, drop_path = _FIGURES[size]
    spec = build(depths, dims, heads, scales=scales, mlp_ratio=ratio)
    return Variant(
        f"nalaformer_{size}", "nalaformer", spec, params, macs, top1, 224, "2506.21137", drop_path=drop_path,
        description="NaLaFormer",
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = tuple(_variant(size) for size in _SIZES)
