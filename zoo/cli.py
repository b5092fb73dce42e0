"""The `mixzoo` command: the only place that knows every floor. It reads arguments and calls; nothing is computed here.

Exit codes: 0 done, 1 the job failed, 2 wrong usage. Every error is one sentence with its remedy; ``--debug`` (or
MIXZOO_DEBUG=1) shows the traceback instead. Results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..export import commands as export_commands
from .console import (
    Checkpoint,
    Commands,
    Json,
    Model,
    Pretrained,
    numbers,
    progress,
    shares,
    show,
    show_json,
    split,
)
from .errors import MixzooError

app = typer.Typer(
    cls=Commands,
    name="mixzoo",
    help="Vision backbones for phones, browsers and edge boxes: list, inspect, run, export and time them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"mixzoo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="MIXZOO_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Options that come before the command."""
    ctx.obj = _subject


@app.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(metavar="[GLOB]", help="A glob or a part of the name.")] = "",
    family: Annotated[str, typer.Option(help="Only this family.")] = "",
    mixer: Annotated[str, typer.Option(help="Only models with this token mixer.")] = "",
    mixers: Annotated[bool, typer.Option("--mixers", help="List the token mixers instead.")] = False,
    as_json: Json = False,
) -> None:
    """List the models of the zoo. Parameters, MACs and accuracies are those that the papers state."""
    from . import listing

    if mixers:
        found = listing.mixer_rows(pattern)
        show_json(found) if as_json else show(listing.mixers_table(found))
        return
    rows = [listing.summary(variant) for variant in listing.find_models(pattern, family, mixer)]
    show_json(rows) if as_json else show(listing.models_table(rows))


@app.command()
def info(model: Model, as_json: Json = False) -> None:
    """Tell everything known of one model."""
    from . import listing

    facts = listing.facts(model)
    show_json(facts) if as_json else show(listing.facts_table(facts))


@app.command()
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
    topk: Annotated[int, typer.Option(min=1, help="Classes to show for each image.")] = 5,
    as_json: Json = False,
) -> None:
    """Classify images with real weights."""
    from .predict import predict as classify
    from .predict import predictions_table

    backbone, labels = _load(model, checkpoint, pretrained)
    found = classify(backbone, images, topk, labels)
    show_json([p.record() for p in found]) if as_json else show(predictions_table(found))


def _load(name: str, checkpoint: Path | None, pretrained: bool) -> tuple[Any, list[str] | None]:
    """(model in eval mode, names of its classes where the weights tell). A training run knows its own preprocessing."""
    from .loading import load_model

    run = _run_folder(checkpoint)
    if run is None or pretrained:
        return load_model(name, checkpoint, pretrained), None
    from ..train.checkpoint import load_run

    trained = load_run(run)
    if name != trained.recipe.model.name:
        raise typer.BadParameter(f"{run} trained {trained.recipe.model.name}, not {name}.", param_hint="--checkpoint")
    return trained.model, [str(c) for c in trained.record["classes"]]


def _run_folder(checkpoint: Path | None) -> Path | None:
    """The folder of the training run that ``checkpoint`` is, or is the weights of."""
    from .trained import RECORD

    folder = checkpoint.parent if checkpoint and checkpoint.suffix == ".safetensors" else checkpoint
    return folder if folder and (folder / RECORD).is_file() else None


def _subject(model: str, checkpoint: Path | None, pretrained: bool) -> dict[str, Any]:
    """What tells `mixzoo.export.export` which model, and which weights, are meant."""
    if not pretrained and (run := _run_folder(checkpoint)):
        from ..train.models import WEIGHTS

        return {"model": _load(model, checkpoint, pretrained)[0], "name": model, "checkpoint": run / WEIGHTS}
    options = {"model_options": _options_of(model, checkpoint)} if checkpoint else {}
    return {"model": model, "checkpoint": checkpoint, "pretrained": pretrained, **options}


def _options_of(model: str, checkpoint: Path) -> dict[str, int]:
    """What must be told to build ``model`` for ``checkpoint``; nothing where it is no model of the zoo."""
    from .loading import checkpoint_options
    from .registry import VARIANTS

    return checkpoint_options(model, checkpoint) if model in VARIANTS else {}


app.command()(export_commands.export)
app.command()(export_commands.check)
app.command()(export_commands.matrix)
app.command()(export_commands.benchmark)


