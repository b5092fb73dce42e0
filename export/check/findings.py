"""What a check found, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .graph import Shape

if TYPE_CHECKING:
    from rich.console import RenderableType

REFUSED, OUTSIDE, UNTRIED = "refused", "outside", "untried"
_MEANING = {
    REFUSED: "the target does not take it: no file can be written",
    OUTSIDE: "it runs, but not in the accelerated part",
    UNTRIED: "nobody has tried whether the target takes it",
}


@dataclass(frozen=True)
class Finding:
    """An operator that a target does not take, or not where it is fast.

    Attributes:
        operator: namespace and name, such as "aten.roll"; "torch.export" where the graph itself cannot be had.
        count: calls of it, for this reason, in this module.
        module: dotted path in the model, "" for the model itself.
        kind: class of that module.
        shape: of the tensor with the most axes that the first of them takes or gives.
        severity: "refused", "outside" (of the accelerated part) or "untried".
        reason: why.
        remedy: what to do about it.
        source: where that is from.
    """

    operator: str
    count: int
    module: str
    kind: str
    shape: Shape
    severity: str
    reason: str
    remedy: str
    source: str

    @property
    def sentence(self) -> str:
        """The operator, where it is, why it is not taken, and the remedy."""
        where = f"{self.module or 'the model'} ({self.kind})" if self.kind else self.module or "the model"
        return f"{self.operator} in {where}: {self.reason}. {self.remedy}"


@dataclass(frozen=True)
class Verdict:
    """What a target makes of a model.

    Attributes:
        model: its name.
        target: the target's.
        findings: refused ones first.
    """

    model: str
    target: str
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> tuple[Finding, ...]:
        """Those that keep the model from being exported."""
        return tuple(f for f in self.findings if f.severity == REFUSED)

    @property
    def clean(self) -> bool:
        """Whether the target takes every operator, wherever it runs."""
        return not self.refused

    def record(self) -> dict[str, Any]:
        """For JSON."""
        findings = [{**asdict(f), "shape": list(f.shape)} for f in self.findings]
        return {"model": self.model, "target": self.target, "clean": self.clean, "findings": findings}


def merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings of one operator in one module for one reason as one, counted; refused ones first."""
    by_place: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        by_place.setdefault((finding.operator, finding.module, finding.reason), []).append(finding)
    order = list(_MEANING)
    found = [_with_count(same) for same in by_place.values()]
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _with_count(same: Sequence[Finding]) -> Finding:
    return Finding(**{**asdict(same[0]), "count": sum(finding.count for finding in same)})


def render(verdicts: Sequence[Verdict]) -> RenderableType:
    """The verdicts for a terminal: a line for each operator and reason, with the modules that have it."""
    from rich.console import Group
    from rich.table import Table

    parts: list[RenderableType] = []
    for verdict in verdicts:
        parts.append(f"[bold]{verdict.target}[/]: {_sum(verdict)}")
        if verdict.findings:
            table = Table(show_lines=True)
            for title in ("operator", "count", "module", "shape", "why", "remedy", "source"):
                table.add_column(title, overflow="fold")
            for row in _rows(verdict.findings):
                table.add_row(*row)
            parts.append(table)
    return Group(*parts)


def _sum(verdict: Verdict) -> str:
    counts = {s: sum(f.count for f in verdict.findings if f.severity == s) for s in _MEANING}
    words = [f"{count} {severity} ({_MEANING[severity]})" for severity, count in counts.items() if count]
    return f"{verdict.model} is {'clean' if verdict.clean else 'not taken'}" + "".join(f"; {w}" for w in words)


_SHOWN = 3  # modules of a line


def _rows(findings: Sequence[Finding]) -> list[list[str]]:
    by_reason: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        by_reason.setdefault((finding.operator, finding.reason), []).append(finding)
    return [_row(same) for same in by_reason.values()]


def _row(same: Sequence[Finding]) -> list[str]:
    first = same[0]
    places = [f.module or "(the model)" for f in same[:_SHOWN]]
    places += [f"and {len(same) - _SHOWN} more"] if len(same) > _SHOWN else []
    shape = "x".join(map(str, first.shape))
    why = f"{first.severity}: {first.reason}"
    return [first.operator, str(sum(f.count for f in same)), "\n".join(places), shape, why, first.remedy, first.source]
