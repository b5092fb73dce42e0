"""Blocks declared as data, and the stages that run them.

A block is a tuple of parts. A `Branch` is a residual branch, whose members run in order; a `Plain` part has no
shortcut. `MIXER` stands for the token mixer of the stage, so that any mixer fits any block:

    (Branch("mix", {"norm": LayerNorm2d, "mixer": MIXER}), Branch("ffn", {"norm": LayerNorm2d, "mlp": mlp()}))
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from timm.models import checkpoint, checkpoint_seq
from torch import Tensor, nn

from .geometry import Size, from_windows, to_windows
from .mixers import MixerFactory
from .mixers.forward_cross import cross_embedding
from .residual import Residual
from .tokens import TokenBlock, TokenBranch, unpack_tokens

Factory = Callable[[int], nn.Module]  # channels -> module
MAX_CROSS_SOURCES = 12  # FcaFormer: a block looks at the tokens of at most this many earlier blocks


@dataclass(frozen=True)
class MixerSlot:
    """Where the token mixer of the stage goes.

    Attributes:
        foreign_norm: norm put before a mixer that is not the family's own, in families whose own mixers normalise
            inside themselves.
    """

    foreign_norm: Factory | None = None


MIXER = MixerSlot()


@dataclass(frozen=True)
class Branch:
    """A residual branch: ``shortcut(x) + drop_path(members in order)``."""

    name: str
    members: Mapping[str, Factory | MixerSlot]
    shortcut: Factory | None = None

    @property
    def mixes(self) -> bool:
        return any(isinstance(m, MixerSlot) for m in self.members.values())


@dataclass(frozen=True)
class Plain:
    """A part of a block without a shortcut."""

    name: str
    factory: Factory
    mixes = False


Parts = Sequence[Branch | Plain]


@dataclass(frozen=True)
class Alternate:
    """Blocks that take turns: even ones are made of ``even``, odd ones of ``odd``."""

    even: Parts
    odd: Parts


def parts_of(block: Parts | Alternate, index: int) -> Parts:
    """What block ``index`` of a stage is made of."""
    if isinstance(block, Alternate):
        return block.odd if index % 2 else block.even
    return block


@dataclass(frozen=True)
class BlockSite:
    """Where in the backbone a block is built.

    Attributes:
        dim: channels.
        grid: (h, w) of the map at the model's ``img_size``.
        index: position of the block in its stage.
        depth: number of blocks in the stage.
        drop_path: drop probability of the block's branches.
        prefix: class tokens that are packed in front of the map (see `mixzoo.blocks.tokens`).
    """

    dim: int
    grid: Size
    index: int
    depth: int
    drop_path: float = 0.0
    prefix: int = 0


@dataclass(frozen=True)
class MixerChoice:
    """The token mixer of a stage: its factory (None leaves mixing branches out), and whether the family chose it."""

    factory: MixerFactory | None
    foreign: bool = False

    @property
    def crosses(self) -> bool:
        return bool(getattr(self.factory, "crosses", False))

    @property
    def per_block(self) -> bool:
        """Whether the factory wants to know which block of the stage it builds for."""
        return bool(getattr(self.factory, "per_block", False))


def build_block(parts: Parts, mixer: MixerChoice, site: BlockSite) -> nn.Sequential:
    """The block that ``parts`` declare, with ``mixer`` in its slot."""
    kept = [p for p in parts if not p.mixes or mixer.factory is not None]
    modules = ((p.name, _build_part(p, mixer, site)) for p in kept)
    kind = CrossBlock if mixer.crosses else (TokenBlock if site.prefix else nn.Sequential)
    return kind(OrderedDict(modules))


def _build_part(part: Branch | Plain, mixer: MixerChoice, site: BlockSite) -> nn.Module:
    if isinstance(part, Plain):
        return part.factory(site.dim)
    members: OrderedDict[str, nn.Module] = OrderedDict()
    for name, member in part.members.items():
        if not isinstance(member, MixerSlot):
            members[name] = member(site.dim)
            continue
        if mixer.foreign and member.foreign_norm is not None:
            members["norm"] = member.foreign_norm(site.dim)
        members[name] = _build_mixer(mixer, site)
    shortcut = part.shortcut(site.dim) if part.shortcut else None
    if part.mixes and mixer.crosses:
        last = site.index == site.depth - 1
        return CrossBranch(members, site, shortcut, None if last else cross_embedding(site.dim))
    if part.mixes and site.prefix:
        return TokenBranch(members, site.drop_path, shortcut)
    return Residual(nn.Sequential(members), site.drop_path, shortcut)


def _build_mixer(mixer: MixerChoice, site: BlockSite) -> nn.Module:
    assert mixer.factory is not None
    extra = {"num_sources": min(site.index, MAX_CROSS_SOURCES)} if mixer.crosses else {}
    if mixer.per_block:
        extra["index"] = site.index
    if site.prefix:
        extra["prefix"] = site.prefix
    return mixer.factory(site.dim, site.grid, **extra)


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


class CrossBranch(Residual):
    """The mixing branch of a stage that hands tokens forward.

    ``forward(x, maps)``: runs the members (the mixer also gets ``maps``) and returns the sum with the shortcut, and the
    cross-token map that it hands to later blocks (None in the last block).
    """

    def __init__(
        self, members: OrderedDict[str, nn.Module], site: BlockSite, shortcut: nn.Module | None, embed: nn.Module | None
    ) -> None:
        super().__init__(nn.Sequential(members), site.drop_path, shortcut)
        self.embed = embed

    def forward(self, x: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        out = x
        for member in self.fn if isinstance(self.fn, nn.Sequential) else (self.fn,):  # folding may leave one alone
            out = member(out, maps) if getattr(member, "crosses", False) else member(out)
        x = self.shortcut(x) + self.drop_path(out)
        return x, None if self.embed is None else self.embed(x)

    def folded(self) -> nn.Module:
        return self


class CrossBlock(nn.Sequential):
    """A block with a `CrossBranch`: ``forward(x, maps)`` returns the map and the cross tokens, or None."""

    def forward(self, x: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        tokens = None
        for part in self:
            if isinstance(part, CrossBranch):
                x, tokens = part(x, maps)
            else:
                x = part(x)
        return x, tokens


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
