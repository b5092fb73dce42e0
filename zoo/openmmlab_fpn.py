"""The pyramid that EfficientViT (arXiv:2305.07027) and SHViT (arXiv:2401.16456) detect with.

Their maps begin at stride 16. Each finer level is the next coarser one, after the top-down sums, through a 2x2
transposed convolution, and has a 3x3 convolution of its own. Names of tensors are those of the authors' detectors.
"""

from __future__ import annotations

from typing import Any, cast

from mmdet.models.necks import FPN
from torch import Tensor, nn

from .errors import MixzooError


class FinerFPN(FPN):
    """Maps (B, in_channels[i], H_i, W_i) -> ``num_outs`` maps of ``out_channels``, the finest first.

    Args:
        in_channels: of the backbone's maps.
        out_channels: of the results.
        num_outs: number of results, ``num_finer`` among them.
        num_finer: levels before the backbone's finest, each of half the stride.
        options: those of mmdetection's FPN, but for convolutions, norms and activations of another kind.

    Raises:
        MixzooError: ``num_finer`` is below 1, or an option that finer levels do not have.
    """

    def __init__(
        self, in_channels: list[int], out_channels: int, num_outs: int, num_finer: int = 1, **options: Any
    ) -> None:
        if num_finer < 1 or {"conv_cfg", "norm_cfg", "act_cfg"} & {k for k, v in options.items() if v is not None}:
            raise MixzooError("mixzoo.FPN is for num_finer >= 1 and plain convolutions: otherwise take type='FPN'.")
        super().__init__(in_channels, out_channels, num_outs - num_finer, **options)
        self.extra_trans_convs = nn.ModuleList(
            _Named(nn.ConvTranspose2d(out_channels, out_channels, 2, 2)) for _ in range(num_finer)
        )
        self.extra_fpn_convs = nn.ModuleList(
            _Named(nn.Conv2d(out_channels, out_channels, 3, padding=1)) for _ in range(num_finer)
        )

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        sums: list[Tensor] = []  # the finest level after the top-down sums, which the parent does not return
        hook = self.fpn_convs[0].register_forward_pre_hook(lambda _, args: sums.append(args[0]))
        try:
            levels = super().forward(inputs)
        finally:
            hook.remove()
        finer: list[Tensor] = []
        x = sums[0]
        for step in self.extra_trans_convs:
            x = step(x)
            finer.insert(0, x)
        return (*(step(x) for step, x in zip(self.extra_fpn_convs, finer, strict=True)), *levels)


class _Named(nn.Module):
    """A convolution under the name that it has in the authors' detectors, started like mmdetection's in a pyramid."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv = conv
        nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(cast(Tensor, conv.bias))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))
