"""The support matrix: which cells there are, what ends them, what is kept of them, and how it is shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mixzoo.export.matrix import Book, Cell, Limits, Settings, Store, cells, filling, follow, page, records, tables
from mixzoo.export.matrix.reasons import KNOWN, explain
from mixzoo.export.process import Child, Entry, members, processes
from mixzoo.export.target import TARGETS
from mixzoo.zoo.errors import UnknownModelError, UnknownNameError
from mixzoo.zoo.registry import FAMILIES, VARIANTS

ROOT = Path(__file__).resolve().parent.parent
MANIFEST: dict[str, Any] = {
    "model": "van_b0", "target": "onnx", "precision": "fp32", "verified": True, "in_its_runtime": True,
    "run_by": "ONNX Runtime on the CPU", "error": 2.4e-6, "tolerance": 1e-4, "dynamic_axes": ["batch"],
    "fixed_because": [{"tried": ["batch", "height", "width"], "reason": "a <frozen> branch"}],
    "parameters": 4_100_000, "weights": "filled", "max_rank": 4,
    "artifacts": [{
        "file": "van_b0.onnx", "bytes": 16_000_000, "companions": [{"file": "van_b0.data", "bytes": 400_000}],
        "nodes": 278, "max_rank": 4,
        "delegated": {"to": "XNNPACK", "share": 0.5, "parts": 2, "nodes": 3, "rest": {}, "macs_share": 0.996},
        "latency": {"file_ms": 12.5, "times_faster": 1.5, "machine_load": 0.1, "threads": 1},
    }],
}  # fmt: skip
SMALL = Limits(seconds=20, gib=1.0, jobs=2, threads=1)


def cell_of(name: str) -> Cell:
    return Cell(name, "onnx")


# which cells


def test_the_default_is_the_smallest_model_of_every_family() -> None:
    found = cells.models_of([])
    assert [VARIANTS[name].family for name in found] == [f for f in FAMILIES if f != "deit"]  # a layout only
    for name in found:
        sizes = [v.params_m for v in VARIANTS.values() if v.family == VARIANTS[name].family and v.params_m]
        assert VARIANTS[name].params_m == min(sizes)
    assert cells.models_of([], "van") == ["van_b0"]
    assert cells.models_of(["shvit_s?", "timm:resnet18"], "shvit") == [f"shvit_s{i}" for i in range(1, 5)]
    assert cells.models_of(["timm:resnet18", "resnet18"]) == ["timm:resnet18"]
    with pytest.raises(UnknownModelError, match="resnet81"):
        cells.models_of(["resnet81"])
    with pytest.raises(UnknownNameError, match="'shvit'"):
        cells.models_of([], "shvti")


def test_a_plan_leaves_out_what_cannot_be_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(TARGETS["onnx"], "unavailable", lambda: None)
    monkeypatch.setattr(TARGETS["ncnn"], "unavailable", lambda: "Exporting to ncnn needs ncnn: pip install")
    found = cells.plan(["van_b0", "shvit_s1"], "ncnn,onnx", "fp32,int8", Settings())
    assert found.cells == [Cell("van_b0", "onnx"), Cell("shvit_s1", "onnx")]
    assert set(found.absent) == {Cell("van_b0", "ncnn"), Cell("shvit_s1", "ncnn")}
    asked = cells.plan(["van_b0"], "onnx", "int8", Settings(calibration=tmp_path))
    assert [c.precision for c in (*asked.cells, *asked.absent)] == ["int8"]
    with pytest.raises(UnknownNameError, match="'fp16'"):
        cells.plan(["van_b0"], "onnx", "fp61", Settings())


def test_a_cell_is_asked_what_the_settings_say() -> None:
    settings = Settings(sizes="64", batches="1,3", dynamic="none", calibration=Path("images"))
    words = settings.arguments(Cell("van_b0", "onnx", "int8"), Path("out"))
    assert words[:6] == ["export", "van_b0", "--to", "onnx", "--out", "out"]
    pairs = dict(zip(words[6::2], words[7::2], strict=True))
    wanted = {
        "--batches": "1,3",
        "--dynamic": "none",
        "--sizes": "64",
        "--precision": "int8",
        "--calibration": "images",
    }
    assert pairs == wanted
    assert "--precision" not in settings.arguments(Cell("van_b0", "onnx"), Path("out"))


def test_each_model_gets_the_weights_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TARGETS["onnx"], "unavailable", lambda: None)
    (tmp_path / "van_b0").mkdir()
    (tmp_path / "timm_resnet18.pth").touch()
    settings = Settings(checkpoints=tmp_path)
    found = cells.plan(["van_b0", "timm:resnet18", "shvit_s1"], "onnx", "fp32", settings)
    assert [cell.model for cell in found.cells] == ["van_b0", "timm:resnet18"]
    assert list(found.absent.values()) == [f"{tmp_path.name} has no weights of that model"]
    asked = [settings.arguments(cell, Path("out")) for cell in found.cells]
    assert [words[words.index("--checkpoint") + 1] for words in asked] == [
        str(tmp_path / "van_b0"),
        str(tmp_path / "timm_resnet18.pth"),
    ]
    assert settings.record(cell_of("van_b0"))["checkpoints"] == tmp_path.name
    assert "checkpoints" not in Settings().record(cell_of("van_b0"))


# processes


def test_members_are_group_and_descendants() -> None:
    table = [
        Entry(1, 0, 1, 0),
        Entry(7, 1, 7, 5),
        Entry(8, 7, 7, 5),
        Entry(9, 8, 9, 5),
        Entry(10, 9, 9, 5),
        Entry(11, 1, 1, 5),
    ]
    assert {entry.pid for entry in members(table, 7)} == {7, 8, 9, 10}


def test_processes_are_seen_with_their_memory() -> None:
    (own,) = [entry for entry in processes() if entry.pid == os.getpid()]
    assert own.parent == os.getppid() and own.group == os.getpgrp() and own.resident > 1e7


def test_a_child_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    grandchild = "import time; time.sleep(60)"
    started = f"subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True)"
    code = f"import subprocess, sys; {started}.wait()"
    child = Child([sys.executable, "-c", code], tmp_path / "log", 1)
    wait_for(lambda: len(members(processes(), child.process.pid)) == 2)
    assert child.ended() is None and child.peak > 0
    (other,) = [e.pid for e in members(processes(), child.process.pid) if e.pid != child.process.pid]
    child.kill()
    wait_for(lambda: not alive(other))
    assert child.process.returncode == -signal.SIGKILL


def test_a_cell_ends_when_its_parent_is_gone() -> None:
    file = ROOT / "export/child.py"
    follow_ = f"import os, runpy; os.setsid(); runpy.run_path({str(file)!r})['_follow'](PARENT)"
    code = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {follow_!r}.replace("PARENT", str(os.getpid()))])
print(child.pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    assert alive(child)
    parent.kill()
    parent.communicate()
    wait_for(lambda: not alive(child))


def alive(pid: int) -> bool:
    return any(entry.pid == pid and entry.resident for entry in processes())  # what only waits to be reaped has none


def wait_for(done: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


# filling

CODE = {
    "green": "import os, sys; os.mkdir(sys.argv[1]); open(sys.argv[1] + '/manifest.json', 'w').write(sys.argv[2])",
    "refused": "import sys; sys.exit('warning\\nError: refused could not be exported to onnx: pnnx crashed\\nx')",
    "crash": "import os, sys; print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)",
    "slow": "import time; time.sleep(60)",
    "large": "import time; block = b'x' * (400 << 20); time.sleep(60)",
}


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that are named after what they do."""

    def command(cell: Cell, settings: Settings, out: Path) -> list[str]:
        return [sys.executable, "-c", CODE[cell.model], str(out), json.dumps(MANIFEST)]

    monkeypatch.setattr(filling, "command_of", command)


