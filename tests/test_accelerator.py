"""A file that one runtime runs on the processor and on an accelerator is verified on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_doubles import TwiceProgramTarget, attempt, small
from mixzoo.export import VerificationError, export, get_target
from mixzoo.export.protocol import Placed
from mixzoo.export.runtimes.onnx import _PROVIDERS, _placed
from mixzoo.export.target import TARGETS


def test_an_accelerator_is_held_to_what_the_processor_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """... at every shape, and the report tells both apart."""
    wrong = TwiceProgramTarget(lambda ys: [y * (1 + 3e-4) for y in ys])
    with pytest.raises(VerificationError, match=r"by a second torch: with batch 1, 40x40 .* differs .* 3\.0e-04"):
        attempt(small(), tmp_path, wrong, dynamic=())
    monkeypatch.setitem(TARGETS, "program", TwiceProgramTarget(lambda ys: [y * (1 + 5e-5) for y in ys]))
    (report,) = export(small(), "program", tmp_path / "out", sizes="40,48", name="small")
    (item,) = report.manifest["artifacts"]
    assert report.error < 1e-5 < item["elsewhere"]["error"] <= 1e-4
    assert len(item["elsewhere"]["checks"]) == len(item["checks"]) > 2
    text = (report.folder / "summary.md").read_text()
    assert "a second torch at 6 shapes: greatest error 5" in text and "5 operators; on the processor: Shape 1" in text


def test_what_ran_where_is_counted() -> None:
    events: list[dict[str, Any]] = [
        {"cat": "Session", "name": "model_loading", "args": {}},
        {"cat": "Node", "args": {"op_name": "Conv", "provider": "CUDAExecutionProvider"}},
        {"cat": "Node", "args": {"op_name": "Conv", "provider": "CUDAExecutionProvider"}},
        {"cat": "Node", "args": {"op_name": "Shape", "provider": "CPUExecutionProvider"}},
        {"cat": "Node", "args": {"thread_scheduling_stats": ""}},
    ]
    assert _placed(events, "CUDAExecutionProvider") == Placed(nodes=2, rest={"Shape": 1})


def test_placement_is_read_from_what_onnx_runtime_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its profile of a run on the processor, taken for the accelerator."""
    monkeypatch.setitem(_PROVIDERS, "cuda", ["CPUExecutionProvider"])
    (report,) = export(small(), "onnx", tmp_path, sizes="40", dynamic=(), name="small")
    placed = get_target("onnx").placed(report.path, np.zeros((1, 3, 40, 40), np.float32))  # type: ignore[attr-defined]
    assert placed.nodes == report.manifest["artifacts"][0]["nodes"] > 2 and placed.rest == {}
