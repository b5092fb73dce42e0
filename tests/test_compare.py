"""`mixzoo compare`: equal settings for every mixer, runs that are kept, and reasons where a mixer cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mixzoo.train import compare as comparison
from mixzoo.zoo.errors import MixzooError, UnknownNameError
from mixzoo.zoo.trained import RECORD
from rich.console import Console

SHELL = ["schedule.epochs=1", "schedule.warmup_epochs=0", "data.size=32", "data.batch=256", "compute.threads=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


def run(folder: Path, *mixers: str) -> list[comparison.MixerResult]:
    return comparison.compare("shvit_s1", mixers, folder, SHELL, Console(quiet=True))


def test_mixers_are_trained_alike_and_measured(folder: Path) -> None:
    results = run(folder, "identity", "pool")
    assert [r.mixer for r in results] == ["identity", "pool"]
    assert all(r.reason is None and r.accuracy and r.latency_ms and r.peak_mb and r.macs_g for r in results)
    recipes = [json.loads((folder / r.mixer / RECORD).read_text())["recipe"] for r in results]
    assert [r["model"]["kwargs"].pop("mixer") for r in recipes] == ["identity", "pool"] and recipes[0] == recipes[1]
    assert results[0].params_m == results[1].params_m
    records = [json.loads(line) for line in (folder / comparison.LINES).read_text().splitlines()]
    assert [r["mixer"] for r in records] == ["identity", "pool"]
    assert (folder / comparison.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert len(comparison.table(results).rows) == 2


def test_a_finished_run_is_taken_as_it_is(folder: Path) -> None:
    before = (folder / "pool" / RECORD).stat().st_mtime_ns
    (result,) = run(folder, "pool")
    assert result.accuracy and (folder / "pool" / RECORD).stat().st_mtime_ns == before


def test_seeds_give_a_mean_and_a_spread(folder: Path) -> None:
    settings = [*SHELL, "model.kwargs.depths=[1,1,1,1]", "model.kwargs.dims=[8,16,16,16]", "data.size=64"]
    (result,) = comparison.compare(
        "metaformer", ["pool"], folder, settings, Console(quiet=True), recipe="mixers_digits", seeds=(0, 1)
    )
    first, second = result.accuracies
    assert result.shell == "metaformer" and first != second
    assert result.accuracy == pytest.approx((first + second) / 2)
    assert result.spread == pytest.approx(abs(first - second) / 2**0.5)
    records = [json.loads((folder / f"pool_seed{seed}" / RECORD).read_text()) for seed in (0, 1)]
    assert [r["test_accuracy"] for r in records] == [first, second]
    assert [r["recipe"]["seed"] for r in records] == [0, 1]
    assert "±" in [column.header for column in comparison.table([result]).columns]


def test_a_mixer_that_does_not_fit_is_left_out_with_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise MixzooError("no such thing here")

    monkeypatch.setattr(comparison, "train", broken)
    first, second = run(folder, "random", "identity")
    assert first.reason == "no such thing here" and first.accuracy is None
    assert second.accuracy and second.reason is None


def test_unknown_mixers_are_refused(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match="'pool'"):
        run(folder, "pol")
