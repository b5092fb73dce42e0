"""The commands of this floor; `zoo/cli.py` adds them to `mixzoo`, and tells them how a model's weights are found.

``typer.Context.obj`` is ``subject(model, checkpoint, pretrained)``: the arguments of `mixzoo.export.export` that say
which model is meant. A checkpoint may be a training run, which this floor knows nothing of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..zoo.console import Checkpoint, Json, Pretrained, progress, show, show_json, split
from ..zoo.errors import MixzooError
from ..zoo.files import folder_or_temporary

if TYPE_CHECKING:
    from .protocol import Target
    from .report import Report

Swap = Annotated[str, typer.Option(help="Activations and norms to replace: gelu=hardswish,layernorm=batchnorm.")]


def export(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's name; timm:NAME is timm's own.", show_default=False)],
    to: Annotated[str, typer.Option(help="Runtimes, separated by commas, or all.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="Folder for the files; exports/MODEL by default.")] = None,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
    sizes: Annotated[str, typer.Option(help="Sizes to verify: 224,192x256. The model's own by default.")] = "",
    batches: Annotated[str, typer.Option(help="Batches to verify: 1,3.")] = "1",
    dynamic: Annotated[str, typer.Option(help="Axes that may stay open, or none.")] = "batch,height,width",
    preprocess: Annotated[bool, typer.Option("--preprocess", help="Put mean/std normalisation in the graph.")] = False,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set; the exporter's own by default.")] = None,
    precision: Annotated[str, typer.Option(help="Of fp32, fp16, int8.")] = "fp32",
    calibration: Annotated[Path | None, typer.Option(help="Folder of images that int8 is calibrated with.")] = None,
    labelled: Annotated[Path | None, typer.Option(help="Folder with a folder of images for each class.")] = None,
    max_drop: Annotated[float, typer.Option(min=0, help="Points of accuracy that fp16 and int8 may lose.")] = 1.0,
    bundle: Annotated[bool, typer.Option("--bundle", help="Add class names, preprocessing and examples.")] = False,
    classes: Annotated[Path | None, typer.Option(help="With --bundle: names of the classes, one a line.")] = None,
    swap: Swap = "",
    as_json: Json = False,
) -> None:
    """Deploy, export, run what was written and compare; without weights the model is filled, and the report says so."""
    from . import IncompleteError, render
    from . import export as write
    from .process import alone
    from .target import get_targets

    targets = get_targets(split(to))
    apart = not (ctx.find_root().params.get("debug") or alone())
    asked: dict[str, Any] = {"preprocess": preprocess, "opset": opset, "dynamic": dynamic, "precision": precision}
    asked |= {
        "calibration": calibration,
        "labelled": labelled,
        "max_drop": max_drop,
        "bundle": bundle,
        "classes": classes,
        "swap": swap or None,
    }
    asked |= {} if apart else ctx.obj(model, checkpoint, pretrained)
    failure = None
    with progress() as step:
        try:
            if apart:
                reports = _apart(ctx, targets, step)
            else:
                reports = write(to=split(to), out=out, sizes=sizes or None, batches=batches, say=step, **asked)
        except IncompleteError as error:
            reports, failure = error.reports, error
    if as_json:
        show_json([{"folder": str(report.folder), **report.manifest} for report in reports])
    else:
        for report in reports:
            show(render(report))
    if failure:
        raise failure


def _apart(ctx: typer.Context, targets: Sequence[Target], say: Callable[[str], None]) -> list[Report]:
    """Export as ``ctx`` asks, each runtime in a process of its own."""
    from .prepare import known, own_name
    from .separate import separately

    asked = ctx.params
    name = own_name(known(asked["model"]), changed=bool(asked["swap"]))
    words = ["export", *_words(ctx, leave=("to", "out", "as_json"))]
    return separately(words, name, targets, asked["precision"], asked["out"] or Path("exports") / name, say)


def _words(ctx: typer.Context, leave: Sequence[str]) -> list[str]:
    """The arguments of a command as they could be typed, but for those in ``leave`` and those that are the default."""
    words: list[str] = []
    for parameter in ctx.command.params:
        value = ctx.params.get(parameter.name or "")
        if parameter.name in leave or value in (None, parameter.default):
            continue
        flag = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
        words += flag if value is True else [*flag, str(value)]
    return words


def check(
    model: Annotated[str, typer.Argument(help="A model's name; timm:NAME is timm's own.", show_default=False)],
    target: Annotated[str, typer.Option(help="Runtimes, separated by commas, or all.")] = "all",
    sizes: Annotated[str, typer.Option(help="Sizes to capture: 224,192x256. The model's own by default.")] = "",
    dynamic: Annotated[str, typer.Option(help="Axes that stay open: batch,height,width.")] = "none",
    swap: Swap = "",
    as_json: Json = False,
) -> None:
    """Tell which operators of a model a runtime does not take, and where, before anything is installed for it."""
    from .check import check as judge
    from .check import render
    from .errors import RefusedError

    with progress() as step:
        step(f"capturing {model}")
        verdicts = judge(model, target=target, sizes=sizes or None, dynamic=dynamic, swap=swap or None)
    if as_json:
        show_json([verdict.record() for verdict in verdicts])
    else:
        show(render(verdicts))
    if refusing := [verdict.target for verdict in verdicts if not verdict.clean]:
        raise RefusedError(f"{model} cannot be exported to {', '.join(refusing)}: the findings above say why.")


def matrix(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Names or globs; the smallest model of every family by default.", show_default=False),
    ] = None,
    to: Annotated[str, typer.Option(help="Runtimes, separated by commas, or all.")] = "all",
    precision: Annotated[str, typer.Option(help="Of fp32, fp16, int8; int8 needs --calibration.")] = "fp32",
    family: Annotated[str, typer.Option(help="Only this family.")] = "",
    sizes: Annotated[str, typer.Option(help="As in export.")] = "",
    batches: Annotated[str, typer.Option(help="As in export.")] = "1",
    dynamic: Annotated[str, typer.Option(help="As in export.")] = "batch,height,width",
    calibration: Annotated[Path | None, typer.Option(help="Folder of images to find int8's scales with.")] = None,
    labelled: Annotated[
        Path | None, typer.Option(help="Folder of labelled images that fp16 and int8 are judged by.")
    ] = None,
    max_drop: Annotated[float | None, typer.Option(help="Points of top-1 that they may lose.")] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder of weights: for each model a training run or a file of its name.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for matrix.jsonl, matrix.md and matrix.html.")] = Path("matrix"),
    keep: Annotated[Path | None, typer.Option(help="Keep the exported files in this folder.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time; latencies mean most with one.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Of each cell; 0 divides the cores among the jobs.")] = 0,
    time_limit: Annotated[float, typer.Option(help="Seconds that a cell may take.")] = 1800.0,
    memory_limit: Annotated[float, typer.Option(help="GiB that a cell may use; 0 for 0.8 of them all / jobs.")] = 0.0,
    again: Annotated[bool, typer.Option("--again", help="Repeat red cells too.")] = False,
    readme: Annotated[Path | None, typer.Option(help="Put the table into this Markdown file too.")] = None,
) -> None:
    """Export models to every runtime, each cell in a process of its own; a second run takes up where one ended.

    Red cells are results: the command fails only where it cannot do its own work.
    """
    from . import matrix as m
    from .matrix import follow

    settings = m.Settings(sizes, batches, dynamic, calibration, labelled, max_drop, checkpoints=checkpoints)
    limits = m.Limits(time_limit, memory_limit, jobs, threads)
    chosen = m.plan(m.models_of(models or [], family), to, precision, settings)
    book = m.Book(out, readme)
    left = book.take_up(chosen, settings, limits, again)
    try:
        with follow.following(len(left)) as (say, watch):
            m.fill(left, settings, book.store, limits, keep, say, watch)
    finally:
        book.write()
    show(book.table(chosen))
    typer.echo(f"Wrote {', '.join(map(str, book.files))}")


def benchmark(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's name; timm:NAME is timm's own.", show_default=False)],
    to: Annotated[str, typer.Option(help="Runtimes, separated by commas, or all.")] = "all",
    precision: Annotated[str, typer.Option(help="Of fp32, fp16, int8; int8 needs --calibration.")] = "fp32",
    size: Annotated[str, typer.Option(help="224 or 192x256; the model's own by default.")] = "",
    batch: Annotated[int, typer.Option(min=1, help="Images a call.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of PyTorch and of every runtime.")] = 2,
    runs: Annotated[int, typer.Option(min=1, help="Interleaved turns that every format gets.")] = 20,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
    calibration: Annotated[Path | None, typer.Option(help="Folder of images to find int8's scales with.")] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the exported files in this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Export a model to every runtime and time all of them side by side with PyTorch."""
    from ..zoo.machine import describe_machine
    from . import benchmark as b
    from . import matrix as m
    from .prepare import prepare
    from .shapes import one_size

    prepared = prepare(**ctx.obj(model, checkpoint, pretrained))
    shape = b.Shape(batch, one_size(size) or prepared.native, threads, runs)
    weights = ["--checkpoint", str(checkpoint)] if checkpoint else ["--pretrained"] if pretrained else []
    side = "x".join(map(str, shape.size))
    settings = m.Settings(side, str(batch), "none", calibration, weights=tuple(weights))
    plan = m.plan([model], to, precision, settings)
    with folder_or_temporary(out) as folder, progress(len(plan.cells) + runs) as step:
        records = b.export_all(plan, settings, folder, threads, step)
        machine = describe_machine()
        rows = b.benchmark(prepared, records, plan.absent, folder, shape, lambda: step("timing"))
    if as_json:
        show_json(b.record(rows, prepared, shape, machine))
    else:
        show(b.table(rows, prepared, shape, machine))
    if failed := [f"{row.format} {row.precision}" for row in rows if row.status == b.FAILED]:
        raise MixzooError(f"{model} does not work in {', '.join(failed)}: the table says why.")
