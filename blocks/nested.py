"""Models whose FFNs have nested widths (MatFormer, arXiv:2310.07707): which width where, and the narrower models.

A width is the share of an FFN's hidden channels that are kept, the first of them (`mixzoo.blocks.ffn`). A model takes
one for all its blocks, one per stage, or one per block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from .ffn import ffns, hidden_ends, hidden_layers, narrow
from .stage import Stage

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Widths = float | Sequence[float]


def spread(widths: Widths, depths: Sequence[int]) -> list[tuple[float, ...]]:
    """The width of each block, stage by stage.

    Args:
        widths: one for all, one per stage, or one per block.
        depths: blocks of each stage.

    Raises:
        ValueError: another count, or a width outside of (0, 1].
    """
    several = isinstance(widths, Sequence) and not isinstance(widths, str)
    given = [float(w) for w in (widths if several else (widths,))]  # type: ignore[union-attr, arg-type]
    if wrong := [w for w in given if not 0 < w <= 1]:
        raise ValueError(f"{wrong[0]:g} is no width: widths are shares of the hidden channels, above 0 and at most 1")
    if len(given) == 1:
        given *= sum(depths)
    elif len(given) == len(depths):
        given = [width for width, depth in zip(given, depths, strict=True) for _ in range(depth)]
    if len(given) != sum(depths):
        stages = f", {len(depths)} (one per stage)" if len(depths) > 1 else ""
        raise ValueError(f"there are {len(given)} widths: give 1{stages} or {sum(depths)} (one per block)")
    rest = iter(given)
    return [tuple(next(rest) for _ in range(depth)) for depth in depths]


def nested_blocks(model: nn.Module) -> list[list[dict[str, nn.Module]]]:
    """The FFNs by their names in the model: of each block of each stage.

    Of a model that is not the zoo's, every FFN counts as a block, and all of them as one stage.
    """
    stages = [(name, module) for name, module in model.named_modules() if isinstance(module, Stage)]
    if not stages:
        return [[{name: ffn} for name, ffn in ffns(model).items()]]
    return [
        [
            {f"{name}.blocks.{index}.{inner}".rstrip("."): ffn for inner, ffn in ffns(block).items()}
            for index, block in enumerate(stage.blocks)
        ]
        for name, stage in stages
    ]


def nested_ffns(model: nn.Module) -> dict[str, nn.Module]:
    """The FFNs of all blocks, by their names in the model.

    Raises:
        ValueError: there is none, or one of them cannot be nested.
    """
    found = {name: ffn for stage in nested_blocks(model) for block in stage for name, ffn in block.items()}
    if not found:
        raise ValueError("its blocks have no FFN that is known to be nestable")
    for name, ffn in found.items():
        try:
            hidden_layers(ffn)
        except ValueError as error:
            raise ValueError(f"in its FFN {name}, {error}") from None
    return found


def narrow_model(model: ModuleT, widths: Widths) -> ModuleT:
    """Leave of every FFN the hidden channels that its width stands for, in place; gives the model.

    Args:
        model: the zoo's or timm's, in training form.
        widths: one for all, one per stage, or one per block; see `nested_blocks`.

    Raises:
        ValueError: no FFN can be nested, or the widths do not fit the blocks.
    """
    nested_ffns(model)
    blocks = nested_blocks(model)
    for stage, shares in zip(blocks, spread(widths, [len(stage) for stage in blocks]), strict=True):
        for block, width in zip(stage, shares, strict=True):
            for ffn in block.values():
                narrow(ffn, width)
    return model


def built_narrow(block: ModuleT, width: float) -> ModuleT:
    """A block that was just built, with narrower FFNs, whose initial weights are drawn for the width; in place."""
    for ffn in ffns(block).values():
        narrow(ffn, width)
        _, last = hidden_ends(ffn) or ("", "")
        ffn.get_submodule(last).reset_parameters()  # type: ignore[operator]
    return block