@app.command()
def bench(
    models: Annotated[list[str] | None, typer.Argument(help="Names or globs of models.", show_default=False)] = None,
    form: Annotated[str, typer.Option(help="Of eager, deploy, compile, onnxruntime.")] = "eager,deploy",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch and of ONNX Runtime.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Images, or maps, a call.")] = 1,
    size: Annotated[str, typer.Option(help="224 or 192x256; each model's own by default.")] = "",
    against: Annotated[str, typer.Option(help="A baseline with the same weights: timm.")] = "",
    runs: Annotated[int, typer.Option(min=1, help="Interleaved turns that every form gets.")] = 30,
    checkpoint: Checkpoint = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each form in a process of its own.")] = True,
    op: Annotated[str, typer.Option(help="A functional op instead of models: its implementations side by side.")] = "",
    sides: Annotated[str, typer.Option(help="With --op: maps of side x side tokens.")] = "14,28,56,112,128",
    heads: Annotated[str, typer.Option(help="With --op: head counts.")] = "2,4",
    device: Annotated[str, typer.Option(help="With --op: cpu, cuda or mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="With --op: float32, bfloat16 or float16.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="Write JSON lines to this file, model by model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Time models in their forms, or the implementations of an op, in interleaved turns, and compare medians."""
    from ..bench import report, run
    from ..export.shapes import one_size
    from .listing import expand
    from .machine import describe_machine

    if op:
        if models:
            raise typer.BadParameter("give models or --op, not both.")
        maps = {"sides": numbers(sides, "--sides"), "heads": numbers(heads, "--heads"), "batch": batch}
        _bench_op(op, {**maps, "device": device, "dtype": dtype, "threads": threads}, out, as_json)
        return
    if not models:
        raise typer.BadParameter("name a model, or an op with --op.", param_hint="MODELS")
    settings = run.Settings(split(form), threads, batch, one_size(size), against or None, runs, memory)
    names = expand(models)
    machine, rows = describe_machine(), []
    with progress(run.count_steps(names, settings)) as step:
        for measured in run.bench(names, settings, checkpoint, step):
            rows += measured
            if out:
                report.write_json_lines(out, rows, machine)
    if as_json:
        typer.echo(report.json_lines(rows, machine), nl=False)
    else:
        show(report.full_report(rows, machine))
    broken = [f"{row.model} {row.label}" for row in rows if row.failed]
    if broken:
        raise MixzooError(f"{', '.join(broken)} could not be timed: the table says why.")
    if not any(row.median_ms for row in rows):
        raise MixzooError("Nothing could be timed: the table says why.")


def _bench_op(name: str, options: dict[str, Any], out: Path | None, as_json: bool) -> None:
    from ..bench import op_report, ops
    from .files import atomic_write
    from .machine import describe_machine

    settings = ops.OpSettings(**options)
    machine, rows = describe_machine(), []
    with progress(ops.count_steps(settings)) as step:
        for measured in ops.bench_op(name, settings, step):
            rows += measured
            if out:
                atomic_write(out, op_report.json_lines(rows, machine))
    if as_json:
        typer.echo(op_report.json_lines(rows, machine), nl=False)
    else:
        show(op_report.full_report(rows, machine))


@app.command()
def plot(
    source: Annotated[
        Path, typer.Argument(help="What `bench --out` wrote, or the folder of a run.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="The picture: .png or .svg; bench.png, or curves.png in the run.")
    ] = None,
) -> None:
    """Draw published top-1 accuracy against measured latency, or the curves of a training run."""
    from ..bench.plot import plot as draw
    from ..bench.report import read_json_lines

    if source.is_dir():
        from ..train.curves import plot_run

        typer.echo(f"Wrote {plot_run(source, out or source / 'curves.png')}")
    else:
        typer.echo(f"Wrote {draw(read_json_lines(source), out or Path('bench.png'))}")


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's name, a model's that a recipe lists, or a YAML file.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as optim.lr=1e-3.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the weights, the logs and the record.")] = Path("runs/latest"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and what it costs.")] = False,
) -> None:
    """Train a model as a recipe describes."""
    from ..train import load_recipe
    from ..train import train as run

    wanted = load_recipe(recipe, overrides or [])
    if dry_run:
        from ..train.plan import make_plan, show_plan

        show(show_plan(make_plan(wanted)))
        return
    result = run(wanted, out=out, resume=resume)
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, one speaks
        typer.echo(f"{100 * result.accuracy:.2f} % of the test images are right; the run is in {result.checkpoint}")


@app.command("eval")
def eval_(
    model: Annotated[str, typer.Argument(help="A model's name, or the folder of a run.", show_default=False)],
    data: Annotated[str, typer.Option(help="A folder with one for each class, or a source of recipes.")] = "",
    root: Annotated[Path | None, typer.Option(help="Folder of the source.")] = None,
    split: Annotated[str, typer.Option(help="Split of the source; the one that recipes test on by default.")] = "",
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
    size: Annotated[int, typer.Option(min=0, help="Pixels per side; the model's own by default.")] = 0,
    batch: Annotated[int, typer.Option(min=2, help="Images a call.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure a model or a run on labelled images: top-1, top-5, loss, speed."""
    from ..train.judge import Wanted, judge

    scores = judge(model, Wanted(data, root, split, size, batch, workers), checkpoint, pretrained)
    if as_json:
        show_json(scores.record())
        return
    typer.echo(
        f"{scores.images} images: top-1 {scores.top1:.2%}, top-5 {scores.top5:.2%}, loss {scores.loss:.4f}, "
        f"{scores.images_per_s:.0f} images/s"
    )


@app.command()
def extract(
    run: Annotated[Path, typer.Argument(help="Folder of a run that trained elastic.widths.", show_default=False)],
    width: Annotated[
        str, typer.Option(help="Trained widths: one, one per stage or one per block, with commas.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model.", show_default=False)],
    root: Annotated[
        Path | None, typer.Option(help="Folder of the training images, which batch norms of several widths need.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Cut a model of fewer hidden channels out of a run that trained nested widths."""
    from ..train.extract import extract as cut

    found = cut(run, shares(width, "--width"), out, root)
    show_json(found.record()) if as_json else typer.echo(found.sentence())


@app.command()
def compare(
    shell: Annotated[
        str | None, typer.Option(help="The model that every mixer is put into; the recipe's own if left out.")
    ] = None,
    mixers: Annotated[str, typer.Option(help="Names of mixers, separated by commas, or all.")] = "all",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the recipe, for all mixers alike.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs, the figures and the picture.")] = Path("compare"),
    recipe: Annotated[str, typer.Option(help="The settings: a recipe's name or file.")] = "mixers_digits",
    seeds: Annotated[
        str | None, typer.Option(help="Train each mixer with these seeds: mean and standard deviation are shown.")
    ] = None,
) -> None:
    """Train one shell with each token mixer under identical settings, and measure them side by side."""
    from ..train.compare import compare as run
    from ..train.compare import table

    chosen = numbers(seeds, "--seeds") if seeds else None
    show(table(run(shell, split(mixers), out, overrides or [], recipe=recipe, seeds=chosen)))


@app.command()
def scenes(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and annotations.")] = Path("scenes"),
    train: Annotated[int, typer.Option(min=1, help="Pictures to train on.")] = 400,
    val: Annotated[int, typer.Option(min=1, help="Pictures to test on.")] = 100,
    size: Annotated[str, typer.Option(help="Of a picture, height x width.")] = "160x208",
    seed: Annotated[int, typer.Option(min=0, help="What is drawn follows from it.")] = 0,
    source: Annotated[str, typer.Option(help="The items: fashion_mnist or digits.")] = "fashion_mnist",
    root: Annotated[Path | None, typer.Option(help="Folder of Fashion-MNIST's idx files.")] = None,
    classes: Annotated[str, typer.Option(help="Only items of these classes, separated by commas.")] = "",
    backgrounds: Annotated[
        Path | None, typer.Option(help="Folder of photographs; scikit-learn's two by default.")
    ] = None,
) -> None:
    """Make a data set for detectors and segmenters: real items on real photographs, in COCO's and mmseg's layout."""
    from ..export.shapes import one_size
    from ..train.scenes import SceneSettings, make_scenes

    shape = one_size(size) or SceneSettings.size
    settings = SceneSettings(train, val, shape, seed, source, root, backgrounds, split(classes))
    counts = make_scenes(out, settings)
    items = " and ".join(str(sum(count.values())) for count in counts.values())
    typer.echo(
        f"{train} pictures to train on and {val} to test on, with {items} items of {len(counts['train'])} classes, "
        f"are in {out}"
    )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Try every package and runtime here, and name the command that would install the rest."""
    from ..bench import doctor as clinic
    from ..export.target import TARGETS

    with progress() as step:
        diagnosis = clinic.diagnose(TARGETS, step)
    if as_json:
        show_json(diagnosis.record())
    else:
        show(clinic.table(diagnosis))
        typer.echo(f"To install the rest:\n{diagnosis.command}" if diagnosis.command else "Every extra works.")
    if not diagnosis.healthy:
        raise MixzooError("mixzoo cannot work here: install what is marked 'no' among its own packages.")