@pytest.mark.usefixtures("doubles")
def test_every_end_is_a_record_that_is_on_disk_at_once(tmp_path: Path) -> None:
    store, seen = Store(tmp_path / "matrix.jsonl"), []
    limits = Limits(seconds=12, gib=0.25, jobs=2, threads=1)

    def say(record: records.Record) -> None:
        seen.append(record["model"])
        assert {r["model"] for r in records.read(store.path)} == set(seen)

    filling.fill([cell_of(name) for name in CODE], Settings(), store, limits, say=say)
    found = {r["model"]: r for r in records.read(store.path)}
    assert {name: r["status"] for name, r in found.items()} == dict.fromkeys(CODE, "red") | {"green": "green"}
    assert (
        found["green"]["bytes"] == 16_400_000 and found["green"]["error"] == 2.4e-6 and found["green"]["runs"] == "yes"
    )
    assert found["refused"]["reason"] == "pnnx crashed x"
    assert "SIGSEGV" in found["crash"]["reason"] and "last words" in found["crash"]["reason"]
    assert (found["slow"]["stopped"], found["slow"]["limit"]) == ("time", 12) and found["slow"]["seconds"] < 40
    assert found["large"]["stopped"] == "memory" and found["large"]["peak_gib"] > 0.25
    assert sorted(p.name for p in tmp_path.iterdir()) == ["matrix.jsonl"]


