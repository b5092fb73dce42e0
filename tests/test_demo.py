"""The demo: its parts on made-up results, and the whole of it on a model that trains in seconds."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mixzoo import deploy
from mixzoo.bench.subjects import relative_error
from mixzoo.train import demo, load_recipe, load_run
from mixzoo.train.demo import DemoError, run_demo
from mixzoo.train.demo_report import IMAGES, PICTURE, REPORT, FormResult, Outcome, write_picture
from mixzoo.train.models import build_model
from mixzoo.train.pixels import Pixels, as_pixels, digits
from mixzoo.zoo.fill import fill_
from mixzoo.zoo.timing import Timing
from PIL import Image
from rich.console import Console
from torchvision.transforms.functional import pil_to_tensor

SHORT = (
    "model.checkpoint=null",
    "model.kwargs={depths: [1, 1, 1], dims: [16, 24, 32], partial_dims: [null, 8, 8]}",
    "data.size=32",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
)


def logits_of(labels: torch.Tensor, wrong: int) -> torch.Tensor:
    """Logits (N, 10) that are sure of the right class, but for the last ``wrong`` images."""
    said = labels.clone()
    said[len(labels) - wrong :] = (said[len(labels) - wrong :] + 1) % 10
    return 5.0 * torch.nn.functional.one_hot(said, 10).float()


@pytest.fixture(scope="module")
def data() -> Pixels:
    return digits()


@pytest.fixture
def eager(data: Pixels) -> FormResult:
    return FormResult("PyTorch", logits_of(data.test.labels, 3), data.test.labels)


def steps() -> Any:
    return demo._Steps(Console(file=io.StringIO()))


def exported(monkeypatch: pytest.MonkeyPatch, answers: torch.Tensor, axes: tuple[str, ...] = ("batch",)) -> Any:
    """A report whose file gives ``answers``, whatever the images, and notes its batches."""
    calls: list[int] = []

    def run(x: np.ndarray) -> np.ndarray:
        start = sum(calls)
        calls.append(len(x))
        return answers[start : start + len(x)].numpy()

    monkeypatch.setattr(demo, "get_target", lambda name: SimpleNamespace(load=lambda path: run))
    return SimpleNamespace(target="onnx", path=Path("x.onnx"), dynamic_axes=axes, calls=calls)


# parts


def test_scores_count_the_test_images(eager: FormResult) -> None:
    assert (eager.correct, eager.score()) == (447, "99.33% (447 of 450)")
    fast = replace(eager, timing=Timing((1.0, 2.0, 3.0), (2.0,)))
    slow = replace(eager, timing=Timing((4.0, 4.0, 4.0), (4.0,)))
    assert fast.speed(slow) == "median 2.00 ms, p90 2.80 ms, 2.00 times as fast as PyTorch"
    with pytest.raises(ValueError, match="not timed"):
        fast.speed(eager)


@pytest.mark.parametrize(("axes", "batches"), [(("batch",), [50] * 9), ((), [1] * 450)])
def test_every_test_image_is_classified_in_batches_that_the_file_takes(
    monkeypatch: pytest.MonkeyPatch, data: Pixels, eager: FormResult, axes: tuple[str, ...], batches: list[int]
) -> None:
    report = exported(monkeypatch, eager.logits * (1 + 1e-6), axes)
    runtime = demo._classify(report, data, eager, steps())
    assert report.calls == batches
    assert (runtime.correct, runtime.differing) == (447, 0)
    assert 0 < runtime.error < 1e-5


@pytest.mark.parametrize("wrong", [2, 4])
def test_another_accuracy_in_the_runtime_fails_the_demo(
    monkeypatch: pytest.MonkeyPatch, data: Pixels, eager: FormResult, wrong: int
) -> None:
    report = exported(monkeypatch, logits_of(data.test.labels, wrong))
    with pytest.raises(DemoError, match=rf"ONNX Runtime gets .*{450 - wrong} of 450.*, but PyTorch .*447 of 450"):
        demo._classify(report, data, eager, steps())


def test_other_logits_with_the_same_accuracy_fail_the_demo(
    monkeypatch: pytest.MonkeyPatch, data: Pixels, eager: FormResult
) -> None:
    report = exported(monkeypatch, eager.logits * 1.01)
    with pytest.raises(DemoError, match=r"logits of ONNX Runtime differ by 1\.0e-02"):
        demo._classify(report, data, eager, steps())


def test_the_picture_is_a_png_that_depends_on_the_predictions(tmp_path: Path, data: Pixels, eager: FormResult) -> None:
    right = replace(eager, logits=logits_of(data.test.labels, 0))
    files = [write_picture(tmp_path / f"{i}.png", data, form) for i, form in enumerate((eager, right, eager))]
    content = [f.read_bytes() for f in files]
    assert all(c.startswith(b"\x89PNG") and len(c) > 20_000 for c in content)
    assert content[0] == content[2] != content[1]


def test_too_low_an_accuracy_fails_the_demo_and_leaves_no_report(tmp_path: Path) -> None:
    for name in (REPORT, PICTURE, f"{demo.RECIPE}.onnx", "manifest.json"):
        (tmp_path / name).write_text("of an earlier demo")
    (tmp_path / "notes.txt").write_text("not the demo's")
    with pytest.raises(DemoError, match=r"the test accuracy is [\d.]+%, and must be at least 97%"):
        run_demo(tmp_path, [*SHORT, "schedule.epochs=1"], Console(file=io.StringIO()))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "log.csv",
        "model.safetensors",
        "notes.txt",
        "steps.csv",
        "train.json",
    ]


@pytest.mark.parametrize("batch", [1, 66, 128])
def test_the_recipes_model_deploys_at_the_size_and_batches_of_the_demo(batch: int) -> None:
    recipe = load_recipe(demo.RECIPE)
    model = fill_(build_model(recipe, 10)).eval()
    x = torch.randn(batch, 1, recipe.data.size, recipe.data.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted, got = model(x), deploy(model)(x)
    assert relative_error(got, wanted) < demo.DEPLOY_TOLERANCE < relative_error(wanted.roll(1, dims=1), wanted)


# the whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, str]:
    """A short demo: what it found, its folder, and what it said."""
    folder, screen = tmp_path_factory.mktemp("demo"), io.StringIO()
    return run_demo(folder, SHORT, Console(file=screen, width=200), floor=0.0), folder, screen.getvalue()


@pytest.mark.slow
def test_the_demo_says_what_it_does_at_each_step(whole: tuple[Outcome, Path, str]) -> None:
    outcome, folder, said = whole
    assert re.findall(r"^(\d)/6 ", said, re.M) == list("123456")
    for expected in ("test accuracy of the saved checkpoint", "0 predictions differ", "ONNX Runtime  ", "Done in"):
        assert expected in said
    assert len(outcome.seconds) == 6 and str(folder / REPORT) in said


@pytest.mark.slow
def test_the_demo_leaves_what_it_promises(whole: tuple[Outcome, Path, str]) -> None:
    outcome, folder, _ = whole
    names = {p.name for p in folder.iterdir()}
    assert {
        f"{demo.RECIPE}.onnx",
        "manifest.json",
        "model.safetensors",
        "train.json",
        "log.csv",
        PICTURE,
        REPORT,
    } <= names
    report = (folder / REPORT).read_text()
    assert all(f"`{name}`" in report for name in names - {REPORT})
    assert all(form.name in report and form.score() in report for form in outcome.forms)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["preprocess"]["in_graph"] and manifest["artifacts"][0]["file"] == f"{demo.RECIPE}.onnx"
    assert "checkpoint model.safetensors" in manifest["weights"]
    data = as_pixels(outcome.result.data, outcome.result.recipe.data)
    assert len(list((folder / IMAGES / "test").rglob("*.png"))) == len(data.test)
    first = folder / IMAGES / "test" / data.classes[int(data.test.labels[0])] / "00000.png"
    assert torch.allclose(pil_to_tensor(Image.open(first))[0] / 255, data.test.images[0, 0], atol=1 / 255)


@pytest.mark.slow
def test_all_forms_of_the_demo_agree_and_were_timed(whole: tuple[Outcome, Path, str]) -> None:
    outcome, folder, _ = whole
    eager, deployed, runtime = outcome.forms
    assert eager.correct == deployed.correct == runtime.correct
    assert 0 < deployed.error < 1e-5 and 0 < runtime.error < 1e-4
    assert all(form.timing is not None and form.timing.median > 0 for form in outcome.forms)
    assert load_run(folder).record["test_accuracy"] == pytest.approx(eager.accuracy)
