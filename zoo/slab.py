"""SLAB: DeiT, PVT, Swin and CSWin with norms that become batch norms, and simplified linear attention.

Paper: arXiv:2405.11582 (ICML 2024). Weights: published without a licence. Facts: github.com/xinghaochen/SLAB at
f58db00.

Two changes to known layouts: progressive re-parameterised batch norms (`mixzoo.blocks.prepbn`; ``*_prepbn``), and with
them simplified linear attention in the early stages (``slab_*``), whose features are ReLUs, with a position embedding
on keys and a depthwise 5x5 convolution of values whose kernels all heads share. ``deit_t_prepbn`` and
``swin_t_prepbn`` have RepBN from the start. Linear attention runs over the whole map: the official models take
224 x 224 images only, here the position embedding of keys is resized bicubically for any other.

Evaluation normalises nothing per image, and with filled weights activations grow without bound: compare in float64. The
authors' own folding (``merge_bn``) leaves alpha times the bias of the patch convolution out; `mixzoo.deploy` does not.
``slab_deit_*`` keep a class token, and ``slab_cswin_*`` a scale in each linear attention, that are never read: they are
loaded and given back. ``slab_pvt_v2_*`` have no official configuration; linear attention is in all stages of B0 and in
the first two of B2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..blocks.block import MIXER, Factory
from ..blocks.downsample import patch_merging
from ..blocks.mixers import Mixer, MixerFactory
from ..blocks.prepbn import PUBLISHED_STEPS, RepBN, prepbn
from ..blocks.unused import Unused
from . import cswin, deit, pvt, swin
from .keys import Rule, View, flat_grid, rename
from .spec import BackboneSpec, Variant, Weights

_LINEAR: tuple[Rule, ...] = rename(
    (r"\.mixer\.position\.table$", ".mixer.positional_encoding"),
    (r"\.mixer\.local\.", ".mixer.dwc."),
)
_TABLES = View(r"positional_encoding$", flat_grid, transposed=True)
_KEPT = rename((r"^stages\.0\.norm\.unused$", "cls_token"))
DEIT_KEYS = deit.official_keys(
    *_LINEAR, *_KEPT, views=(_TABLES, View(r"^cls_token$", lambda t: t.shape)), class_token=False
)
PVT_KEYS = pvt.official_keys(*_LINEAR, views=(_TABLES,))
SWIN_KEYS = swin.official_keys(*_LINEAR, views=(_TABLES,))
_IN_CSWIN = rename(
    (r"\.mix\.fn\.mixer\.position\.table$", ".attns.0.positional_encoding"),
    (r"\.mix\.fn\.mixer\.local\.", ".attns.0.dwc."),
    (r"\.mix\.fn\.mixer\.lepe\.(weight|bias)$", r".attns.0.get_v.\1"),
    (r"\.mix\.fn\.kept\.unused$", ".attns.0.scale"),
)
CSWIN_KEYS = cswin.official_keys(*_IN_CSWIN, views=(_TABLES,))


def simplified(head_dim: int, **options: Any) -> Mixer:
    """Simplified linear attention with heads of ``head_dim`` channels, and other options of the ``linear`` mixer."""
    return Mixer("linear", kind="sla", head_dim=head_dim, local=5, position=True, **options)


def build(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (96, 192, 384, 768),
    mixers: Sequence[str | MixerFactory] | None = None,
    norm: Factory | None = None,
) -> BackboneSpec:
    """A SLAB-Swin of any depth and width: linear attention in the first two stages, shifted windows of 7 after them.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        mixers: token mixer per stage.
        norm: of patches, branches, merging and the last map; by default progressive over 60,000 steps.
    """
    windows = swin.window_mixers([max(1, dim // 32) for dim in dims])
    mixers = mixers or [*[simplified(32)] * 2, *windows[2:]]
    norm = norm or prepbn(60_000, 1e-5)
    return swin.build(depths, dims, mixers, norm=norm, merging=partial(patch_merging, pre_norm=norm), keys=SWIN_KEYS)


def _deit(dim: int) -> BackboneSpec:
    """Without a class token: the one in the official files is kept where it does nothing."""
    norm = prepbn(60_000, 1e-6)
    spec = deit.build(12, dim, [simplified(64)], class_token=False, norm=norm, keys=DEIT_KEYS)
    return replace(spec, stages=(replace(spec.stages[0], norm=Unused),))


def _swin(depths: Sequence[int], width: int) -> BackboneSpec:
    return build(depths, [width * 2**i for i in range(4)])


def _swin_repbn(depths: Sequence[int], width: int) -> BackboneSpec:
    dims = [width * 2**i for i in range(4)]
    return build(depths, dims, swin.window_mixers([dim // 32 for dim in dims]), RepBN)


def _pvt(depths: Sequence[int], linear: bool) -> BackboneSpec:
    dims, norm = (64, 128, 320, 512), prepbn(PUBLISHED_STEPS, 1e-6)
    mixers = [simplified(64, split_queries=True)] * 4 if linear else pvt.reduction_mixers(dims, norm=norm)
    return pvt.build(depths, dims, mixers, norm=norm, embed_norm=norm, keys=PVT_KEYS)


def _pvt_v2(depths: Sequence[int], width: int, linear: int) -> BackboneSpec:
    """With linear attention in the first ``linear`` stages."""
    dims, norm = (width, 2 * width, 5 * width, 8 * width), prepbn(PUBLISHED_STEPS, 1e-6)
    mixers = [simplified(width, split_queries=True)] * linear + pvt.reduction_mixers(dims)[linear:]
    return pvt.build_v2(depths, dims, mixers, norm=norm, embed_norm=norm, keys=PVT_KEYS)


def _cswin(depths: Sequence[int]) -> BackboneSpec:
    """Linear attention over the whole map in the first two stages, stripes after them."""
    dims, norm = (64, 128, 256, 512), prepbn(120_000, 1e-5)
    plain: cswin.Members = {"norm": norm, "mixer": MIXER}
    mixers = [*[simplified(32, lepe=3)] * 2, *cswin.stripe_mixers(dims)[2:]]
    return cswin.build(
        depths, dims, mixers, norm=norm, mix=[*[{**plain, "kept": Unused}] * 2, plain, plain], keys=CSWIN_KEYS
    )


_TINY, _SMALL, _MEDIUM = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 18, 3)  # depths of PVT
# name: how it is built, params (1e6), top-1 (%), drop path, file of the release
_TABLE: dict[str, tuple[Callable[[], BackboneSpec], float, float | None, float, str | None]] = {
    "deit_t_prepbn": (partial(deit.build, 12, 192, norm=RepBN), 5.717441, 73.6, 0.0, "deit_tiny_prepbn"),
    "deit_s_prepbn": (partial(deit.build, 12, 384, norm=prepbn()), 22.069889, 80.2, 0.0, "deit_small_prepbn"),
    "slab_deit_t": (partial(_deit, 192), 6.198209, 74.3, 0.0, "slab_deit_tiny"),
    "slab_deit_s": (partial(_deit, 384), 22.992257, 80.0, 0.0, "slab_deit_small"),
    "pvt_t_prepbn": (partial(_pvt, _TINY, False), 13.239554, 76.0, 0.0, "pvt_tiny_prepbn"),
    "pvt_s_prepbn": (partial(_pvt, _SMALL, False), 24.507801, 80.1, 0.1, "pvt_small_prepbn"),
    "pvt_m_prepbn": (partial(_pvt, _MEDIUM, False), 44.253117, 81.7, 0.3, "pvt_medium_prepbn"),
    "slab_pvt_t": (partial(_pvt, _TINY, True), 12.157692, 76.5, 0.0, "slab_pvt_tiny"),
    "slab_pvt_s": (partial(_pvt, _SMALL, True), 21.683788, None, 0.1, None),
    "slab_pvt_m": (partial(_pvt, _MEDIUM, True), 37.2673, None, 0.3, None),
    "slab_pvt_v2_b0": (partial(_pvt_v2, _TINY, 32, 4), 3.599968, None, 0.0, None),
    "slab_pvt_v2_b2": (partial(_pvt_v2, _SMALL, 64, 2), 24.56168, None, 0.0, None),
    "swin_t_prepbn": (partial(_swin_repbn, (2, 2, 6, 2), 96), 28.288383, 81.4, 0.1, "swin_tiny_prepbn"),
    "slab_swin_t": (partial(_swin, (2, 2, 6, 2), 96), 29.216605, 81.8, 0.2, "slab_swin_tiny"),
    "slab_swin_s": (partial(_swin, (2, 2, 18, 2), 96), 50.552965, 83.6, 0.3, "slab_swin_small"),
    "slab_swin_b": (partial(_swin, (2, 2, 18, 2), 128), 89.029373, None, 0.5, None),
    "slab_cswin_t": (partial(_cswin, (2, 4, 18, 1)), 21.227167, 82.8, 0.1, "slab_cswin_tiny"),
    "slab_cswin_s": (partial(_cswin, (2, 4, 32, 2)), 35.493565, None, 0.3, None),
}
_RELEASES = "https://github.com/xinghaochen/SLAB/releases/download/ckpts"


def _variant(name: str) -> Variant:
    make, params, top1, drop_path, file = _TABLE[name]
    weights = Weights("in1k", f"{_RELEASES}/{file}.pth", top1=top1) if file else Weights()
    description = "SLAB" if name.startswith("slab") else "progressive re-parameterised batch norms of SLAB"
    return Variant(
        name, "slab", make(), params, None, top1, 224, "2405.11582", None, (weights,), drop_path,
        description=description,
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = tuple(_variant(name) for name in _TABLE)
