"""Layers in two forms: as they train, with batch norms and branches, and merged, as authors publish them.

`mixzoo.blocks.deploy` makes the second of the first; a model that is built of the second takes tensors that were merged
elsewhere. Source: structural re-parameterisation, arXiv:2101.03697; the forms of FFNet, arXiv:2406.02021.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .conv import BranchedConv, conv_norm
from .residual import Residual

SMALL = 3  # px; kernels of this side have no branches


@dataclass(frozen=True)
class Layers:
    """Factories of the layers that differ between the forms.

    Attributes:
        conv: (dim, out_dim, kernel_size, stride, groups) -> a convolution that a batch norm follows in training.
        large: the same for a kernel that has a small one beside it.
        point: (dim) -> a pre-normalised 1x1 convolution with a shortcut.
    """

    conv: Callable[..., nn.Module]
    large: Callable[..., nn.Module]
    point: Callable[[int], nn.Module]


def _point(dim: int) -> nn.Module:
    conv = nn.Conv2d(dim, dim, 1, bias=False)
    return Residual(nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(dim), conv=conv)))


def _biased(dim: int, out_dim: int, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Conv2d(dim, out_dim, kernel_size, stride, kernel_size // 2, groups=groups)


def _branched(dim: int, out_dim: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return BranchedConv(dim, out_dim, kernel_size, SMALL, stride, groups)


TRAINED = Layers(conv_norm, _branched, _point)
MERGED = Layers(_biased, _biased, lambda dim: _biased(dim, dim))
