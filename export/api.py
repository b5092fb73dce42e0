"""`export`: a model in, verified files out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..zoo.errors import MissingExtraError
from ..zoo.files import atomic_dir, remove
from . import report as reports
from .attempt import PATIENCE, Job, write
from .errors import ExportError
from .prepare import prepare
from .protocol import Target
from .report import Report
from .shapes import AXES, Size, as_axes, as_batches, as_sizes
from .target import get_targets


class IncompleteError(ExportError):
    """Of several targets some failed.

    Attributes:
        reports: of those that did not.
    """

    def __init__(self, message: str, reports: Sequence[Report]) -> None:
        super().__init__(message)
        self.reports = list(reports)


def export(
    model: nn.Module | str,
    to: str | Sequence[str] = ("onnx",),
    out: str | Path | None = None,
    sizes: str | Sequence[int | Size] | None = None,
    batches: str | Sequence[int] = (1,),
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    preprocess: bool = False,
    name: str | None = None,
    opset: int | None = None,
    model_options: Mapping[str, Any] | None = None,
    dynamic: str | Sequence[str] = AXES,
    patience: float | None = PATIENCE,
    say: Callable[[str], None] = lambda text: None,
) -> list[Report]:
    """Write the deploy form of a model for one or more runtimes, run every file there, and compare.

    Axes are left open (batch, height, width) only where runs at other sizes and another batch agree with the model;
    otherwise one file is written for each fixed shape, and the report says why. Files reach ``out`` only if every
    shape passed; see `mixzoo.export.verify` for what passing means.

    Args:
        model: a module, or a name: the zoo's, or else timm's ("timm:NAME" is always timm's). It is not changed.
        to: names of targets, see `TARGETS`; "all" for all of them.
        out: folder for the files, manifest.json and summary.md; "exports/<model's name>" by default. With several
            targets each has a folder of its own in it. A folder that holds another model's export is not mixed with
            it: a sub-folder with the model's name is used.
        sizes: input sizes to verify, as "224,192x256", sides or (height, width) pairs; the model's own by default.
        batches: batch sizes to verify, as "1,3" or numbers.
        checkpoint: file with the weights.
        pretrained: take the published weights. Without these and a checkpoint, a model given by its name is filled
            deterministically, which serves to compare and to time, and a module keeps what it has.
        preprocess: put the normalisation in the graph; the input is then RGB in [0, 1].
        name: of the model in files and reports.
        opset: of ONNX; the exporter's default if None.
        model_options: for building a model by name, such as {"num_classes": 10}.
        dynamic: axes that may be left open, of "batch", "height" and "width", as "batch,height,width" or names; "none"
            or () for files of fixed shapes only, which are written faster, and run faster where windows or position
            tables follow the size.
        patience: seconds of processor time after which a set of open axes is given up; None for no limit.
        say: called with a few words at each step.

    Returns:
        A report per target.

    Raises:
        UnknownNameError, UnknownModelError: a target, axis or model that does not exist.
        MissingExtraError: packages that the only target needs are not installed.
        CheckpointError: weights that cannot be had or do not fit.
        ShapeError: sizes or batches that cannot be read.
        ExportError: a target failed, and left nothing behind. Of several targets the others are finished, and an
            `IncompleteError` has their reports.
    """
    targets = get_targets(to)
    if opset is not None and "onnx" not in (target.name for target in targets):
        raise ExportError(f"opset {opset} is for onnx, which is not among the targets: leave it out.")
    wanted_sizes = None if sizes is None else as_sizes(sizes)
    wanted_batches, axes = as_batches(batches), as_axes(dynamic)
    prepared = prepare(model, _file_name(name), checkpoint, pretrained, preprocess, model_options)
    options = {"onnx": {"opset": opset}}
    job = Job(prepared, wanted_sizes or (prepared.native,), wanted_batches, options, axes, say, patience)
    root = Path(out) if out is not None else Path("exports") / prepared.name
    done, failed = [], []
    for target in targets:
        try:
            done.append(_export_one(job, target, root / target.name if len(targets) > 1 else root))
        except (ExportError, MissingExtraError) as error:
            if len(targets) == 1 and isinstance(error, MissingExtraError):
                raise
            failed.append(f"{prepared.name} could not be exported to {target.name}: {error}")
            if len(targets) == 1:
                raise ExportError(failed[0]) from error
            say(failed[-1])
    if failed:
        raise IncompleteError(" ".join(failed), done)
    return done


def _export_one(job: Job, target: Target, folder: Path) -> Report:
    if reason := target.unavailable():
        raise MissingExtraError(reason)
    previous = reports.read(folder)
    if previous is not None and _identity(previous) != (job.prepared.name, target.name):
        folder = folder / job.prepared.name
        previous = reports.read(folder)
    with atomic_dir(folder) as temporary:
        content = reports.manifest(job.prepared, target, write(job, target, temporary))
        reports.write(temporary, content)
    _remove_superseded(folder, previous, content)
    return Report(folder, content)


def _identity(content: Mapping[str, Any]) -> tuple[Any, Any]:
    return content.get("model"), content.get("target")


def _remove_superseded(folder: Path, previous: Mapping[str, Any] | None, content: Mapping[str, Any]) -> None:
    """Delete files of an earlier export of the same model that the new one did not replace."""
    for name in _files(previous or {}) - _files(content):
        if name == Path(name).name:
            remove(folder / name)


def _files(content: Mapping[str, Any]) -> set[str]:
    items = [i for a in content.get("artifacts", []) for i in (a, *a.get("companions", []))]
    return {str(item["file"]) for item in items}


def _file_name(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"[\w][\w.\-]*", name):
        raise ExportError(f"name {name!r} cannot name a file: use letters, digits, dots, dashes and underscores.")
    return name
