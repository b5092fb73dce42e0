"""MIL operators with a state that goes from one position to the next; see `coreml_ops`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .coreml_arguments import Arguments, Operator

_ACTIVATIONS = {"recurrent_activation": "sigmoid", "cell_activation": "tanh", "activation": "tanh"}
_OTHERS = ("peephole", "peephole_back", "clip")
_DIRECTIONS = {"forward": ("",), "reverse": ("",), "bidirectional": ("", "_back")}  # what their weights end in


def _lstm(a: Arguments) -> Sequence[Tensor]:
    """(S, B, I) -> states (S, B, H) or the last one (1, B, H), and both last states (B, H); 2 H of two directions."""
    for name, usual in _ACTIVATIONS.items():
        if (given := a.plain(name, usual)) != usual:
            raise NotImplementedError(f"{name} {given}")
    if unknown := [name for name in _OTHERS if a.has(name)]:
        raise NotImplementedError(unknown[0])
    direction = a.plain("direction", "forward")
    ends = _DIRECTIONS[direction]
    starts = zip(a["initial_h"].chunk(len(ends), -1), a["initial_c"].chunk(len(ends), -1), strict=True)
    found = []
    for end, (h, c) in zip(ends, starts, strict=True):
        backwards = direction == "reverse" or bool(end)
        x = a["x"].flip(0) if backwards else a["x"]
        states, h, c = _along(F.linear(x, a[f"weight_ih{end}"], a.optional(f"bias{end}")), h, c, a[f"weight_hh{end}"])
        found.append((states.flip(0) if backwards else states, h, c))
    states, h, c = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    return states if a.plain("output_sequence", False) else h[None], h, c


def _along(inputs: Tensor, h: Tensor, c: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every state of ``inputs`` to gates (S, B, 4 H), and the last ones; gates are input, forget, output and cell."""
    states = []
    for step in inputs:
        i, f, o, z = F.linear(h, weight).add(step).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * z.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states), h, c


RECURRENT: dict[str, Operator] = {"lstm": _lstm}
