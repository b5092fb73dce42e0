"""InLine: linear attention whose weights sum to one, in the layouts of DeiT, PVT, Swin and CSWin.

Paper: arXiv:2412.06590 (NeurIPS 2024). Weights: no licence is stated. Facts: github.com/LeapLabTHU/InLine at e463a6f.

InLine blocks attend over the whole map at any size. In Swin they take the first blocks, and shifted windows the rest.
In CSWin the local kernels are predicted from the input before its norm, which the mixer then holds. InLine-DeiT is
narrower than DeiT, for larger images; its class token has no local residual, so that nothing in the last block looks at
the kernels that are predicted there. The parameters are those of the authors' code; their README prints others for
Swin-T and CSWin, and 50.2 million for PVT-L.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..blocks.block import MIXER, MixerSlot
from ..blocks.mixers import Blockwise, Mixer, MixerFactory
from . import cswin, deit, pvt, swin
from .keys import Rewrite, Rule, View, rename
from .spec import BackboneSpec, Variant, Weights

# names of the authors' code


def _local_keys(where: str) -> tuple[Rule, ...]:
    """Rules for the predictor of local kernels, which the code keeps in ``where``."""
    places: tuple[tuple[str, Rewrite], ...] = (
        (r"\.mix\.fn\.mixer\.local\.fc1\.", f"{where}.residual.0."),
        (r"\.mix\.fn\.mixer\.local\.fc2\.", f"{where}.residual.2."),
    )
    return rename(*places)


_CSWIN = _local_keys(".attns.0") + rename(
    (r"\.mix\.fn\.mixer\.lepe\.(weight|bias)$", r".attns.0.get_v.\1"), (r"\.mix\.fn\.mixer\.norm\.", ".norm1.")
)
_VIEWS = (View(r"residual\.[02]\.weight$", lambda t: t.shape[:3]),)


# layouts


def build(
    depths: Sequence[int] = (2, 2, 2, 2),
    dims: Sequence[int] = (64, 128, 320, 512),
    num_heads: Sequence[int] = (2, 4, 10, 16),
    mlp_ratios: Sequence[float] = (8, 8, 4, 4),
) -> BackboneSpec:
    """InLine-PVT of any depth and width.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        num_heads: heads per stage.
        mlp_ratios: expansion of the channel mixer, per stage.
    """
    mixers = [Mixer("inline", num_heads=heads, split_queries=True) for heads in num_heads]
    return pvt.build(depths, dims, mixers, mlp_ratios, keys=pvt.official_keys(*_local_keys(".attn"), views=_VIEWS))


def build_deit(depth: int = 12, dim: int = 192, num_heads: int = 6, img_size: int = 224) -> BackboneSpec:
    """InLine-DeiT.

    Args:
        depth: number of blocks.
        dim: channels.
        num_heads: heads.
        img_size: side of the images that the position table is made for.
    """
    keys = deit.official_keys(*_local_keys(".attn"), views=_VIEWS)
    return deit.build(depth, dim, [Mixer("inline", num_heads=num_heads)], img_size=img_size, keys=keys)


def build_swin(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (96, 192, 384, 768),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    inline: Sequence[int] = (2, 2, 6, 0),
) -> BackboneSpec:
    """InLine-Swin.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        num_heads: heads per stage.
        inline: how many blocks at the head of each stage have InLine attention; the others have shifted windows.
    """
    mixers: list[MixerFactory] = []
    for heads, count, depth in zip(num_heads, inline, depths, strict=True):
        linear, window = Mixer("inline", num_heads=heads), Mixer("window", num_heads=heads)
        mixers.append(linear if count == depth else (Blockwise(linear, window, count) if count else window))
    return swin.build(depths, dims, mixers, keys=swin.official_keys(*_local_keys(".attn"), views=_VIEWS))


def build_cswin(
    depths: Sequence[int] = (2, 4, 18, 1),
    dims: Sequence[int] = (64, 128, 256, 512),
    head_dim: int = 32,
    split: int = 7,
    img_size: int = 224,
) -> BackboneSpec:
    """InLine-CSWin: InLine attention in the first two stages, stripes in the third, the whole map in the last.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        head_dim: channels of a head.
        split: width of the stripes.
        img_size: side of the images that the model is made for.
    """
    linear = [Mixer("inline", num_heads=dim // head_dim, lepe=True, norm=cswin.layer_norm) for dim in dims[:2]]
    stripes = cswin.stripe_mixers(dims[2:], head_dim, (split, None))
    inner: cswin.Members = {"mixer": MixerSlot(cswin.layer_norm)}
    outer: cswin.Members = {"norm": cswin.layer_norm, "mixer": MIXER}
    spec = cswin.build(
        depths,
        dims,
        [*linear, *stripes],
        mix=(inner, inner, outer, outer),
        keys=cswin.official_keys(*_CSWIN, views=_VIEWS),
    )
    return replace(spec, img_size=img_size)


# name: width, heads, size, params (1e6), MACs (1e9), top-1 (%), drop path, file
_DEIT = {
    "inline_deit_tiny": (192, 6, 224, 6.477736, 1.1, 74.5, 0.1, "1d6b8191ad6d4114b291"),
    "inline_deit_small": (320, 10, 288, 16.73476, 5.0, 80.2, 0.1, "2f3898b07e9247f3beb3"),
    "inline_deit_base": (384, 12, 448, 23.797096, 17.2, 82.3, 0.1, "10bdd726d4b0435eb34e"),
}
# name: depths, params, MACs, top-1, drop path, file
_PVT = {
    "inline_pvt_tiny": ((2, 2, 2, 2), 12.032232, 2.0, 78.2, 0.1, "90ac52b1555b401eb5e6"),
    "inline_pvt_small": ((3, 4, 6, 3), 21.556136, 3.9, 82.0, 0.1, "1ab953b2479d433080a3"),
    "inline_pvt_medium": ((3, 4, 18, 3), 37.618856, 6.9, 83.2, 0.3, "a72aec31e6084bc0a280"),
    "inline_pvt_large": ((3, 8, 27, 3), 51.15428, 10.2, 83.6, 0.3, "efd91318ba964f01b288"),
}
# name: depths, width of the first stage, InLine blocks per stage, params, MACs, top-1, drop path, file
_SWIN = {
    "inline_swin_tiny": ((2, 2, 6, 2), 96, (2, 2, 6, 0), 29.223544, 4.5, 82.4, 0.2, "32810869fcc34410966b"),
    "inline_swin_small": ((2, 2, 18, 2), 96, (2, 2, 0, 0), 49.793296, 8.7, 83.6, 0.3, "e9657fd247c04c7cb1a1"),
    "inline_swin_base": ((2, 2, 18, 2), 128, (2, 2, 2, 0), 88.35012, 15.4, 84.1, 0.5, "bf23564bb64c420aafe1"),
}
# name: depths, width of the first stage, head width, size, params, MACs, top-1, drop path, file
_CSWIN_TABLE = {
    "inline_cswin_tiny": ((2, 4, 18, 1), 64, 32, 224, 20.60452, 4.3, 83.2, 0.2, "49fa2ecc543647c4b970"),
    "inline_cswin_small": ((3, 6, 29, 2), 64, 32, 224, 33.032872, 6.8, 83.8, 0.4, "59f4e65f776f4052b93c"),
    "inline_cswin_base": ((3, 6, 29, 2), 96, 24, 224, 73.41364, 14.9, 84.5, 0.5, "91e17121df284ae38521"),
    "inline_cswin_base_384": ((3, 6, 29, 2), 96, 24, 384, 73.41364, 46.3, 85.7, 0.7, None),
}


def _variant(
    name: str,
    spec: BackboneSpec,
    figures: tuple[float, ...],
    file: str | None,
    description: str,
) -> Variant:
    """``figures``: params (1e6), MACs (1e9), top-1 (%), drop path."""
    params, macs, top1, drop_path = figures
    url = f"https://cloud.tsinghua.edu.cn/f/{file}/?dl=1" if file else None
    files = (Weights("in1k" if url else "", url, top1=top1, resolution=spec.img_size, macs_g=macs),)
    return Variant(
        name, "inline", spec, params, macs, top1, spec.img_size, "2412.06590", None, files, drop_path,
        description=description,
    )  # fmt: skip


def _deit(name: str) -> Variant:
    width, heads, size, *figures, file = _DEIT[name]
    return _variant(name, build_deit(12, width, heads, size), tuple(figures), file, "InLine-DeiT")


def _pvt(name: str) -> Variant:
    depths, *figures, file = _PVT[name]
    return _variant(name, build(depths), tuple(figures), file, "InLine-PVT")


def _swin(name: str) -> Variant:
    depths, width, inline, *figures, file = _SWIN[name]
    dims = [width * 2**i for i in range(4)]
    spec = build_swin(depths, dims, [dim // 32 for dim in dims], inline)
    return _variant(name, spec, tuple(figures), file, "InLine-Swin")


def _cswin(name: str) -> Variant:
    depths, width, head_dim, size, *figures, file = _CSWIN_TABLE[name]
    spec = build_cswin(depths, [width * 2**i for i in range(4)], head_dim, size // 32, size)
    return _variant(name, spec, tuple(figures), file, "InLine-CSWin")


VARIANTS: tuple[Variant, ...] = (
    *(_deit(name) for name in _DEIT),
    *(_pvt(name) for name in _PVT),
    *(_swin(name) for name in _SWIN),
    *(_cswin(name) for name in _CSWIN_TABLE),
)
