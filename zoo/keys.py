"""How tensors are called in other checkpoints, as rewriting rules that work in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_PART = "::"  # between the name of a tensor and the number of its part
Rewrite = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Rule:
    """Every match of ``pattern`` in our key becomes ``replacement``; rules run in order on the whole key."""

    pattern: str
    replacement: Rewrite


@dataclass(frozen=True)
class View:
    """Tensors whose foreign key matches ``pattern`` have the shape ``shape(ours)`` there, with equal element order.

    With ``transposed``, the last two axes of that shape come in the other order there: a position table (1, C, h, w)
    is (1, h * w, C) for ``View(pattern, flat_grid, transposed=True)``.
    """

    pattern: str
    shape: Callable[[Tensor], Sequence[int]]
    transposed: bool = False


@dataclass(frozen=True)
class Layout:
    """Tensors whose foreign key matches ``pattern`` have another order of axes there: functions both ways."""

    pattern: str
    to_foreign: Callable[[Tensor], Tensor]
    from_foreign: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class KeyMap:
    """Our keys to those of another code base.

    A foreign key that ends in ``::0``, ``::1``, ... is that part of the tensor named before it, along its second axis:
    a class token's position and the table of the map's, which are one ``pos_embed`` (1, 1 + N, C) there.

    Attributes:
        rules: rewriting of the key, in order.
        views: shapes that differ there; the first match counts.
        dropped: foreign keys that hold computed constants, never learned values, as patterns.
    """

    rules: tuple[Rule, ...] = ()
    views: tuple[View | Layout, ...] = ()
    dropped: tuple[str, ...] = field(default_factory=tuple)

    def foreign(self, key: str) -> str:
        """The foreign name of our ``key``."""
        for rule in self.rules:
            key = re.sub(rule.pattern, rule.replacement, key)
        return key

    def foreign_tensor(self, key: str) -> str:
        """The foreign name of the tensor that our ``key`` is, or is part of."""
        return self.foreign(key).partition(_PART)[0]

    def ignores(self, foreign_key: str) -> bool:
        """Whether a foreign key holds a computed constant."""
        return any(re.search(pattern, foreign_key) for pattern in self.dropped)

    def reshapes(self, foreign_key: str) -> bool:
        """Whether a foreign key's tensor has another shape than ours."""
        return isinstance(self._view(foreign_key), View)

    def to_foreign(self, foreign_key: str, tensor: Tensor) -> Tensor:
        """Our ``tensor`` in the foreign shape."""
        view = self._view(foreign_key)
        if view is None:
            return tensor
        if isinstance(view, Layout):
            return view.to_foreign(tensor).contiguous()
        tensor = tensor.reshape(tuple(view.shape(tensor)))
        return tensor.transpose(-1, -2).contiguous() if view.transposed else tensor

    def from_foreign(self, foreign_key: str, tensor: Tensor) -> Tensor:
        """A foreign ``tensor`` in our element order, in a shape of the foreign kind."""
        view = self._view(foreign_key)
        if isinstance(view, Layout):
            return view.from_foreign(tensor)
        return tensor.transpose(-1, -2) if view is not None and view.transposed and tensor.ndim > 1 else tensor

    def _view(self, foreign_key: str) -> View | Layout | None:
        return next((view for view in self.views if re.search(view.pattern, foreign_key)), None)


def join_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` by foreign key, with the parts of a tensor put together in their order."""
    joined = {name: tensor for name, tensor in tensors.items() if _PART not in name}
    for whole in dict.fromkeys(name.partition(_PART)[0] for name in tensors if _PART in name):
        parts = sorted(name for name in tensors if name.startswith(whole + _PART))
        joined[whole] = torch.cat([tensors[name] for name in parts], dim=1)
    return joined


def split_parts(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` of a checkpoint with those taken apart of which ``own``, by foreign key, has parts.

    The last part gets what the others leave: it may belong to another grid.
    """
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = sorted(key for key in own if key.startswith(name + _PART))
        counts = [own[key].numel() // tensor.shape[-1] for key in parts[:-1]] if parts and tensor.ndim > 1 else []
        if counts and tensor.shape[1] > sum(counts):
            pieces = tensor.split([*counts, tensor.shape[1] - sum(counts)], dim=1)
            split |= dict(zip(parts, pieces, strict=True))
        else:
            split[name] = tensor
    return split


def linear_shape(tensor: Tensor) -> Sequence[int]:
    """(O, I) of a 1x1 convolution's (O, I, 1, 1)."""
    return tensor.shape[:2]


def flat_grid(tensor: Tensor) -> Sequence[int]:
    """(..., h * w) of a position table's (..., h, w)."""
    return (*tensor.shape[:-2], tensor.shape[-2] * tensor.shape[-1])


def rename(*pairs: tuple[str, Rewrite]) -> tuple[Rule, ...]:
    """Rules from (pattern, replacement) pairs."""
    return tuple(Rule(pattern, replacement) for pattern, replacement in pairs)
