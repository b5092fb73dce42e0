"""The main job from end to end: fine-tune on real images, deploy, export, run elsewhere, benchmark, report.

    python -m mixzoo.train.demo --out demo

Takes about two minutes on two cores, and ends with an error if a step does not give what it must: accuracy on the test
images of at least `FLOOR`, the same outputs from the deploy form, and the same accuracy from ONNX Runtime.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from ..bench.forms import Subject, get_form
from ..bench.subjects import relative_error
from ..blocks.deploy import deploy
from ..export import Report, export, get_target
from ..zoo.errors import MixzooError
from ..zoo.files import remove
from ..zoo.machine import describe_machine
from ..zoo.timing import measure, torch_threads
from ..zoo.trained import RECORD
from .checkpoint import Trained, load_run
from .demo_report import IMAGES, PICTURE, REPORT, FormResult, Outcome, write_picture, write_report
from .engine import TrainResult, train
from .logs import EPOCHS, STEPS
from .models import WEIGHTS
from .pixels import Pixels, as_pixels, predict_logits, write_images

RECIPE = "shvit_transfer"
FLOOR = 0.97  # share of test images that must be right
DEPLOY_TOLERANCE = 1e-5  # relative, float32: what a deploy form keeps to
RUNTIME_TOLERANCE = 1e-4  # relative, float32: what an exported file keeps to
THREADS = 1  # on a model this small a second thread waits more than it works
CALIBRATION = 64  # images that show int8 the ranges
BATCH = 50  # images a call when the test images are classified by ONNX Runtime


class DemoError(MixzooError):
    """A step of the demo did not give what it must."""


def run_demo(
    out: str | Path = "demo", overrides: Iterable[str] = (), console: Console | None = None, floor: float = FLOOR
) -> Outcome:
    """Do the whole job and leave everything in ``out``; the results of an earlier demo there are removed first.

    Args:
        out: the folder.
        overrides: ``key=value`` changes to the recipe, such as ``"schedule.epochs=5"``.
        console: where it says what it is doing; standard output if None.
        floor: least share of test images that the trained model must get right.

    Raises:
        DemoError: a result is not what it must be; there is then no report.
        MissingExtraError: a package is not installed.
    """
    folder, steps = Path(out), _Steps(console or Console(highlight=False, soft_wrap=True))
    _clear(folder)
    with steps("Fine-tuning the small SHViT that comes with mixzoo on scikit-learn's handwritten digits"):
        result, trained, pixels, eager = _train(folder, overrides, floor, steps)
    with steps("Deploying: folding batch norms, merging branches"):
        deployed = _deploy(trained, pixels, eager, steps)
    with steps("Exporting to ONNX, and running the file at several sizes and batches to verify it"):
        report = _export(trained, folder, steps)
    with steps(f"Classifying all {len(pixels.test)} test images with ONNX Runtime"):
        runtime = _classify(report, pixels, eager, steps)
    with steps(f"Benchmarking, one image at a time, {THREADS} thread"):
        forms = _benchmark((eager, deployed, runtime), trained.model, folder, pixels.test.images[:1], steps)
    with steps("Drawing predictions, and writing images and the report"):
        write_picture(folder / PICTURE, pixels, runtime)
        _write_images(pixels, folder / IMAGES)
    outcome = Outcome(result, report, forms, steps.seconds, describe_machine(), THREADS)
    write_report(folder / REPORT, outcome)
    total = sum(steps.seconds.values())
    steps.console.print(f"\nDone in {total:.0f} s: see {folder / REPORT} and {folder / PICTURE}", markup=False)
    return outcome


@dataclass
class _Steps:
    """Announces each step with its number, and remembers how long it took."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, title: str) -> Iterator[None]:
        self.console.print(f"\n[bold cyan]{len(self.seconds) + 1}/6[/] [bold]{title}[/]")
        start = time.perf_counter()
        yield
        self.seconds[title] = time.perf_counter() - start

    def say(self, text: str) -> None:
        self.console.print(f"    {text}", markup=False)


def _clear(folder: Path) -> None:
    """Remove what an earlier demo left, so that one that fails leaves nothing that looks good."""
    names = (WEIGHTS, RECORD, EPOCHS, STEPS, REPORT, PICTURE, "manifest.json", "summary.md")
    for path in [*(folder / name for name in names), *folder.glob(f"{RECIPE}*.onnx")]:
        path.unlink(missing_ok=True)
    remove(folder / IMAGES)


