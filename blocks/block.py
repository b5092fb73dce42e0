"""Blocks declared as data, and how they are built.

A block is a tuple of parts. A `Branch` is a residual branch, whose members run in order; a `Plain` part has no
shortcut. `MIXER` stands for the token mixer of the stage, so that any mixer fits any block:

    (Branch("mix", {"norm": LayerNorm2d, "mixer": MIXER}), Branch("ffn", {"norm": LayerNorm2d, "mlp": mlp()}))
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .geometry import Size
from .mixers import MixerFactory
from .mixers.forward_cross import cross_embedding
from .residual import Residual
from .tokens import TokenBlock, TokenBranch

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
