"""The stages that run blocks: plain, fused with their input, with class tokens, or with tokens handed forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from timm.models import checkpoint, checkpoint_seq
from torch import Tensor, nn

from .block import MAX_CROSS_SOURCES
from .geometry import from_windows, to_windows
from .tokens import unpack_tokens


class Stage(nn.Module):
    """Downsampling, blocks, norm: (B, C, H, W) -> (B, C', H', W').

    Args:
        downsample: what runs before the blocks.
        blocks: the blocks, in order.
        norm: what runs after them.
        position: position embedding, added before the blocks.
    """

    def __init__(
        self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module, position: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.position = position or nn.Identity()
        self.blocks: nn.Sequential | nn.ModuleList = nn.Sequential(*blocks)
        self.norm = norm
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.run_blocks(self.position(self.downsample(x))))

    def with_maps(self, x: Tensor, count: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """What `forward` gives, and the map (B, C', H', W') after every block, the last one as it leaves the stage.

        With ``count`` only that many blocks run, and the last map stands for the result where there are more.
        """
        maps: list[Tensor] = []
        x = self.run_blocks(self.position(self.downsample(x)), maps, count)
        if len(maps) < len(self.blocks):
            return x, maps
        x = self.norm(x)
        return x, [*maps[:-1], x]

    def run_blocks(self, x: Tensor, maps: list[Tensor] | None = None, count: int | None = None) -> Tensor:
        """The map after all blocks or the first ``count``; to ``maps`` the map after each of them is appended."""
        if maps is None and count is None:
            return checkpoint_seq(self.blocks, x) if self.grad_checkpointing and self.training else self.blocks(x)
        for block in list(self.blocks)[:count]:
            x = checkpoint(block, x) if self.grad_checkpointing and self.training else block(x)
            if maps is not None:
                maps.append(x)
        return x


class FusionStage(Stage):
    """A stage whose result is ``fusion(cat(downsampled input, norm(blocks(downsampled input))))`` (arXiv:2110.02178).

    Args:
        downsample, blocks, norm, position: as in `Stage`.
        fusion: makes the module that takes both maps, twice the channels, to one.
    """

    def __init__(
        self,
        downsample: nn.Module,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        position: nn.Module | None = None,
        *,
        fusion: Callable[[], nn.Module],
    ) -> None:
        super().__init__(downsample, blocks, norm, position)
        self.fusion = fusion()

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        return self.fusion(torch.cat((x, self.norm(self.run_blocks(self.position(x)))), dim=1))

    def with_maps(self, x: Tensor, count: int | None = None) -> tuple[Tensor, list[Tensor]]:
        maps: list[Tensor] = []
        x = self.downsample(x)
        out = self.run_blocks(self.position(x), maps, count)
        if len(maps) < len(self.blocks):
            return out, maps
        out = self.fusion(torch.cat((x, self.norm(out)), dim=1))
        return out, [*maps[:-1], out]


@register_notrace_module
class TokenStage(Stage):
    """A stage with class tokens: (B, C, H, W) -> packed (B, C', prefix + N, 1); ``position`` packs (`ClassToken`)."""

    def __init__(
        self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module, position: nn.Module | None = None
    ) -> None:
        super().__init__(downsample, blocks, norm, position)
        self.blocks = nn.ModuleList(blocks)  # no chain: the size passes beside the map

    def forward(self, x: Tensor) -> Tensor:
        return self._states(self.downsample(x))[-1]

    def with_maps(self, x: Tensor, count: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """The packed result, and the map (B, C', H', W') after every block; see `Stage.with_maps`."""
        x = self.downsample(x)
        size = (x.shape[-2], x.shape[-1])
        states = self._states(x, count)
        maps = [unpack_tokens(state, size)[1] for state in states]
        return (states[-1] if len(states) == len(self.blocks) else maps[-1]), maps

    def _states(self, x: Tensor, count: int | None = None) -> list[Tensor]:
        """The packed map after every block, the last one as it leaves the stage."""
        size = (x.shape[-2], x.shape[-1])
        x = self.position(x)
        states = []
        for block in list(self.blocks)[:count]:
            x = checkpoint(block, x, size) if self.grad_checkpointing and self.training else block(x, size)
            states.append(x)
        return states if len(states) < len(self.blocks) else [*states[:-1], self.norm(x)]


class CrossStage(Stage):
    """A stage whose blocks see the cross tokens of up to `MAX_CROSS_SOURCES` blocks before them."""

    def __init__(
        self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module, position: nn.Module | None = None
    ) -> None:
        super().__init__(downsample, blocks, norm, position)
        self.blocks = nn.ModuleList(blocks)  # no chain: tokens pass beside the map

    def run_block(self, block: nn.Module, x: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The map after ``block`` and the cross tokens that it hands on, recomputed in the backward pass if asked."""
        return checkpoint(block, x, sources) if self.grad_checkpointing and self.training else block(x, sources)

    def run_blocks(self, x: Tensor, maps: list[Tensor] | None = None, count: int | None = None) -> Tensor:
        sources: list[Tensor] = []
        for block in list(self.blocks)[:count]:
            x, tokens = self.run_block(block, x, sources[-MAX_CROSS_SOURCES:])
            if tokens is not None:
                sources.append(tokens)
            if maps is not None:
                maps.append(x)
        return x


@register_notrace_module
class WindowedCrossStage(CrossStage):
    """A `CrossStage` in windows: each window is a map of its own, with cross tokens of its own.

    A map that does not divide into windows is zero-padded at the left and top for even blocks and at the right and
    bottom for odd ones, so that the windows move between blocks; the padding takes part, and is cut off after each
    block.

    Args:
        downsample, blocks, norm, position: as in `Stage`.
        window: side of a window.
    """

    def __init__(
        self,
        downsample: nn.Module,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        position: nn.Module | None = None,
        window: int = 7,
    ) -> None:
        super().__init__(downsample, blocks, norm, position)
        self.window = window

    def run_blocks(self, x: Tensor, maps: list[Tensor] | None = None, count: int | None = None) -> Tensor:
        height, width = x.shape[-2:]
        pad_h, pad_w = -height % self.window, -width % self.window
        sources: list[Tensor] = []
        for index, block in enumerate(list(self.blocks)[:count]):
            top, left = (pad_h, pad_w) if index % 2 == 0 else (0, 0)
            padded = F.pad(x, (left, pad_w - left, top, pad_h - top)) if pad_h or pad_w else x
            windows = to_windows(padded, (self.window, self.window))
            out, tokens = self.run_block(block, windows, sources[-MAX_CROSS_SOURCES:])
            out = from_windows(out, (height + pad_h, width + pad_w))
            x = out[:, :, top : top + height, left : left + width]
            if tokens is not None:
                sources.append(tokens)
            if maps is not None:
                maps.append(x)
        return x
