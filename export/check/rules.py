"""How a call of an operator is judged: by the rules that hold for every target, and by the target's own facts."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch.fx import Node

from ..runtimes.rank_blocks import merged, shape_of
from . import notes
from .findings import OUTSIDE, REFUSED, UNTRIED, Finding
from .graph import Call
from .notes import Note
from .targets import Rules, in_table

_RANDOM = frozenset(
    {"rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "multinomial"}
    | {"normal", "uniform", "native_dropout", "rrelu_with_noise"}
)
_DROPOUTS = frozenset(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"))
_MOVES = frozenset(
    {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "t", "mT"}
    | {"clone", "contiguous", "alias"}
)
_CUTS = frozenset(  # what `export.runtimes.ranks` rewrites
    (
        "unbind",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "cat",
        "unfold",
        "expand",
        "amax",
        "mean",
        "sum",
        "linear",
    )
)
_OF_TWO = frozenset(("add", "mul"))
_VIEWS = frozenset(("view", "squeeze", "unsqueeze", "alias", "clone", "detach", "_unsafe_view", "lift_fresh_copy"))


def refusal(call: Call, rules: Rules) -> Note | None:
    """Why a target refuses a call for what it computes; None where nothing is known against it."""
    if call.constant and rules.folds:
        return None
    if call.data_dependent and not rules.data_dependent:
        return notes.DATA_DEPENDENT
    if rules.ranks and call.name == "topk" and _only_indices(call):
        return None
    known = None if _rewritten(call, rules) else rules.refused.get(call.name.rstrip("_"))
    return _training(call) or _types(call, rules) or _rank(call, rules) or known


def listed(call: Call, rules: Rules) -> bool:
    """Whether the target is known to take the operator, as far as its name and arguments tell."""
    return (call.constant and rules.folds) or _rewritten(call, rules) or rules.takes(call.name)


def _rewritten(call: Call, rules: Rules) -> bool:
    """Whether the call picks in one of the ways that are written as comparisons and products for the target."""
    if not rules.picks:
        return False
    if call.name == "topk":
        return call.argument(2, "dim", -1) in (-1, call.rank - 1) and bool(call.argument(3, "largest", True))
    return call.name == "index" and sum(index is not None for index in call.argument(1, "indices")) == 1


def refused(call: Call, note: Note) -> Finding:
    """That a target does not take a call."""
    return _finding(call, REFUSED, note)


def unlisted(call: Call, rules: Rules, part: str | None = None) -> Finding:
    """That a target's table lacks an operator, or one of its parts."""
    if rules.measured:
        return _finding(call, UNTRIED, notes.untried(rules.title))
    if not call.operator.startswith("aten."):
        return _finding(call, REFUSED, notes.CUSTOM)
    return _finding(call, REFUSED, notes.missing(rules.title, rules.source, part))


def outside(call: Call, rules: Rules) -> Finding | None:
    """That a call, of an operator of core ATen where the target has a table of the fast ones, is not taken by them."""
    name = call.name.rstrip("_")
    if call.constant or name in _VIEWS:
        return None
    if note := rules.outside.get(name):
        return _finding(call, OUTSIDE, note)
    if not rules.accelerated or (in_table(rules.accelerated, name) and _in_shape(call)):
        return None
    return _finding(call, OUTSIDE, rules.falls_out)


def _in_shape(call: Call) -> bool:
    """Whether XNNPACK takes the arguments of an operator that it has for some."""
    rank = call.inputs[0].ndim if call.inputs else 0
    if call.name == "_softmax":
        return call.argument(1, "dim") in (-1, rank - 1)
    if call.name == "mean":
        return rank == 4 and sorted(d % rank for d in call.argument(1, "dim", ())) == [2, 3] and call.rank == 4
    return True


def _only_indices(call: Call) -> bool:
    """Whether of values and their indices only the latter are used."""
    return all(user.args[1] == 1 or not user.users for user in call.node.users if user.target is operator.getitem)


def _training(call: Call) -> Note | None:
    name = call.name.rstrip("_")
    if name in _RANDOM or (name in _DROPOUTS and call.argument(2, "train")):
        return notes.RANDOM
    at = {"batch_norm": 5, "_native_batch_norm_legit": 5, "native_batch_norm": 5}.get(name)
    return notes.BATCH_STATISTICS if at and not call.constant and call.argument(at, "training") else None


def _types(call: Call, rules: Rules) -> Note | None:
    kinds = {tensor.dtype for tensor in call.outputs}
    if rules.no_complex and any(kind.is_complex for kind in kinds):
        return notes.COMPLEX
    return notes.DOUBLE if rules.no_double and torch.float64 in kinds else None


def _rank(call: Call, rules: Rules) -> Note | None:
    rank = max(t.ndim - (rules.drops_batch and t.ndim > 0 and t.shape[0] == 1) for t in call.outputs)
    if rules.max_rank is None or rank <= rules.max_rank or (rules.moves_any_rank and _only_moves(call, rules)):
        return None
    return notes.too_many_axes(rank, rules.max_rank, rules.rank_source)


def _only_moves(call: Call, rules: Rules) -> bool:
    """Whether the call, and what uses its output, only move elements, or do what the target may with many axes."""
    return all(_moves(node, rules) for node in (call.node, *_users(call.node)))


def _users(node: Node) -> Iterator[Node]:
    """What uses the output, or one of several."""
    for user in node.users:
        if user.target is operator.getitem:
            yield from _users(user)
        else:
            yield user


def _moves(node: Node, rules: Rules) -> bool:
    """Whether a node is one of those; slices with steps are not, and sums only if axes can be joined."""
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "").rstrip("_")
    if name in _MOVES or not rules.cuts_any_rank:
        return name in _MOVES
    if name in _OF_TWO:
        return _joined_rank(node) <= (rules.max_rank or 0)
    return name in _CUTS and not (name == "slice" and len(node.args) > 4 and node.args[4] != 1)


def _joined_rank(node: Node) -> int:
    """How many axes a sum or product of two tensors has once those are joined that can be."""
    rank = node.meta["val"].ndim
    shapes = [shape_of(arg.meta["val"] if isinstance(arg, Node) else arg, rank) for arg in node.args[:2]]
    return len(merged(shapes)[0])


def _finding(call: Call, severity: str, note: Note) -> Finding:
    return Finding(call.operator, 1, call.module, call.kind, call.shape, severity, *note)