def _write_images(data: Pixels, folder: Path) -> None:
    """What lower precisions ask for: images to calibrate with, from training, and all that test."""
    write_images(data.train, data.classes, folder / "calibration", min(CALIBRATION, len(data.train)))
    write_images(data.test, data.classes, folder / "test")


def _require(condition: bool, failure: str) -> None:
    if not condition:
        raise DemoError(f"The demo failed: {failure}.")


def _train(
    folder: Path, overrides: Iterable[str], floor: float, steps: _Steps
) -> tuple[TrainResult, Trained, Pixels, FormResult]:
    """Train, load the checkpoint again, and measure that: what follows is done with the file."""
    result = train(RECIPE, overrides, folder, steps.console)
    trained, pixels = load_run(folder), as_pixels(result.data, result.recipe.data)
    logits = predict_logits(trained.model, pixels.test.images, trained.recipe)
    eager = FormResult("PyTorch", logits, pixels.test.labels)
    steps.say(f"test accuracy of the saved checkpoint: {eager.score()}")
    _require(eager.accuracy >= floor, f"the test accuracy is {eager.accuracy:.2%}, and must be at least {floor:.0%}")
    return result, trained, pixels, eager


def _deploy(trained: Trained, pixels: Pixels, eager: FormResult, steps: _Steps) -> FormResult:
    logits = predict_logits(deploy(trained.model), pixels.test.images, trained.recipe)
    deployed = _compared("PyTorch, deployed", logits, eager)
    steps.say(f"{deployed.score()}; logits differ by at most {deployed.error:.1e}, relative")
    _require(deployed.error <= DEPLOY_TOLERANCE, f"the logits of the deploy form differ by {deployed.error:.1e}")
    return deployed


def _export(trained: Trained, folder: Path, steps: _Steps) -> Report:
    """ONNX with the normalisation in the graph: the file takes pixels in [0, 1]."""
    (report,) = export(trained.model, "onnx", folder, checkpoint=folder / WEIGHTS, preprocess=True, name=RECIPE)
    axes = ", ".join(report.dynamic_axes) or "none"
    steps.say(f"{report.path}: outputs agree to {report.error:.1e}, relative; axes proved dynamic: {axes}")
    return report


def _classify(report: Report, pixels: Pixels, eager: FormResult, steps: _Steps) -> FormResult:
    run = get_target(report.target).load(report.path)
    parts = pixels.test.images.split(BATCH if "batch" in report.dynamic_axes else 1)
    logits = torch.cat([torch.from_numpy(run(part.numpy())) for part in parts])
    runtime = _compared("ONNX Runtime", logits, eager)
    steps.say(f"{runtime.score()}; {runtime.differing} predictions differ from PyTorch's")
    _require(runtime.correct == eager.correct, f"ONNX Runtime gets {runtime.score()}, but PyTorch {eager.score()}")
    _require(runtime.error <= RUNTIME_TOLERANCE, f"the logits of ONNX Runtime differ by {runtime.error:.1e}")
    return runtime


def _compared(name: str, logits: Tensor, eager: FormResult) -> FormResult:
    differing = int((logits.argmax(1) != eager.logits.argmax(1)).sum())
    return FormResult(name, logits, eager.labels, relative_error(logits, eager.logits), differing)


def _benchmark(
    forms: tuple[FormResult, ...], model: nn.Module, folder: Path, image: Tensor, steps: _Steps
) -> tuple[FormResult, ...]:
    """The three forms with their timings; ``image`` is (1, C, H, W)."""
    subject = Subject(make=lambda: model, to_onnx=lambda *_: None, folder=folder)
    with torch_threads(THREADS):
        kinds = zip(forms, ("eager", "deploy", "onnxruntime"), strict=True)
        runs = {form.name: get_form(kind).build(subject, image, THREADS) for form, kind in kinds}
        timings = measure(runs)
    timed = tuple(replace(form, timing=timings[form.name]) for form in forms)
    for form in timed:
        steps.say(f"{form.name:18} {form.speed(timed[0])}")
    return timed


app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="changes to the recipe, such as seed=1")] = None,
    out: Annotated[Path, typer.Option(help="folder for everything that the demo makes")] = Path("demo"),
) -> None:
    """Fine-tune a small trained SHViT on real handwritten digits, deploy, export, verify and time it."""
    try:
        run_demo(out, overrides or ())
    except MixzooError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]Error:[/] {escape(str(error))}")
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
