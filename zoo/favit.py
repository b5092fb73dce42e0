"""FaViT: factorised self-attention in the layout of PVT v2, long range at the cost of local windows.

No published paper (Factorization Vision Transformer). The authors state no licence and publish no weights. Facts:
github.com/q2479036243/FaViT at 529b46b.

Attention splits channels: an eighth looks at a reduced map, the others at one or two 7 x 7 windows averaged over the
map (see `mixzoo.blocks.mixers.factorised`, also for what the averaging is). The authors' code needs maps whose sides
the reduction divides and that are larger than half a dilated window; here any size runs: what does not fill a reduction
kernel is left out of the keys, and windows are mirrored as often as they must be.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks.mixers import Mixer
from . import pvt
from .keys import View, linear_shape, rename
from .spec import BackboneSpec, Variant, Weights

_MIXER = rename(
    (r"\.mixer\.reduce\.conv\.", ".mixer.sr."),
    (r"\.mixer\.reduce\.norm\.", ".mixer.norm."),
    (r"\.mixer\.kv\.", ".mixer.kv_g."),
    (r"\.mixer\.dwconv\.", ".mixer.local_conv_g."),
    (r"\.mixer\.local\.dw\.", ".mixer.kv_l.depth_conv."),
    (r"\.mixer\.local\.point\.", ".mixer.kv_l.point_conv."),
    (r"\.mixer\.windows\.(\d)\.fc\.", r".mixer.fcs.\1."),
    (r"\.mixer\.windows\.(\d)\.kv\.", r".mixer.single_heads.\1."),
    (r"\.mixer\.windows\.(\d)\.dwconv\.", r".mixer.local_convs.\1."),
)
_KEYS = pvt.official_keys(*_MIXER, views=(View(r"attn\.kv_g\.weight$", linear_shape),))


def build(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (32, 64, 128, 256),
    num_heads: Sequence[int] = (1, 2, 4, 8),
    ratios: Sequence[int] = (8, 4, 2, 1),
    mlp_ratios: Sequence[float] = (8, 6, 4, 4),
) -> BackboneSpec:
    """A FaViT of any depth and width.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        num_heads: heads of the window parts, per stage.
        ratios: reduction of the map for the first part, and dilation of the last, per stage.
        mlp_ratios: expansion of the channel mixer, per stage.
    """
    mixers = [Mixer("factorised", num_heads=n, ratio=r) for n, r in zip(num_heads, ratios, strict=True)]
    return pvt.build_v2(depths, dims, mixers, mlp_ratios, keys=_KEYS)


# name: depths, width of the first stage, params (1e6), MACs (1e9), top-1 (%), drop path
_TABLE = {
    "favit_b0": ((2, 2, 6, 2), 32, 3.427704, 0.6, 71.5, 0.1),
    "favit_b1": ((2, 2, 6, 2), 64, 12.958568, 2.4, 79.4, 0.0),
    "favit_b2": ((2, 3, 18, 3), 64, 24.919896, 4.5, 82.3, 0.0),
    "favit_b3": ((2, 3, 14, 3), 96, 48.74644, 8.5, 83.4, 0.0),
}


def _variant(name: str) -> Variant:
    depths, width, params, macs, top1, drop_path = _TABLE[name]
    spec = build(depths, [width * n for n in (1, 2, 4, 8)])
    files = (Weights(top1=top1, macs_g=macs),)
    return Variant(name, "favit", spec, params, macs, top1, 224, "", None, files, drop_path, description="FaViT")


VARIANTS: tuple[Variant, ...] = tuple(_variant(name) for name in _TABLE)
