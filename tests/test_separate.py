"""Exports from the command line: a runtime that dies takes no other along and leaves nothing behind."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mixzoo.export import IncompleteError, separate
from mixzoo.export.process import Child, cause, command
from mixzoo.export.separate import UsageError, separately
from mixzoo.export.target import TARGETS
from mixzoo.zoo.cli import app
from typer.testing import CliRunner

HERE = [name for name, target in TARGETS.items() if target.unavailable() is None]
pytestmark = pytest.mark.skipif(len(HERE) < 2, reason="fewer than two runtimes are installed")

# what processes do with their folder, instead of exporting
DOES = {
    "works": "print('a library says this'); print(json.dumps([{'folder': str(out), 'target': 'here', 'files': []}]))",
    "dies": "(out.parent / f'.{out.name}-half').mkdir(); print('last words', file=sys.stderr, flush=True);"
    " os.kill(os.getpid(), 11)",
    "dies in another's": "(out / '.a_model-half').mkdir(); print('last words', file=sys.stderr, flush=True);"
    " os.kill(os.getpid(), 11)",
    "dies later": "(out / 'fp32').mkdir(); (out / '.int8-half').mkdir();"
    " (out / 'fp32' / 'manifest.json').write_text(json.dumps({'precision': 'fp32'})); os.abort()",
    "refuses": "sys.exit(f'Error: a_model could not be exported to {out.name}: it has\\nan unknown operator')",
    "misused": "print('Error: Unknown model', file=sys.stderr); sys.exit(2)",
    "waits": "(out.parent / f'.{out.name}-half').mkdir(); open(os.environ['MIXZOO_STEPS'], 'w').write('first\\n');"
    " import time; time.sleep(60)",
    "tells": "open(os.environ['MIXZOO_STEPS'], 'w').write('first\\nsecond\\n'); print('[]')",
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run what `DOES` names for one target after the other."""

    def separated(*does: str, precision: str = "fp32", say: Any = lambda text: None) -> Any:
        waiting = list(does)

        def stand_in(words: Sequence[str]) -> list[str]:
            out = words[words.index("--out") + 1]
            start = (
                f"import json, os, sys, pathlib; out = pathlib.Path({out!r}); out.mkdir(parents=True, exist_ok=True); "
            )
            return [sys.executable, "-c", start + DOES[waiting.pop(0)]]

        monkeypatch.setattr(separate, "command", stand_in)
        targets = [TARGETS[name] for name in HERE[: len(does)]]
        root = tmp_path if len(does) > 1 else tmp_path / "out"
        return separately(["export", "a_model"], "a_model", targets, precision, root, say)

    return separated