@pytest.mark.usefixtures("doubles")
def test_what_is_recorded_is_not_filled_again(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path / "matrix.jsonl"), [cell_of(n) for n in ("green", "refused")]
    filling.fill(wanted, Settings(), store, SMALL)
    again = Store(store.path)
    assert filling.pending(wanted, again, Settings(), SMALL, again=False) == []
    assert filling.pending(wanted, again, Settings(), SMALL, again=True) == [cell_of("refused")]
    assert filling.pending(wanted, again, Settings(batches="1,3"), SMALL, again=False) == wanted
    again.put(
        {**records.base(cell_of("slow"), Settings().record(cell_of("slow"))), **records.red("x", "time"), "limit": 20}
    )
    assert filling.pending([cell_of("slow")], again, Settings(), SMALL, again=False) == []
    longer = Limits(seconds=21, gib=1.0)
    assert filling.pending([cell_of("slow"), *wanted], again, Settings(), longer, again=False) == [cell_of("slow")]


@pytest.mark.usefixtures("doubles")
def test_files_are_kept_where_that_is_asked(tmp_path: Path) -> None:
    filling.fill([cell_of("green")], Settings(), Store(tmp_path / "m" / "matrix.jsonl"), SMALL, keep=tmp_path / "files")
    assert json.loads((tmp_path / "files/green/onnx_fp32/manifest.json").read_text()) == MANIFEST


@pytest.mark.usefixtures("doubles")
def test_one_process_fills_a_matrix(tmp_path: Path) -> None:
    store = Store(tmp_path / "matrix.jsonl")
    with filling._alone(tmp_path) as work:
        with pytest.raises(filling.BusyError, match="--out"):
            filling.fill([cell_of("green")], Settings(), store, SMALL)
        assert work.is_dir()
    filling.fill([cell_of("green")], Settings(), store, SMALL)


@pytest.mark.usefixtures("doubles")
def test_an_interruption_leaves_no_process_and_loses_no_record(tmp_path: Path) -> None:
    store = Store(tmp_path / "matrix.jsonl")

    def say(record: records.Record) -> None:
        handler = signal.getsignal(signal.SIGTERM)  # called, not sent: a signal could end the process that tests
        assert callable(handler)
        handler(signal.SIGTERM, None)

    with pytest.raises(SystemExit):
        filling.fill([cell_of("slow"), cell_of("green")], Settings(), store, SMALL, say=say)
    assert [r["model"] for r in records.read(store.path)] == ["green"]
    assert not [e for e in processes() if e.parent == os.getpid() and e.group == e.pid and alive(e.pid)]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "matrix.jsonl").write_text('{"model": "a", "target": "b", "precision": "c"}\n{"mod')
    with pytest.raises(records.RecordsError, match="line 2"):
        Store(tmp_path / "matrix.jsonl")


# showing


def some_records() -> list[records.Record]:
    def record(model: str, target: str, **more: Any) -> records.Record:
        cell = Cell(model, target)
        return {**records.base(cell, {"versions": {"mixzoo": "0.1.0"}}), "seconds": 3.0, "peak_gib": 0.5, **more}

    return [
        record("shvit_s1", "ncnn", **records.red("pnnx crashed with SIGSEGV in its pass_level3 <b>")),
        record("van_b0", "onnx", **records.green(MANIFEST)),
        record("shvit_s1", "coreml", **(records.green(MANIFEST) | {"runs": "program", "latency": None})),
        record("shvit_s1", "tensorrt", **records.absent("needs a GPU")),
    ]


