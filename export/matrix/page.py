"""A matrix as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from . import tables
from .reasons import explain
from .records import ABSENT, GREEN, RED, Record

_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2rem;color:#1c2024;background:#fff}
table{border-collapse:collapse;margin:1rem 0}
td,th{border:1px solid #d6dbe1;padding:.25rem .55rem;text-align:left;white-space:nowrap}
th{background:#f3f5f7;position:sticky;top:0;cursor:pointer}
td.green{background:#d8f2de}td.other{background:#eef7d8}td.red{background:#fbdcdc}td.absent{color:#8b939c}
dd{margin:0 0 .6rem 1.5rem;max-width:70rem}
@media(prefers-color-scheme:dark){body{background:#15181c;color:#e4e7ea}th{background:#22272d}td,th{border-color:#3a4149}
td.green{background:#173d23}td.other{background:#333d17}td.red{background:#4d1f1f}a{color:#8ab8ff}}
"""
_SORT = """
document.querySelectorAll("table").forEach(t=>t.querySelectorAll("th").forEach((h,i)=>h.onclick=()=>{
const b=t.tBodies[0],up=h.dataset.up=h.dataset.up=="1"?"0":"1",v=r=>r.cells[i].textContent,
c=(x,y)=>{const a=parseFloat(x),d=parseFloat(y);return isNaN(a)||isNaN(d)?x.localeCompare(y):a-d};
[...b.rows].sort((x,y)=>(up=="1"?1:-1)*c(v(x),v(y))).forEach(r=>b.append(r))}));
"""


def page(records: Sequence[Record]) -> str:
    """HTML with its style and the few lines that sort its tables."""
    ordered = tables.order(records)
    parts = [f"<h1>mixzoo: support matrix</h1><p>{escape(tables.count(records))}. {escape(tables.LEGEND)}</p>"]
    parts += [_grid(records)]
    for title, status in (("Red cells", RED), ("Not tried", ABSENT)):
        if some := [r for r in ordered if r["status"] == status]:
            parts.append(f"<h2>{title}</h2><dl>{''.join(map(_reason, some))}</dl>")
    green = [r for r in ordered if r["status"] == GREEN]
    parts += ["<h2>Every file</h2>", _table(tables.HEADER, [[_plain(c) for c in tables.row(r)] for r in green])]
    parts += [f"<p>Made with {escape(tables.made_with(records))}.</p>"]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>mixzoo: support matrix</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + f"\n<script>{_SORT}</script></body></html>\n"
    )


def _grid(records: Sequence[Record]) -> str:
    wide = tables.columns(records)
    by_cell = {(r["model"], r["target"], r["precision"]): r for r in records}
    models = dict.fromkeys((r["family"], r["model"]) for r in tables.order(records))
    rows = [[_plain(f), _plain(m), *(_cell(by_cell.get((m, *column))) for column in wide)] for f, m in models]
    return _table(["family", "model", *map(tables.heading, wide)], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in header)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _plain(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _cell(record: Record | None) -> str:
    if record is None:
        return '<td class="absent">-</td>'
    kind = "other" if record["status"] == GREEN and record["runs"] != "yes" else record["status"]
    title = record["reason"] or f"run by {record['run_by']}; open axes: {', '.join(record['dynamic_axes']) or 'none'}"
    return f'<td class="{kind}" title="{escape(title)}">{escape(tables.sign(record))}</td>'


def _reason(record: Record) -> str:
    known = explain(record)
    name = escape(f"{record['model']} {record['target']} {record['precision']}")
    link = f' <a href="{escape(known.issue)}">upstream</a>' if known and known.issue else ""
    said = escape(f"{record['reason']} {known.explanation if known else ''}")
    return f"<dt><b>{name}</b></dt><dd>{said}{link}</dd>"
