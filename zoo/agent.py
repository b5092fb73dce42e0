"""Agent attention in the layouts of DeiT, PVT, Swin and CSwin.

Paper: arXiv:2312.08874. Weights: the authors state no licence. Facts: github.com/LeapLabTHU/Agent-Attention at 207ce3e.

Some blocks keep the attention of their layout: the tables below say which. In Swin, those run in windows of an eighth
of the first map, 7 at 224 pixels. Block biases are 7 x 7 at any size; those of rows and columns follow
``img_size=``, and are resized bilinearly for any other map, where the authors' classification code takes square images
of one size only. `dense` gives the mixers the larger agent grids of the authors' code for dense prediction, with the
same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ..blocks.geometry import Size
from ..blocks.mixers import Blockwise, Mixer, MixerFactory
from ..blocks.projection import SplitProjection
from . import cswin, deit, pvt, swin
from .keys import Layout, Rule, View, rename
from .spec import BackboneSpec, Variant, Weights

_BIASES = {
    "bias_in": {"coarse": "an", "rows": "ah", "columns": "aw", "token": "ac"},
    "bias_out": {"coarse": "na", "rows": "ha", "columns": "wa", "token": "ca"},
}


def _rules(where: str = ".attn", local: str = "dwc") -> tuple[Rule, ...]:
    """Rules for the mixer's own tensors, which the code keeps in ``where``, the depthwise convolution as ``local``."""
    mixer = r"\.mix\.fn\.mixer\."
    biases = (
        (rf"{mixer}{bias}\.{ours}$", f"{where}.{theirs}_bias")
        for bias, names in _BIASES.items()
        for ours, theirs in names.items()
    )
    split = (rf"{mixer}qkv\.(q|kv)\.", rf"{where}.\1.")
    return rename(*biases, (rf"{mixer}local\.(weight|bias)$", rf"{where}.{local}.\1"), split)


_VIEWS = (
    Layout(r"\.a[hw]_bias$", lambda t: t[None], lambda t: t[0]),
    Layout(r"\.[hw]a_bias$", lambda t: t.permute(0, 2, 3, 1)[None], lambda t: t[0].permute(0, 3, 1, 2)),
    View(r"\.ac_bias$", lambda t: (1, *t.shape)),
    View(r"\.ca_bias$", lambda t: (1, t.shape[0], 1, t.shape[1])),
)
AGENTS = (3, 4, 7, 7)  # side of the grid of agents, per stage


def pyramid_mixers(num_heads: Sequence[int], agents: Sequence[int] = AGENTS) -> list[MixerFactory]:
    """Agent attention for each stage of a pyramid.

    Args:
        num_heads: heads per stage.
        agents: side of the grid of agents, per stage.
    """
    return [Mixer("agent", num_heads=h, agents=a) for h, a in zip(num_heads, agents, strict=True)]


