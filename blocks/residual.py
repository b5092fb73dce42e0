"""The residual branch, from which every block is made."""

from __future__ import annotations

import torch
from timm.layers import DropPath, LayerScale2d
from torch import Tensor, nn


class Residual(nn.Module):
    """``shortcut(x) + drop_path(fn(x))``: (B, C, H, W) -> (B, C, H, W).

    Args:
        fn: the branch.
        drop_path: probability of dropping the branch for a sample in training (arXiv:1603.09382).
        shortcut: what the input goes through; the identity by default.
    """

    def __init__(self, fn: nn.Module, drop_path: float = 0.0, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.fn = fn
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.drop_path(self.fn(x))

    def folded(self) -> nn.Module:
        """The branch without drop path; a lone convolution takes the shortcut into its kernel."""
        convs = list(self.fn) if isinstance(self.fn, nn.Sequential) else [self.fn]
        if len(convs) == 1 and _keeps_map(convs[0]):
            return _with_identity(convs[0], self.shortcut)
        if isinstance(self.shortcut, LayerScale2d):
            return ScaledResidual(self.fn, self.shortcut)
        return FoldedResidual(self.fn)


class FoldedResidual(nn.Module):
    """``x + fn(x)``, what is left of a `Residual` at inference."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class ScaledResidual(FoldedResidual):
    """``scale * x + fn(x)`` in one pass over the map."""

    def __init__(self, fn: nn.Module, shortcut: LayerScale2d) -> None:
        super().__init__(fn)
        self.scale = nn.Parameter(shortcut.gamma.detach().reshape(1, -1, 1, 1).clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.fn(x), x, self.scale)


def _keeps_map(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution whose output has the channels and size of its input."""
    if not isinstance(module, nn.Conv2d) or module.in_channels != module.out_channels:
        return False
    same = all(
        k % 2 == 1 and p == d * (k // 2)
        for k, p, d in zip(module.kernel_size, module.padding, module.dilation, strict=True)
    )
    return same and module.stride == (1, 1) and module.padding_mode == "zeros"


def _with_identity(conv: nn.Module, shortcut: nn.Module) -> nn.Module:
    """``conv`` with the shortcut added to the centre of its kernel, in place (RepVGG, arXiv:2101.03697)."""
    assert isinstance(conv, nn.Conv2d)
    scale = shortcut.gamma.detach() if isinstance(shortcut, LayerScale2d) else torch.ones(conv.out_channels)
    width = conv.in_channels // conv.groups
    rows = torch.arange(conv.out_channels)
    with torch.no_grad():
        conv.weight[rows, rows % width, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] += scale.to(conv.weight)
    return conv
