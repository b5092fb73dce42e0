"""The benchmark: its arithmetic on known numbers, its honesty about what it compares, and what it writes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from mixzoo.bench import forms, report, run, subjects
from mixzoo.bench.macs import count_macs
from mixzoo.bench.memory import peak_memory
from mixzoo.bench.plot import plot
from mixzoo.blocks.mixers import MIXERS
from mixzoo.zoo import timing
from mixzoo.zoo.errors import MixzooError, UnknownModelError, UnknownNameError
from mixzoo.zoo.machine import describe_machine
from mixzoo.zoo.registry import create_model, get_variant
from mixzoo.zoo.timing import Timing, geometric_mean, measure, paired_speedup, percentile, speedup, torch_threads
from torch import nn

QUICK = run.Settings(forms=("eager", "deploy"), size=(64, 96), threads=1, rounds=2, memory=False)


def measured(name: str, settings: run.Settings = QUICK) -> dict[str, run.Row]:
    return {row.label: row for row in next(run.bench([name], settings))}


# timing


def test_percentiles_and_ratios_of_known_numbers() -> None:
    slow, fast = Timing((10.0, 20.0, 30.0), (10.0, 30.0, 20.0)), Timing((5.0, 5.0, 40.0), (5.0, 10.0, 40.0))
    assert (slow.median, fast.median) == (20.0, 5.0)
    assert percentile(tuple(map(float, range(1, 12))), 90) == 10.0
    assert speedup(slow, fast) == 4.0
    assert paired_speedup(slow, fast) == 2.0  # of 2, 3 and 0.5
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_measure_tells_a_slow_candidate_from_a_fast_one() -> None:
    timings = measure({"fast": partial(time.sleep, 0.004), "slow": partial(time.sleep, 0.024)}, 5, 0.0)
    assert timings["fast"].median >= 4.0
    assert speedup(timings["slow"], timings["fast"]) > 2.0
    assert len(timings["fast"].rounds) == 5


def test_rounds_are_interleaved_and_shuffled() -> None:
    seen: list[str] = []
    measure({name: partial(seen.append, name) for name in "abc"}, rounds=20, turn_seconds=0.0)
    turns = [seen[i] for i in range(len(seen) - 20 * 3 * 2, len(seen), 2)]  # a turn here is two calls: one untimed
    rounds = [turns[i : i + 3] for i in range(0, len(turns), 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(map(tuple, rounds))) > 1


def test_slow_calls_have_none_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SLOW", 0.0)
    seen: list[str] = []
    measured = measure({name: partial(seen.append, name) for name in "ab"}, rounds=5)
    assert len(seen) == 2 * (1 + 5) and all(len(t.calls) == 5 for t in measured.values())


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


# MACs and memory


class Attend(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = x.flatten(2).transpose(1, 2)[:, None]  # (B, 1, N, C)
        return nn.functional.scaled_dot_product_attention(q, q, q)


class MatrixVector(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[0, 0] @ x[0, 0, 0]


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 16, 16), 16 * 16 * 8 * 3 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 16, 16), 16 * 16 * 8 * 9),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), (2, 3, 4, 4), 2 * 480),
        (Attend(), (1, 8, 4, 4), 2 * 16 * 16 * 8),
        (MatrixVector(), (1, 1, 6, 6), 36),
        (nn.BatchNorm2d(3), (1, 3, 4, 4), 0),
    ],
)
def test_macs_of_known_layers(model: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert count_macs(model, *shape) == macs


@pytest.mark.parametrize("mixer", MIXERS)
def test_macs_of_any_mixer_grow_with_the_map(mixer: str) -> None:
    options = {"depths": (2, 1, 1, 1), "dims": (16, 32, 48, 64), "num_classes": 5, "img_size": 64}
    model = create_model("metaformer", mixer=mixer, **options)
    small, large = (count_macs(model, 1, 3, side, side) for side in (64, 128))
    assert 0 < 2 * small < large


@pytest.mark.parametrize("name", ["shvit_s1", "efficientvit_m0", "poolformer_s12", "van_b0"])
def test_macs_are_those_of_the_paper(name: str) -> None:
    variant = get_variant(name)
    assert variant.macs_g is not None
    model = create_model(name).train()
    counted = count_macs(model, 1, 3, variant.resolution, variant.resolution) / 1e9
    decimals = len(str(variant.macs_g).partition(".")[2])
    assert counted == pytest.approx(variant.macs_g, rel=0.03, abs=0.5 * 10**-decimals)  # papers round
    assert model.training


def test_peak_memory_sees_what_a_call_allocates() -> None:
    large = peak_memory(partial(partial, torch.ones, 2**24))  # 64 MiB of float32
    small = peak_memory(partial(partial, torch.ones, 16))
    assert large is not None and small is not None
    assert 60 < (large - small) / 2**20 < 90


def test_peak_memory_of_a_build_that_fails_is_unknown() -> None:
    assert peak_memory(partial(torch.ones, -1)) is None


# whole runs


def test_rows_against_timm_hold_the_same_model() -> None:
    rows = measured("shvit_s1", replace(QUICK, against="timm"))
    assert list(rows) == ["timm eager", "mixzoo eager", "mixzoo deploy"]
    for label, row in rows.items():
        assert row.reason is None, row.reason
        assert row.median_ms and row.p90_ms and row.p90_ms >= row.median_ms
        assert row.throughput == pytest.approx(1000 / row.median_ms, rel=0.01)
        assert (row.height, row.width, row.threads, row.baseline) == (64, 96, 1, "timm eager")
        assert label == "timm eager" or (row.error is not None and row.error < 1e-4)
    assert rows["timm eager"].speedup == 1.0
    assert rows["mixzoo deploy"].params_m == pytest.approx(6.331, abs=0.01)
    assert rows["mixzoo deploy"].macs_g and rows["mixzoo deploy"].top1 == get_variant("shvit_s1").top1


def test_another_model_in_timms_place_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(nn.Module):
        """timm's model with its classes in another order: a valid model, and not the one compared with."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x).flip(-1)

        def forward_intermediates(self, x: torch.Tensor, **options: object) -> list[torch.Tensor]:
            return [m.flip(-1) for m in self.model.forward_intermediates(x, **options)]

        def state_dict(self, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
            return self.model.state_dict()

    true = subjects.make_timms
    monkeypatch.setattr(subjects, "make_timms", lambda name: Other(true(name)))
    rows = measured("shvit_s1", replace(QUICK, against="timm"))
    for label in ("mixzoo eager", "mixzoo deploy"):
        assert rows[label].median_ms is None
        assert rows[label].error is not None and rows[label].error > 0.05
        assert "not timed" in (rows[label].reason or "") and rows[label].failed


def test_poolformer_is_compared_before_timms_other_head() -> None:
    rows = measured("poolformer_s12", replace(QUICK, against="timm", forms=("eager",)))
    row = rows["mixzoo eager"]
    assert row.reason is None
    assert row.error is not None and row.error < 1e-4
    assert "maps" in (row.compared or "")


def test_a_model_that_timm_lacks_is_said_so() -> None:
    rows = measured("van_b0", replace(QUICK, against="timm", forms=("eager", "deploy")))
    assert rows["timm eager"].reason == "timm has no van_b0 of its own"
    assert rows["mixzoo deploy"].baseline == "mixzoo eager"


def test_a_form_that_cannot_run_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> forms.Run:
        raise RuntimeError("no such instruction\nsecond line")

    monkeypatch.setitem(forms.FORMS, "compile", replace(forms.FORMS["compile"], unavailable=lambda: "no compiler"))
    monkeypatch.setitem(forms.FORMS, "onnxruntime", replace(forms.FORMS["onnxruntime"], build=broken))
    rows = measured("shvit_s1", replace(QUICK, forms=("eager", "compile", "onnxruntime")))
    assert rows["mixzoo eager"].median_ms
    assert rows["mixzoo compile"].reason == "no compiler"
    assert rows["mixzoo onnxruntime"].reason == "RuntimeError: no such instruction"
    assert [rows[f"mixzoo {form}"].failed for form in ("eager", "compile", "onnxruntime")] == [False, False, True]


@pytest.mark.slow
def test_onnxruntime_is_compared_with_timms_own_file() -> None:
    settings = replace(QUICK, forms=("deploy", "onnxruntime"), against="timm", memory=True)
    rows = measured("shvit_s1", settings)
    assert list(rows) == ["timm eager", "timm onnxruntime", "mixzoo deploy", "mixzoo onnxruntime"]
    assert all(row.reason is None for row in rows.values()), [row.reason for row in rows.values()]
    assert rows["mixzoo onnxruntime"].baseline == "timm onnxruntime"
    assert all(20 < (row.peak_memory_mb or 0) < 500 for row in rows.values())  # 25 MB of weights
    assert set(report.summaries(rows.values())) == {"deploy", "onnxruntime"}


@pytest.mark.parametrize("wrong", [{"forms": ("eagre",)}, {"against": "tim"}])
def test_unknown_names_suggest_near_ones(wrong: dict[str, object]) -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean '(eager|timm)'"):
        replace(QUICK, **wrong)  # type: ignore[arg-type]


def test_settings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(run.SettingsError):
        replace(QUICK, rounds=0)
    with pytest.raises(run.SettingsError):
        next(run.bench(["shvit_s1"], replace(QUICK, against="timm"), checkpoint=tmp_path / "w.pth"))
    with pytest.raises(UnknownModelError):
        next(run.bench(["shvit_s9"], QUICK))


# reports

ROWS = [
    run.Row(
        "a", "timm", "eager", 1, 64, 64, 2, 12.0, 13.0, 83.3, baseline="timm eager", speedup=1.0, paired_speedup=1.0
    ),
    run.Row("a", "mixzoo", "deploy", 1, 64, 64, 2, 6.0, 7.0, 166.7, 80.5, 9, "timm eager", 2.0, 2.1, 1e-6, top1=70.0),
    run.Row("b", "mixzoo", "deploy", 1, 64, 64, 2, 3.0, 4.0, 333.3, 40.5, 9, "timm eager", 8.0, 8.4, 1e-6, top1=80.0),
    run.Row("b", "mixzoo", "compile", 1, 64, 64, 2, reason="no compiler"),
]


def test_summaries_are_geometric_means_with_the_slowest_named() -> None:
    found = report.summaries(ROWS)
    assert list(found) == ["deploy"]
    assert found["deploy"]["geometric_mean"] == pytest.approx(4.0)
    assert found["deploy"]["paired_geometric_mean"] == pytest.approx(4.2)
    assert (found["deploy"]["slowest"], found["deploy"]["slowest_speedup"], found["deploy"]["models"]) == ("a", 2.0, 2)


def test_json_lines_come_back_and_can_be_joined(tmp_path: Path) -> None:
    file = report.write_json_lines(tmp_path / "b.jsonl", ROWS, describe_machine())
    lines = file.read_text().splitlines()
    assert len(lines) == len(ROWS)
    machine = json.loads(lines[0])["machine"]
    assert machine["cores"] and machine["versions"]["torch"] == torch.__version__.split("+")[0]
    file.write_text(file.read_text() * 2)
    assert report.read_json_lines(file) == ROWS * 2


@pytest.mark.parametrize("line", ["no json", "[]", '{"record": "other"}', '{"record": "timing", "model": "a"}'])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "b.jsonl"
    file.write_text(report.json_lines(ROWS[:1], {}) + line + "\n")
    with pytest.raises(MixzooError, match="line 2"):
        report.read_json_lines(file)


@pytest.mark.parametrize(("name", "magic"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml")])
def test_plot_writes_the_picture(tmp_path: Path, name: str, magic: bytes) -> None:
    content = plot(ROWS, tmp_path / name).read_bytes()
    assert content.startswith(magic)
    assert plot(ROWS, tmp_path / name).read_bytes() == content


def test_svg_names_the_models_that_have_points(tmp_path: Path) -> None:
    text = plot(ROWS[1:], tmp_path / "p.svg").read_text()
    assert ">a<" in text and ">b<" in text and ">mixzoo deploy<" in text
    assert "compile" not in text


def test_plot_refuses_other_endings_and_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(MixzooError, match=r"\.png or \.svg"):
        plot(ROWS, tmp_path / "p.jpg")
    with pytest.raises(MixzooError, match="Nothing to draw"):
        plot(ROWS[3:], tmp_path / "p.png")
    assert not list(tmp_path.iterdir())
