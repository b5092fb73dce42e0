"""MAViT: RAVLT's network with magnitude-aware linear attention, and a wider projection of the last map.

Paper: arXiv:2507.00698 (ICCV 2025). The authors state no licence. Facts: github.com/qhfan/MALA at 7114e63, where the
models are called MALA_T to MALA_L; their files are in the folder huggingface.co/aldjalkdf/MAViT.

The repository prints no figures: those of S are from the abstract, the others from copies of the paper's tables. See
`ravlt` for the layout.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import ravlt
from .spec import BackboneSpec, Variant


def build(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (64, 128, 256, 512),
    heads: Sequence[int] = (1, 2, 4, 8),
    projection: int = 2048,
    scales: Sequence[float] = (1, 1, 1, 1),
    mixers: Sequence[str] = ("mala", "mala", "rope_attention", "rope_attention"),
) -> BackboneSpec:
    """A MAViT of any depth and width; see `ravlt.build` for the arguments."""
    return ravlt.build(depths, dims, heads, projection, scales, mixers)


# size: projection, params (1e6), MACs (1e9), top-1 (%)
_FIGURES = {
    "t": (2048, 16.449128, 2.5, None),
    "s": (2048, 27.142568, 4.6, 84.7),
    "b": (2048, 49.792648, 9.9, 85.7),
    "l": (2560, 97.766088, 16.1, 86.0),
}


def _variant(size: str) -> Variant:
    depths, dims, heads, scales, drop_path = ravlt.SIZES[size]
    projection, params, macs, top1 = _FIGURES[size]
    spec = build(depths, dims, heads, projection, scales)
    return Variant(
        f"mavit_{size}", "mavit", spec, params, macs, top1, 224, "2507.00698", drop_path=drop_path, description="MAViT"
    )


VARIANTS: tuple[Variant, ...] = tuple(_variant(size) for size in _FIGURES)
