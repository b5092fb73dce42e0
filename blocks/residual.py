"""The residual branch, from which every block is made."""

from __future__ import annotations

import torch
from timm.layers import DropPath, LayerScale2d
from torch import Tensor, nn

from .affine import affine_after, affine_before, batch_norm_affine, takes_input_affine


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
            return ScaledResidual(self.fn, self.shortcut.gamma)
        return _without_inner_shortcut(convs) or FoldedResidual(self.fn)


class FoldedResidual(nn.Module):
    """``x + fn(x)``, what is left of a `Residual` at inference."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class ScaledResidual(FoldedResidual):
    """``scale * x + fn(x)`` in one pass over the map."""

    def __init__(self, fn: nn.Module, scale: Tensor) -> None:
        super().__init__(fn)
        self.scale = nn.Parameter(scale.detach().reshape(1, -1, 1, 1).clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.fn(x), x, self.scale)


def _without_inner_shortcut(branch: list[nn.Module]) -> nn.Module | None:
    """``x + s * (n + f(n))`` with n = a * x + c, as VAN has it, in one scaled sum: ``(1 + s * a) * x + f'(x)``.

    ``branch`` is [batch norm, `FoldedResidual` of a chain between 1x1 convolutions, layer scale]; None for any other.
    """
    if len(branch) != 3 or not isinstance(branch[0], nn.BatchNorm2d) or type(branch[1]) is not FoldedResidual:
        return None
    fn, last = branch[1].fn, branch[2]
    if not isinstance(fn, nn.Sequential) or not isinstance(last, LayerScale2d):
        return None
    chain = list(fn)
    if not takes_input_affine(chain[0]) or not takes_input_affine(chain[-1]):
        return None
    a, c = batch_norm_affine(branch[0])
    affine_before(chain[0], a, c)
    affine_after(chain[-1], last.gamma, last.gamma * c)
    return ScaledResidual(fn, 1 + last.gamma * a)


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
