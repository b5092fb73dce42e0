"""A matrix for readers: Markdown, and a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...zoo.errors import MixzooError
from ...zoo.files import atomic_write
from ...zoo.markdown import markdown_table
from ..numbers import percent
from ..precision import PRECISIONS
from ..shapes import AXES
from .reasons import explain
from .records import ABSENT, GREEN, RED, Record

if TYPE_CHECKING:
    from rich.table import Table

BEGIN, END = "<!-- matrix: written by `mixzoo matrix --readme` -->", "<!-- end of the matrix -->"
HEADER = (
    "model",
    "target",
    "precision",
    "exports",
    "runs",
    "error",
    "drop",
    "open axes",
    "delegated",
    "MB",
    "ms",
    "as fast",
)
_RUNS = {"yes": "yes", "program": "as a program", "source": "no"}
_BUSY = 2.0  # load from which times are marked
_SIGNS = {"yes": "✓", "program": "(✓)", "source": "built"}
LEGEND = (
    "✓ with the greatest relative error at any shape: the file was run in its runtime and does what the model does. "
    "(✓): the written program was read back and computed, since its runtime is for another system. built: written, "
    "and checked by its source only, since nothing here can run it. ↔: one file for any batch, height and width, "
    "proved at some that were not asked for; batch: for any batch. pt: points of top-1 more or less than the model has "
    "itself, where labelled images judge eight bits, whose errors are no measure. ✗: no file. -: not tried here."
)


class MarkersError(MixzooError, ValueError):
    """A file without the two lines between which a matrix is put."""


def order(records: Sequence[Record]) -> list[Record]:
    """Records by family, model, target and precision, in the order of the zoo's and the targets' own lists."""
    from ...zoo.registry import FAMILIES, VARIANTS
    from ..target import TARGETS

    families, models, targets = list(FAMILIES), list(VARIANTS), list(TARGETS)

    def place(record: Record) -> tuple[Any, ...]:
        return (
            _index(families, record["family"]),
            _index(models, record["model"]),
            record["model"],
            _index(targets, record["target"]),
            _index(list(PRECISIONS), record["precision"]),
        )

    return sorted(records, key=place)


def _index(names: list[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def row(record: Record) -> list[str]:
    """The cells of a record, in the order of `HEADER`."""
    head = [record["model"], record["target"], record["precision"]]
    if record["status"] != GREEN:
        return [*head, "no" if record["status"] == RED else "not tried", *[""] * (len(HEADER) - 4)]
    part, time = record["delegated"], record["latency"]
    return [
        *head,
        "yes" if record["files"] == 1 else f"{record['files']} files",
        _RUNS[record["runs"]],
        f"{record['error']:.1e}",
        _drop(record),
        ", ".join(record["dynamic_axes"]) or "none",
        _delegated(part) if part else "",
        f"{record['bytes'] / 1e6:.1f}",
        f"{time['file_ms']:.1f}{_loaded(time)}" if time else "",
        f"{time['times_faster']:.2f}{_beside_float(time)}" if time else "",
    ]


def _delegated(part: Mapping[str, Any]) -> str:
    """What the accelerated partition takes."""
    macs = f", {percent(part['macs_share'])} of MACs" if part.get("macs_share") is not None else ""
    return f"{part['to']}: {percent(part['share'])} of nodes{macs}, {part['parts']} part{'s' * (part['parts'] != 1)}"


def _drop(record: Record) -> str:
    """Points of top-1 that a file of lower precision loses on labelled images."""
    drop = (record.get("judged") or {}).get("drop")
    return "" if drop is None else f"{drop:.2f}"


def _beside_float(time: Mapping[str, Any]) -> str:
    """How many times as fast a file of lower precision is as the float32 one; below one it is slower."""
    times = time.get("times_faster_than_float32")
    return "" if times is None else f" ({times:.2f} of fp32)"


def _loaded(time: Mapping[str, Any]) -> str:
    """What else the machine was doing, where that is more than the export itself."""
    return f" (load {time['machine_load']:.0f})" if time["machine_load"] > _BUSY else ""


def columns(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(target, precision) of every column of the grid."""
    return list(dict.fromkeys((r["target"], r["precision"]) for r in sorted(order(records), key=_by_target)))


def _by_target(record: Record) -> tuple[int, int]:
    from ..target import TARGETS

    return _index(list(TARGETS), record["target"]), _index(list(PRECISIONS), record["precision"])


def heading(column: tuple[str, str]) -> str:
    """Of a column of the grid."""
    return column[0] if column[1] == "fp32" else f"{column[0]} {column[1]}"


def sign(record: Record | None) -> str:
    """A cell of the grid."""
    if record is None or record["status"] == ABSENT:
        return "-"
    if record["status"] == RED:
        return "✗"
    axes = tuple(record["dynamic_axes"])
    opened = f" {'↔' if axes == AXES else ' '.join(axes)}" if axes else ""
    return f"{_SIGNS[record['runs']]} {_figure(record)}{opened}"


