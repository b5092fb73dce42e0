"""Token mixers: modules that map (B, C, H, W) to (B, C, H, W) for any H and W, by name.

A mixer factory is called with the channels and the grid (h, w) that the map has at the model's ``img_size``. Only
mixers with learned position tables look at the grid, and they resize the tables for any other map. A factory with
``per_block = True`` is also given ``index``, the position of the block in its stage; mixers that alternate use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..geometry import Size
from .agent import AgentAttention
from .attention import Attention, RelativeAttention
from .bilevel_routing import BiLevelRoutingAttention, EnhancedAttention
from .cascaded_group import CascadedGroupAttention
from .channel import ChannelAttention, PaddedWindowAttention
from .conv import DepthwiseMixer, FFNifiedAttention, LocalConcentrationMixer, SeparableConvMixer
from .cross_window import CrossWindowAttention
from .dfc import DFCMixer
from .factorised import FactorisedAttention
from .flow import FlowAttention
from .forward_cross import ForwardCrossAttention
from .frequency import FrequencyFilterMixer
from .gated_rope import MagnitudeAwareAttention, NormAwareAttention, RankAugmentedAttention, RopeAttention
from .halo import HaloAttention
from .identity import IdentityMixer
from .inline import InLineAttention
from .large_kernel import LargeKernelAttention
from .linear import LinearAttention
from .linear_global import LinearGlobalAttention
from .neighborhood import NeighborhoodAttention
from .pool import PoolMixer
from .random import RandomMixer, SpatialLinearMixer
from .single_head import SingleHeadAttention
from .soft import SoftAttention
from .spatial_reduction import PooledAttention, SpatialReductionAttention
from .window import CosineWindowAttention, WindowAttention

# (dim, grid) -> module; a crossing mixer also takes num_sources, one that differs per block also index
MixerFactory = Callable[..., nn.Module]

MIXERS: dict[str, type[nn.Module]] = {
    "agent": AgentAttention,
    "attention": Attention,
    "bilevel_routing": BiLevelRoutingAttention,
    "cascaded_group": CascadedGroupAttention,
    "channel": ChannelAttention,
    "cosine_window": CosineWindowAttention,
    "cross_window": CrossWindowAttention,
    "depthwise": DepthwiseMixer,
    "dfc": DFCMixer,
    "enhanced_attention": EnhancedAttention,
    "factorised": FactorisedAttention,
    "ffnified_attention": FFNifiedAttention,
    "flow": FlowAttention,
    "forward_cross": ForwardCrossAttention,
    "frequency_filter": FrequencyFilterMixer,
    "halo": HaloAttention,
    "identity": IdentityMixer,
    "inline": InLineAttention,
    "large_kernel": LargeKernelAttention,
    "linear": LinearAttention,
    "linear_global": LinearGlobalAttention,
    "local_concentration": LocalConcentrationMixer,
    "mala": MagnitudeAwareAttention,
    "nala": NormAwareAttention,
    "neighborhood": NeighborhoodAttention,
    "padded_window": PaddedWindowAttention,
    "pool": PoolMixer,
    "pooled_attention": PooledAttention,
    "rala": RankAugmentedAttention,
    "random": RandomMixer,
    "relative_attention": RelativeAttention,
    "rope_attention": RopeAttention,
    "sepconv": SeparableConvMixer,
    "single_head": SingleHeadAttention,
    "soft": SoftAttention,
    "spatial_linear": SpatialLinearMixer,
    "spatial_reduction": SpatialReductionAttention,
    "window": WindowAttention,
}


class Mixer:
    """A mixer by name with fixed options: ``Mixer("attention", head_dim=64)(dim, grid)``.

    Specs hold these, so that a table of variants stays plain data.
    """

    def __init__(self, name: str, **options: Any) -> None:
        self.name = name
        self.options = options

    @property
    def crosses(self) -> bool:
        """Whether the stage must hand tokens from block to block (see `CrossStage`)."""
        return bool(getattr(MIXERS[self.name], "crosses", False))

    @property
    def per_block(self) -> bool:
        """Whether the mixer takes ``index``, the position of its block in the stage."""
        return bool(getattr(MIXERS[self.name], "per_block", False))

    @property
    def takes_prefix(self) -> bool:
        """Whether the mixer can tell class tokens from positions (see `mixzoo.blocks.tokens`)."""
        return bool(getattr(MIXERS[self.name], "takes_prefix", False))

    def __call__(self, dim: int, grid: Size, **extra: Any) -> nn.Module:
        return MIXERS[self.name](dim, grid, **self.options, **extra)

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"Mixer({self.name!r}{options})"


class _ByBlock:
    """A mixer that differs by block, made of two factories."""

    per_block = True

    def __init__(self, first: MixerFactory, rest: MixerFactory) -> None:
        self.first, self.rest = first, rest

    @property
    def name(self) -> str:
        return "+".join(getattr(f, "name", "custom") for f in (self.first, self.rest))

    @property
    def takes_prefix(self) -> bool:
        return all(getattr(f, "takes_prefix", False) for f in (self.first, self.rest))

    def factory(self, index: int) -> MixerFactory:
        """The factory of block ``index``."""
        raise NotImplementedError

    def __call__(self, dim: int, grid: Size, index: int, **extra: Any) -> nn.Module:
        factory = self.factory(index)
        if getattr(factory, "per_block", False):
            extra["index"] = index
        return factory(dim, grid, **extra)


class Blockwise(_ByBlock):
    """A mixer that differs by block: block i gets ``first`` while i < count, and ``rest`` from there on.

    Args:
        first, rest: mixer factories.
        count: how many blocks at the head of the stage get ``first``.
    """

    def __init__(self, first: MixerFactory, rest: MixerFactory, count: int) -> None:
        super().__init__(first, rest)
        self.count = count

    def factory(self, index: int) -> MixerFactory:
        return self.first if index < self.count else self.rest


class Alternating(_ByBlock):
    """A mixer that differs by block: even blocks get ``first``, odd ones ``rest``."""

    def factory(self, index: int) -> MixerFactory:
        return self.rest if index % 2 else self.first


__all__ = [
    "MIXERS",
    "Alternating",
    "Blockwise",
    "Mixer",
    "MixerFactory",
    *sorted(cls.__name__ for cls in MIXERS.values()),
]
