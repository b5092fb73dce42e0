"""Maps at strides that a backbone does not have: finer ones by transposed convolutions, coarser ones by pooling."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, register_notrace_function
from torch import Tensor, nn

from ..kernels.dispatch import known
from .geometry import Size


class StrideAdapter(nn.Module):
    """Maps (B, C_i, H / own[i], W / own[i]) of one backbone -> maps at the strides that are wanted.

    A map that is there is taken as it is; of several at one stride the last. One finer than all of them is made from
    the finest, by a 2x2 transposed convolution that halves the channels, a norm and a GELU for each factor of two, as
    in the simple pyramid of ViTDet (arXiv:2203.16527). Any other is pooled from the next finer one that is there.

    Args:
        channels: of the maps.
        own: strides of the maps.
        wanted: strides of the results.

    Attributes:
        channels: of the results.
        strides: of the results.

    Raises:
        ValueError: a stride that no factor of two leads to, or one that is not wanted in rising order.
    """

    def __init__(self, channels: Sequence[int], own: Sequence[int], wanted: Sequence[int]) -> None:
        super().__init__()
        if list(wanted) != list(own) and list(wanted) != sorted(set(wanted)):
            raise ValueError(f"strides {tuple(wanted)} are not in rising order")
        self.strides = tuple(wanted)
        self.sources = map_sources(own, self.strides)
        self.factors = [stride / own[source] for stride, source in zip(self.strides, self.sources, strict=True)]
        if any(not log2(factor).is_integer() for factor in self.factors):
            raise ValueError(f"maps at strides {tuple(own)} do not lead to {self.strides} by factors of two")
        self.finer = nn.ModuleDict()  # stride -> from the next coarser map that is finer than the backbone's
        self.channels: tuple[int, ...] = tuple(
            self._make_finer(channels[source], round(log2(1 / factor)), stride) if factor < 1 else channels[source]
            for source, factor, stride in zip(self.sources, self.factors, self.strides, strict=True)
        )

    def _make_finer(self, dim: int, steps: int, stride: int) -> int:
        """Make the steps that lead to ``stride``, where another stride has not made them; returns the channels."""
        for step in range(steps):
            name = str(stride << (steps - 1 - step))
            if name not in self.finer:
                self.finer[name] = _upsampling(dim)
            dim = max(1, dim // 2)
        return dim

    def forward(self, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
        """``maps`` of images of ``size`` (H, W) -> maps of ceil(H / stride), ceil(W / stride)."""
        made = self._all_finer(maps, size)
        return tuple(
            made[stride] if factor < 1 else _pooled(maps[source], round(factor))
            for stride, source, factor in zip(self.strides, self.sources, self.factors, strict=True)
        )

    def _all_finer(self, maps: Sequence[Tensor], size: Size) -> dict[int, Tensor]:
        made: dict[int, Tensor] = {}
        if not self.finer:
            return made
        x = maps[next(source for source, factor in zip(self.sources, self.factors, strict=True) if factor < 1)]
        for name, upsample in self.finer.items():
            stride = int(name)  # sides are rounded up without negative numbers, which ONNX divides towards zero
            x = _cropped(upsample(x), ((size[0] + stride - 1) // stride, (size[1] + stride - 1) // stride))
            made[stride] = x
        return made


def map_sources(own: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """For each stride that is wanted, which map it is made from: the coarsest that is not coarser, or the finest."""
    if list(own) == list(wanted):
        return list(range(len(own)))
    by_stride = {stride: index for index, stride in enumerate(own)}  # the last of several
    return [by_stride[max((s for s in by_stride if s <= stride), default=min(by_stride))] for stride in wanted]


def _upsampling(dim: int) -> nn.Sequential:
    half = max(1, dim // 2)
    return nn.Sequential(nn.ConvTranspose2d(dim, half, 2, 2), LayerNorm2d(half), nn.GELU())


def _pooled(x: Tensor, factor: int) -> Tensor:
    return x if factor == 1 else F.max_pool2d(x, factor, factor, ceil_mode=True)


@register_notrace_function
def _cropped(x: Tensor, size: Size) -> Tensor:
    """The first ``size`` rows and columns of (B, C, H, W), which has one more of each at most.

    A size that a graph leaves open is taken by index: whether a slice is the whole would be a branch of the graph.
    """
    height, width = size
    if known(height, width, *x.shape[-2:]):
        return x if (height, width) == x.shape[-2:] else x[..., :height, :width]
    rows, columns = (torch.arange(side, device=x.device) for side in size)
    return x.index_select(2, rows).index_select(3, columns)