def _figure(record: Record) -> str:
    """What is said of a file in a word: its error, or of one in eight bits what labelled images say of it."""
    drop = (record.get("judged") or {}).get("drop")
    if record["precision"] == "int8" and drop is not None:
        return f"{-drop or 0.0:+.1f} pt"
    return f"{record['error']:.0e}".replace("e-0", "e-")


def grids(records: Sequence[Record]) -> str:
    """A grid for each precision."""
    some = {precision: [r for r in records if r["precision"] == precision] for precision in PRECISIONS}
    shown = {precision: grid(of) for precision, of in some.items() if of}
    if len(shown) == 1:
        return next(iter(shown.values()))
    return "\n\n".join(f"{precision}:\n\n{text}" for precision, text in shown.items())


def grid(records: Sequence[Record]) -> str:
    """Models x targets: a Markdown table."""
    wide = columns(records)
    by_cell = {(r["model"], r["target"], r["precision"]): r for r in records}
    models = dict.fromkeys((r["family"], r["model"]) for r in order(records))
    rows = [[f"`{f}`", f"`{m}`", *(sign(by_cell.get((m, *column))) for column in wide)] for f, m in models]
    return "\n".join(markdown_table(["family", "model", *map(heading, wide)], rows))


def count(records: Sequence[Record]) -> str:
    """How many cells are what, in words."""
    counts = Counter(r["status"] for r in records)
    return f"{counts[GREEN]} of {counts[GREEN] + counts[RED]} cells are green" + (
        f"; {counts[ABSENT]} were not tried" if counts[ABSENT] else ""
    )


def made_with(records: Sequence[Record]) -> str:
    """Versions, in words; where records differ in one, every value."""
    found: dict[str, set[str]] = {}
    for record in records:
        for name, number in record.get("settings", {}).get("versions", {}).items():
            found.setdefault(name, set()).update([number] if number else [])
    return ", ".join(f"{name} {' and '.join(sorted(numbers))}" for name, numbers in found.items() if numbers)


def reason(record: Record) -> str:
    """Why a cell is not green, what that means, and where it is discussed: Markdown."""
    known = explain(record)
    parts = [record["reason"].rstrip(".") + "."]
    parts += [known.explanation] if known else []
    parts += [f"[Upstream]({known.issue})."] if known and known.issue else []
    return " ".join(parts)


def readme_section(records: Sequence[Record]) -> str:
    """What README shows, between its two markers."""
    newest = max((r.get("time_utc", "") for r in records), default="")[:10]
    head = f"{count(records)} ({newest}; {made_with(records)})."
    return f"{BEGIN}\n{grids(records)}\n\n{head} {LEGEND}\n{END}\n"


def put_into(path: Path, records: Sequence[Record]) -> None:
    """Replace what stands between the two markers in the Markdown file at ``path``.

    Raises:
        MarkersError: it has no such lines.
    """
    text = path.read_text()
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(f"{END}\n")
    if not (found and ended):
        raise MarkersError(f"{path} has no lines {BEGIN!r} and {END!r}: put them where the matrix is to stand.")
    atomic_write(path, f"{before}{readme_section(records)}{after}")


def markdown(records: Sequence[Record]) -> str:
    """Everything: docs/matrix.md."""
    ordered = order(records)
    lines = ["# Support matrix", "", f"{count(records)}. {LEGEND}", "", grids(records), ""]
    for title, status in (("Red cells", RED), ("Not tried", ABSENT)):
        if some := [r for r in ordered if r["status"] == status]:
            lines += [f"## {title}", "", *(f"- {_name(r)}: {reason(r)}" for r in some), ""]
    shown = [r for r in ordered if r["status"] == GREEN]
    lines += ["## Every file", "", *markdown_table(HEADER, [row(r) for r in shown]), "", _FIGURES, ""]
    if fixed := [r for r in shown if r["fixed_because"]]:
        lines += ["## Axes that are not open", "", *(f"- {_name(r)}: {r['fixed_because'][0]}" for r in fixed), ""]
    return "\n".join([*lines, f"Made with {made_with(records)}.", ""])


_FIGURES = (
    "Errors are max|a - b| / max|b| against the model in PyTorch; drop is in points of top-1, where labelled images "
    "were given. Delegated: the share of nodes, and of multiply-accumulates, that the runtime's accelerated partition "
    "takes; nothing where a runtime has none or does not tell. Times are of the first shape asked for, beside "
    "PyTorch's deploy form on the same machine (as fast: how many times), and mean little where cells were filled side "
    "by side."
)


def _name(record: Record) -> str:
    return f"`{record['model']}` `{record['target']}` {record['precision']}"


def table(records: Sequence[Record]) -> Table:
    """The grid for a terminal."""
    from ...zoo.tables import new_table

    wide = columns(records)
    by_cell = {(r["model"], r["target"], r["precision"]): r for r in records}
    found = new_table(("model",), map(heading, wide), caption=count(records))
    for model in dict.fromkeys(r["model"] for r in order(records)):
        found.add_row(model, *(sign(by_cell.get((model, *column))) for column in wide))
    return found