def test_the_grid_has_a_row_for_each_model_and_a_column_for_each_target() -> None:
    lines = tables.grid(some_records()).splitlines()
    assert lines[0] == "| family | model | onnx | ncnn | coreml | tensorrt |"
    assert lines[2:] == [
        "| `shvit` | `shvit_s1` | - | ✗ | (✓) 2e-6 batch | - |",
        "| `van` | `van_b0` | ✓ 2e-6 batch | - | - | - |",
    ]
    wide = {**some_records()[1], "dynamic_axes": ["batch", "height", "width"]}
    assert [tables.sign(r) for r in (wide, {**wide, "dynamic_axes": []})] == ["✓ 2e-6 ↔", "✓ 2e-6"]
    judged = {**wide, "precision": "int8", "dynamic_axes": [], "judged": {"drop": 0.444}}
    assert tables.sign(judged) == "✓ -0.4 pt" and tables.sign({**judged, "judged": {"drop": 0.0}}) == "✓ +0.0 pt"
    both = tables.grids([*some_records(), judged])
    assert both.startswith("fp32:\n\n| family") and "\n\nint8:\n\n| family | model | onnx int8 |" in both
    assert tables.grids(some_records()) == tables.grid(some_records())
    assert tables.count(some_records()) == "2 of 3 cells are green; 1 were not tried"


def test_markdown_has_figures_and_reasons() -> None:
    text = tables.markdown(some_records())
    part = "XNNPACK: 50% of nodes, 99% of MACs, 2 parts"
    assert f"| van_b0 | onnx | fp32 | yes | yes | 2.4e-06 |  | batch | {part} | 16.4 | 12.5 | 1.50 |" in text
    assert "`shvit_s1` `ncnn` fp32: pnnx crashed" in text and "https://github.com/pnnx/pnnx/issues/88" in text
    assert "a <frozen> branch" in text and "needs a GPU" in text


class Balance(HTMLParser):
    """Counts open elements, and gathers what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name == "src" or (tag == "link" and name == "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone() -> None:
    reader = Balance()
    reader.feed(page.page(some_records()))
    assert (reader.open, reader.loads) == ([], [])
    assert "in its pass_level3 <b>" in reader.text and "✓ 2e-6" in reader.text


def test_red_cells_are_explained() -> None:
    red, green = some_records()[0], some_records()[1]
    known = explain(red)
    assert known and known.issue and explain(green) is None
    assert explain({**red, "reason": "nobody has seen this"}) is None
    assert all(k.issue.startswith("https://github.com/") for k in KNOWN if k.issue)


def test_a_book_writes_pages_and_puts_the_grid_into_a_file(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{tables.BEGIN}\nold\n{tables.END}\nbelow\n")
    book = Book(tmp_path / "docs", readme)
    for record in some_records():
        book.store.put(record)
    book.write()
    assert all(path.stat().st_size for path in book.files)
    assert readme.read_text() == f"above\n{tables.readme_section(some_records())}below\n"
    readme.write_text("nothing")
    with pytest.raises(tables.MarkersError, match="matrix"):
        book.write()


def test_what_cannot_be_tried_here_does_not_replace_what_was_seen_elsewhere(tmp_path: Path) -> None:
    book = Book(tmp_path)
    seen = some_records()[1]
    book.store.put(seen)
    plan = cells.Plan(absent={Cell("van_b0", "onnx"): "not installed", Cell("van_b0", "ncnn"): "not installed"})
    assert book.take_up(plan, Settings(), SMALL) == []
    assert [r["status"] for r in book.store.records.values()] == ["green", "absent"]


def test_following_prints_a_line_for_each_cell(capsys: pytest.CaptureFixture[str]) -> None:
    with follow.following(4) as (say, watch):
        watch([cell_of("van_b0")])
        for record in some_records():
            say(record)
    err = capsys.readouterr().err.splitlines()
    assert (
        err[0].startswith("1/4 shvit_s1 ncnn fp32: ✗ pnnx crashed")
        and err[1] == "2/4 van_b0 onnx fp32: ✓ 2e-6 batch (3 s, 0.5 GiB)"
    )


# what is published


@pytest.mark.parametrize("folder", ("docs", "docs/timm"))
def test_published_tables_are_what_the_command_makes_of_its_records(folder: str) -> None:
    found = records.read(ROOT / folder / "matrix.jsonl")
    assert found
    assert folder != "docs" or tables.readme_section(found) in (ROOT / "README.md").read_text()
    assert (ROOT / folder / "matrix.md").read_text() == tables.markdown(found)
    assert (ROOT / folder / "matrix.html").read_text() == page.page(found)
