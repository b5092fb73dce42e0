"""`check`: what of a model a target does not take, before any converter is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from ...blocks.deploy import fold
from ...zoo.errors import UnknownNameError
from ..capture import Capture, quiet
from ..errors import ExportError
from ..prepare import TIMM_PREFIX, build, input_size
from ..shapes import Axes, Size, as_axes, as_sizes
from ..swaps import swap as replace_parts
from . import notes
from .findings import OUTSIDE, REFUSED, Finding, Verdict, merged
from .graph import Call, calls, raised_in
from .rules import listed, outside, refusal, refused, unlisted
from .targets import RULES, Rules

_CAPTURE = "torch.export"


def check(
    model: nn.Module | str,
    target: str | Sequence[str] = "all",
    sizes: str | Sequence[int | Size] | None = None,
    dynamic: str | Sequence[str] = (),
    model_options: Mapping[str, Any] | None = None,
    fast: bool = True,
    swap: Mapping[str, str] | str | None = None,
) -> list[Verdict]:
    """Tell which operators of a model's deploy form a target does not take, and where they are.

    It needs neither converters nor weights: the deploy form is captured by torch.export, and its operators are compared
    with tables of what each target takes.

    Args:
        model: a module, or a name: the zoo's, or else timm's ("timm:NAME" is always timm's). It is not changed.
        target: names of targets, as "coreml,qnn" or a list; "all" for all of them.
        sizes: input sizes, as "224,192x256", sides or (height, width) pairs; the model's own by default.
        dynamic: axes that stay open, of "batch", "height" and "width", for those targets that can leave them open.
        model_options: for building a model by name, such as {"num_classes": 10}.
        fast: tell too what runs outside of the accelerated part of a target, which takes longer to find out.
        swap: activations and norms to replace first, as "gelu=hardswish", see `mixzoo.swap`.

    Returns:
        A verdict per target.

    Raises:
        UnknownNameError, UnknownModelError: a target, axis or model that does not exist.
        ShapeError: sizes that cannot be read.
    """
    chosen, axes = _chosen(target), as_axes(dynamic)
    wanted = None if sizes is None else as_sizes(sizes)
    module = (build(model, options=model_options) if isinstance(model, str) else model).eval()
    module = replace_parts(module, swap) if swap else module
    channels, *native = input_size(module, dict(getattr(module, "pretrained_cfg", None) or {}))
    name = model.removeprefix(TIMM_PREFIX) if isinstance(model, str) else type(module).__name__
    found: dict[str, list[Finding]] = {rules.name: [] for rules in chosen}
    for height, width in wanted or (tuple(native),):
        graphs: dict[Axes, Graph] = {}
        for rules in chosen:
            left_open = _open(rules, axes)
            if left_open not in graphs:  # each with an example of its own, on which torch.export notes its open axes
                example = torch.zeros(2 if "batch" in left_open else 1, channels, height, width)
                graphs[left_open] = Graph(module, Capture(fold(module), example, left_open))
            found[rules.name] += graphs[left_open].findings(rules, fast)
    return [Verdict(name, rules.name, merged(found[rules.name])) for rules in chosen]


def explain(capture: Capture, original: nn.Module, target: str) -> str | None:
    """Why a target refuses what was captured: the first operator, its module and the remedy; None if nothing is known.

    Args:
        capture: of the original's deploy form.
        original: has the names of the modules.
        target: its name.
    """
    if target not in RULES:
        return None
    try:
        found = merged(Graph(original, capture).findings(RULES[target], fast=False))
    except Exception:  # what is wrong with the model was told already
        return None
    return next((finding.sentence for finding in found if finding.severity == REFUSED), None)


class Graph:
    """A captured model, and its operators.

    Args:
        original: has the names of the modules.
        capture: of its deploy form.
    """

    def __init__(self, original: nn.Module, capture: Capture) -> None:
        self.original, self.capture = original, capture
        self._parts: dict[Callable[..., torch.export.ExportedProgram], list[Call]] = {}

    @cached_property
    def calls(self) -> list[Call]:
        """As they were captured."""
        return list(calls(self.capture.program, self.original))

    def parts(self, rules: Rules) -> list[Call]:
        """Those that they come apart into for a target."""
        if rules.in_parts not in self._parts:
            with quiet():
                apart = rules.in_parts(self.capture.program)
            self._parts[rules.in_parts] = list(calls(apart, self.original))
        return self._parts[rules.in_parts]

    def findings(self, rules: Rules, fast: bool) -> list[Finding]:
        """What of it a target does not take, and with ``fast`` what runs outside of its accelerated part."""
        try:
            whole = self.calls
        except ExportError as error:
            return [self._not_captured(error)]
        against = [(call, refusal(call, rules)) for call in whole]
        found = [refused(call, note) for call, note in against if note]
        unknown = [call for call, note in against if not note and not listed(call, rules)]
        found += self._unknown(unknown, rules) if unknown else []
        if fast and (rules.accelerated or rules.outside):
            found += [f for call in (self.parts(rules) if rules.accelerated else whole) if (f := outside(call, rules))]
        return found

    def _unknown(self, unknown: Iterable[Call], rules: Rules) -> list[Finding]:
        """Those whose parts a target does not take either."""
        if not rules.takes_parts:
            return [unlisted(call, rules) for call in unknown]
        lacking = {}
        for part in self.parts(rules):
            if refusal(part, rules) or not listed(part, rules):
                lacking.update(dict.fromkeys(_origins(part.node), part.operator))
        return [unlisted(call, rules, lacking[call.node.name]) for call in unknown if call.node.name in lacking]

    def _not_captured(self, error: ExportError) -> Finding:
        """That torch.export cannot capture it: for any target where every axis is fixed, else with these open."""
        path = raised_in(error, self.capture.module)
        kind = type(self.capture.module.get_submodule(path)).__name__
        shape = tuple(self.capture.example.shape)
        reason = str(error).partition(": ")[2]
        note = notes.not_open(self.capture.axes, reason) if self.capture.axes else notes.not_captured(reason)
        return Finding(_CAPTURE, 1, path, kind, shape, OUTSIDE if self.capture.axes else REFUSED, *note)


def _origins(node: Node) -> set[str]:
    """Names of the node in a graph from before it was taken apart."""
    names, waiting = {node.name}, list(node.meta.get("from_node") or ())
    while waiting:
        source = waiting.pop()
        names.add(source.name)
        waiting += source.from_node or ()
    return names


def _chosen(names: str | Sequence[str]) -> list[Rules]:
    asked = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    if "all" in asked:
        return list(RULES.values())
    for name in asked:
        if name not in RULES:
            raise UnknownNameError("target", name, [*RULES, "all"], f"Targets: {', '.join(RULES)}; all means all.")
    return [RULES[name] for name in dict.fromkeys(asked)]


def _open(rules: Rules, asked: Axes) -> Axes:
    """The widest set of axes that a target can leave open, among those that were asked for."""
    from ..target import TARGETS

    sets = TARGETS[rules.name].axes if rules.name in TARGETS else ((),)
    return next(axes for axes in sets if set(axes) <= set(asked))
