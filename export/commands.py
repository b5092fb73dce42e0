"""The commands of this floor; `zoo/cli.py` adds them to `mixzoo`, and tells them how a model's weights are found.

``typer.Context.obj`` is ``subject(model, checkpoint, pretrained)``: the arguments of `mixzoo.export.export` that say
which model is meant. A checkpoint may be a training run, which this floor knows nothing of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..zoo.console import Checkpoint, Json, Pretrained, progress, show, show_json, split


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
    as_json: Json = False,
) -> None:
    """Deploy, export, run what was written and compare; without weights the model is filled, and the report says so."""
    from . import IncompleteError, render
    from . import export as write

    asked: dict[str, Any] = {"preprocess": preprocess, "opset": opset, "dynamic": dynamic, "precision": precision}
    asked |= {"calibration": calibration, "labelled": labelled, "max_drop": max_drop}
    asked |= ctx.obj(model, checkpoint, pretrained)
    failure = None
    with progress() as step:
        try:
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


def check(
    model: Annotated[str, typer.Argument(help="A model's name; timm:NAME is timm's own.", show_default=False)],
    target: Annotated[str, typer.Option(help="Runtimes, separated by commas, or all.")] = "all",
    sizes: Annotated[str, typer.Option(help="Sizes to capture: 224,192x256. The model's own by default.")] = "",
    dynamic: Annotated[str, typer.Option(help="Axes that stay open: batch,height,width.")] = "none",
    as_json: Json = False,
) -> None:
    """Tell which operators of a model a runtime does not take, and where, before anything is installed for it."""
    from .check import check as judge
    from .check import render
    from .errors import RefusedError

    with progress() as step:
        step(f"capturing {model}")
        verdicts = judge(model, target=target, sizes=sizes or None, dynamic=dynamic)
    if as_json:
        show_json([verdict.record() for verdict in verdicts])
    else:
        show(render(verdicts))
    if refusing := [verdict.target for verdict in verdicts if not verdict.clean]:
        raise RefusedError(f"{model} cannot be exported to {', '.join(refusing)}: the findings above say why.")