def build(
    depths: Sequence[int] = (2, 2, 6, 2),
    dims: Sequence[int] = (96, 192, 384, 768),
    mixers: Sequence[str | MixerFactory] | None = None,
    num_windowed: int = 0,
    img_size: int = 224,
) -> BackboneSpec:
    """An Agent-Swin of any depth and width.

    Args:
        depths: blocks per stage.
        dims: channels per stage.
        mixers: token mixer per stage; by default agent attention with heads 32 channels wide.
        num_windowed: how many stages, from the last, keep the attention of Swin.
        img_size: side of the images that the biases are made for.
    """
    heads = [max(1, dim // 32) for dim in dims]
    windows: list[MixerFactory] = [*swin.window_mixers(heads, max(7, img_size // 32))]
    agents = pyramid_mixers(heads, (*AGENTS, *[7] * len(dims))[: len(dims)])
    chosen = [*agents[: len(dims) - num_windowed], *windows[len(dims) - num_windowed :]]
    spec = swin.build(depths, dims, mixers or chosen, keys=swin.official_keys(*_rules(), views=_VIEWS))
    return replace(spec, img_size=img_size)


def dense(spec: BackboneSpec, agents: Sequence[Size]) -> BackboneSpec:
    """``spec`` with other grids of agents, which the biases of the same weights are resized to.

    Args:
        spec: a pyramid; stages without agents stay as they are.
        agents: (h, w) of the grid of agents, per stage; the authors take ``((12, 12), (16, 16), (28, 28), (28, 28))``
            for PVT and ``((9, 9), (12, 12), (14, 14), (7, 7))`` for Swin.
    """
    stages = (replace(s, mixer=s.mixer and _pooled(s.mixer, grid)) for s, grid in zip(spec.stages, agents, strict=True))
    return replace(spec, stages=tuple(stages))


def _pooled(mixer: MixerFactory, grid: Size) -> MixerFactory:
    if isinstance(mixer, Blockwise):
        return Blockwise(_pooled(mixer.first, grid), _pooled(mixer.rest, grid), mixer.count)
    if isinstance(mixer, Mixer) and mixer.name == "agent":
        return Mixer("agent", **{**mixer.options, "pooled": grid})
    return mixer


def _deit(dim: int, agents: int, num_agent_blocks: int, img_size: int) -> BackboneSpec:
    agent = Mixer("agent", num_heads=dim // 64, agents=agents)
    plain = Mixer("attention", head_dim=64, qkv_bias=True, proj_bias=True)
    mixer = agent if num_agent_blocks == 12 else Blockwise(agent, plain, num_agent_blocks)
    keys = deit.official_keys(*_rules(), views=_VIEWS)
    return deit.build(12, dim, (mixer,), img_size=img_size, keys=keys)


def _pvt(depths: Sequence[int], img_size: int) -> BackboneSpec:
    mixers = [
        Mixer("agent", num_heads=h, agents=a, projection=SplitProjection)
        for h, a in zip((1, 2, 5, 8), AGENTS, strict=True)
    ]
    spec = pvt.build(depths, mixers=mixers, keys=pvt.official_keys(*_rules(), views=_VIEWS))
    return replace(spec, img_size=img_size)


def _swin(depth: int, width: int, agent_blocks: Sequence[int], img_size: int) -> BackboneSpec:
    """A Swin whose stage i has agents in its first ``agent_blocks[i]`` blocks."""
    depths, dims = (2, 2, depth, 2), [width * 2**i for i in range(4)]
    heads = [dim // 32 for dim in dims]
    windows = swin.window_mixers(heads, img_size // 32)
    mixers = [
        agent if count == total else Blockwise(agent, window, count) if count else window
        for agent, window, count, total in zip(pyramid_mixers(heads), windows, agent_blocks, depths, strict=True)
    ]
    return build(depths, dims, mixers, img_size=img_size)


def _cswin(depths: Sequence[int], width: int, head_dim: int, img_size: int) -> BackboneSpec:
    """Agents in the first two stages, stripes in the third, the whole map in the last."""
    dims = [width * 2**i for i in range(4)]
    agents = pyramid_mixers([dim // head_dim for dim in dims[:2]], AGENTS[:2])
    stripes = cswin.stripe_mixers(dims[2:], head_dim, (img_size // 32, None))
    keys = cswin.official_keys(*_rules(".attns.0", "get_v"), views=_VIEWS)
    return cswin.build(depths, dims, [*agents, *stripes], img_size=img_size, keys=keys)


# name: what to build, params (1e6), MACs (1e9), top-1 (%), drop path, image side, file
_DEIT = {
    "agent_deit_tiny": (partial(_deit, 192, 7, 12), 6.01564, 1.2, 74.9, 0.0, 224, "57e0904221824ee7b7af"),
    "agent_deit_small": (partial(_deit, 384, 7, 12), 22.647112, 4.4, 80.5, 0.1, 224, "fdd43304372541db8ea7"),
    "agent_deit_small_448": (partial(_deit, 384, 7, 12), 23.070472, 17.7, 83.1, 0.1, 448, "a228f86241c445f1969b"),
    "agent_deit_base": (partial(_deit, 768, 9, 4), 87.204904, 17.6, 82.0, 0.3, 224, "5115f15fdd7e4ab58fbc"),
}
_PVT = {
    "agent_pvt_tiny": (partial(_pvt, (2, 2, 2, 2)), 11.570352, 2.0, 78.4, 0.1, 224, "13fdf0e0a7c5498c934f"),
    "agent_pvt_small": (partial(_pvt, (3, 4, 6, 3)), 20.635066, 4.0, 82.2, 0.1, 224, "36b8be9a8863456685a3"),
    "agent_pvt_medium": (partial(_pvt, (3, 4, 18, 3)), 35.921746, 7.0, 83.4, 0.3, 224, "4d00ecacf18b45f9b88c"),
    "agent_pvt_medium_256": (partial(_pvt, (3, 4, 18, 3)), 36.083682, 9.2, 83.8, 0.3, 256, "654df734121643b19c52"),
    "agent_pvt_large": (partial(_pvt, (3, 8, 27, 3)), 48.73818, 10.4, 83.7, 0.3, 224, "040cfe0cfbbe4762ad09"),
}
_AABB, _AAM2B = (2, 2, 0, 0), (2, 2, 2, 0)
_SWIN = {
    "agent_swin_tiny": (partial(_swin, 6, 96, (2, 2, 6, 0)), 28.902964, 4.5, 82.6, 0.2, 224, "a2ddc1190c224f768a41"),
    "agent_swin_small": (partial(_swin, 18, 96, _AABB), 49.666684, 8.7, 83.7, 0.3, 224, "f607172c9fea4d6e99bb"),
    "agent_swin_small_288": (partial(_swin, 18, 96, _AABB), 49.707964, 14.6, 84.1, 0.3, 288, "09760394e93b4046a25e"),
    "agent_swin_base": (partial(_swin, 18, 128, _AAM2B), 88.095096, 15.4, 84.0, 0.5, 224, "4fcd2d0114bb490483c3"),
    "agent_swin_base_384": (partial(_swin, 18, 128, _AAM2B), 88.305016, 46.3, 84.9, 0.5, 384, "bb84ee9058954706a557"),
}
_CSWIN = {
    "agent_cswin_tiny": (
        partial(_cswin, (2, 4, 18, 1), 64, 32),
        20.458672,
        4.3,
        83.1,
        0.2,
        224,
        "8c562a74441e46d5902b",
    ),
    "agent_cswin_small": (partial(_cswin, (3, 6, 29, 2), 64, 32), 32.8141, 6.8, 83.9, 0.4, 224, "30eb8af675bc4b7a8747"),
    "agent_cswin_base": (
        partial(_cswin, (3, 6, 29, 2), 96, 24),
        73.249696,
        14.9,
        84.7,
        0.5,
        224,
        "c8035b0839b2410c8c9f",
    ),
    "agent_cswin_base_384": (
        partial(_cswin, (3, 6, 29, 2), 96, 24),
        73.328416,
        46.3,
        85.8,
        0.7,
        384,
        "1239be0df44b47719432",
    ),
}
_FILES = "https://cloud.tsinghua.edu.cn/f/"
_TABLES = {"Agent-DeiT": _DEIT, "Agent-PVT": _PVT, "Agent-Swin": _SWIN, "Agent-CSwin": _CSWIN}


def _variant(name: str, layout: str) -> Variant:
    make, params, macs, top1, drop_path, side, file = _TABLES[layout][name]
    weights = Weights("in1k", f"{_FILES}{file}/?dl=1", top1=top1, resolution=side, macs_g=macs)
    return Variant(
        name, "agent", make(img_size=side), params, macs, top1, side, "2312.08874", None, (weights,), drop_path,
        description=layout,
    )  # fmt: skip


VARIANTS: tuple[Variant, ...] = tuple(_variant(name, layout) for layout, table in _TABLES.items() for name in table)