def test_a_process_that_dies_takes_no_other_along(run: Any, tmp_path: Path) -> None:
    with pytest.raises(
        IncompleteError, match=r"exported to \w+: the process died of SIGSEGV; .*: last words"
    ) as caught:
        run("dies", "works")
    assert [report.target for report in caught.value.reports] == ["here"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(HERE[:2])


def test_what_was_finished_before_is_kept(run: Any, tmp_path: Path) -> None:
    with pytest.raises(IncompleteError, match="SIGABRT") as caught:
        run("dies later", precision="fp32,int8")
    assert [report.precision for report in caught.value.reports] == ["fp32"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fp32"]


def test_the_only_runtime_may_die_too(run: Any, tmp_path: Path) -> None:
    """Its files are right in the folder, or in one of the model's name where the folder holds another's."""
    with pytest.raises(IncompleteError, match=f"a_model could not be exported to {HERE[0]}: .*SIGSEGV; .*: last words"):
        run("dies in another's")
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("out")]
    assert run("works")[0].target == "here"


def test_refusals_are_told_as_they_are_and_steps_passed_on(run: Any) -> None:
    told: list[str] = []
    with pytest.raises(IncompleteError) as caught:
        run("refuses", "tells", say=told.append)
    message = f"a_model could not be exported to {HERE[0]}: it has an unknown operator"
    assert str(caught.value) == message and told == [message, "first", "second"]


def test_wrong_usage_ends_at_once(run: Any) -> None:
    with pytest.raises(UsageError, match="Unknown model"):
        run("misused", "works")


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.setattr(TARGETS[HERE[0]], "unavailable", lambda: "pip install it")
    with pytest.raises(IncompleteError, match=f"exported to {HERE[0]}: pip install it"):
        run("works", "works")


def test_nothing_stays_of_what_is_interrupted(run: Any, tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("waits", say=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_command_that_is_asked_to_end_removes_what_is_half_written(tmp_path: Path) -> None:
    """Whatever a shell has done to its signals."""
    code = f"""
import signal, sys, types
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.argv = ["child", "{os.getpid()}", "words"]
from mixzoo.export import child
from mixzoo.zoo.files import atomic_dir
def run_module(*_, **__):
    import pathlib, time
    with atomic_dir({str(tmp_path / "out")!r}):
        pathlib.Path({str(tmp_path / "ready")!r}).touch()
        time.sleep(60)
child.runpy = types.SimpleNamespace(run_module=run_module)
child.main()
"""
    child = Child([sys.executable, "-c", code], tmp_path / "log")
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    child.stop()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "ready"]


def test_the_words_are_those_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """... so that each process is asked what the command was."""
    seen: dict[str, Any] = {}

    def noted(words: Sequence[str], name: str, targets: Any, precision: str, root: Path, say: Any) -> list[Any]:
        seen.update(words=list(words), name=name, root=root, precision=precision)
        return []

    monkeypatch.setattr(separate, "separately", noted)
    options = [
        "--sizes",
        "64,64x96",
        "--batches",
        "1,3",
        "--preprocess",
        "--precision",
        "fp32,int8",
        "--max-drop",
        "0.5",
    ]
    options += ["--calibration", str(tmp_path), "--swap", "gelu=relu", "--bundle"]
    result = CliRunner().invoke(app, ["export", "timm:resnet18", "--to", ",".join(HERE[:2]), "--json", *options])
    assert result.exit_code == 0 and json.loads(result.stdout) == []
    words = seen.pop("words")
    assert seen == {"name": "resnet18_swapped", "root": Path("exports/resnet18_swapped"), "precision": "fp32,int8"}
    assert words[:2] == ["export", "timm:resnet18"] and "--to" not in words and "--json" not in words
    given = [words[i : i + 2] for i, word in enumerate(words) if word.startswith("--")]
    assert ["--max-drop", "0.5"] in given and ["--sizes", "64,64x96"] in given and "--dynamic" not in words
    asked: dict[str, Any] = {}
    monkeypatch.setenv("MIXZOO_ALONE", "1")
    monkeypatch.setattr(sys.modules["mixzoo.export"], "export", lambda **others: asked.update(others) or [])
    assert CliRunner().invoke(app, [*words, "--to", HERE[0]]).exit_code == 0
    assert asked["swap"] == "gelu=relu" and asked["bundle"] and asked["preprocess"] and asked["calibration"] == tmp_path


@pytest.mark.slow
def test_two_runtimes_as_from_a_terminal(tmp_path: Path) -> None:
    words = ["export", "shvit_s1", "--sizes", "64", "--dynamic", "none", "--json", "--to", "onnx,openvino"]
    if TARGETS["openvino"].unavailable():
        pytest.skip("openvino is not installed")
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [item["target"] for item in found] == ["onnx", "openvino"] and all(item["verified"] for item in found)
    assert all((tmp_path / item["target"] / "manifest.json").is_file() for item in found)


def test_a_cause_is_what_was_said_at_last() -> None:
    assert cause("noise\nError: a\nb", 1) == "a b"
    assert cause("noise\nlast\n\n", -6) == "the process died of SIGABRT; the last it printed: last"
    assert cause("", 3) == "the process ended with code 3; the last it printed: nothing"
    assert command(["list"])[1:3] == ["-m", "mixzoo.export.child"]
