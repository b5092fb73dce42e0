"""`export`: a model in, verified files out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..zoo.errors import MissingExtraError, MixzooError
from ..zoo.files import atomic_dir, remove
from . import report as reports
from .attempt import PATIENCE, Job, write
from .bundle import Bundle, class_names
from .bundle import write as write_bundle
from .errors import ExportError
from .folders import FolderError, calibration_set, data_config, labelled_set
from .judge import num_classes
from .lower import MAX_DROP, Quality
from .precision import as_precisions
from .prepare import Prepared, prepare
from .protocol import Target
from .report import Report
from .shapes import AXES, Size, as_axes, as_batches, as_sizes
from .target import get_targets
from .verify import Reference


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
    swap: Mapping[str, str] | str | None = None,
    dynamic: str | Sequence[str] = AXES,
    patience: float | None = PATIENCE,
    precision: str | Sequence[str] = ("fp32",),
    calibration: str | Path | None = None,
    labelled: str | Path | None = None,
    max_drop: float = MAX_DROP,
    bundle: bool = False,
    classes: str | Path | Sequence[str] | None = None,
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
            targets each has a folder of its own in it, and with several precisions each of those. A folder that holds
            another model's export is not mixed with it: a sub-folder with the model's name is used.
        sizes: input sizes to verify, as "224,192x256", sides or (height, width) pairs; the model's own by default.
        batches: batch sizes to verify, as "1,3" or numbers.
        checkpoint: file with the weights.
        pretrained: take the published weights. Without these and a checkpoint, a model given by its name is filled
            deterministically, which serves to compare and to time, and a module keeps what it has.
        preprocess: put the normalisation in the graph; the input is then RGB in [0, 1].
        name: of the model in files and reports.
        opset: of ONNX; the exporter's default if None.
        model_options: for building a model by name, such as {"num_classes": 10}.
        swap: other activations or norms by the names of those that they replace, as "gelu=hardswish,..." or a mapping,
            see `mixzoo.swap`. The files are compared with the model so changed, which is not the trained one: the
            manifest says so, and how far it moved the outputs.
        dynamic: axes that may be left open, of "batch", "height" and "width", as "batch,height,width" or names; "none"
            or () for files of fixed shapes only, which are written faster, and run faster where windows or position
            tables follow the size.
        patience: seconds of processor time after which a set of open axes is given up; None for no limit.
        precision: of the files, as "fp32,fp16,int8" or names; see `mixzoo.export.precision`.
        calibration: folder of images, which int8 takes its scales from.
        labelled: folder with a folder of images for each class, on which files of lower precision are judged: in int8
            as many layers stay in float, worst first, as it takes to keep to ``max_drop``.
        max_drop: points of top-1 accuracy that may be lost.
        bundle: add what an app needs beside a classifier's file: names of the classes, the exact preprocessing, and
            examples of how to run it in Python and in the language of the runtime's platform.
        classes: their names, or a file with one a line; those of the training of the weights, or ImageNet's for 1,000
            classes, by default.
        say: called with a few words at each step.

    Returns:
        A report per target and precision.

    Raises:
        UnknownNameError, UnknownModelError: a target, precision, axis or model that does not exist.
        MissingExtraError: packages that the only target needs are not installed.
        CheckpointError: weights that cannot be had or do not fit.
        ShapeError: sizes or batches that cannot be read.
        FolderError, ImageError: images that cannot be used.
        ExportError: a target failed, and left nothing behind. Of several targets the others are finished, and an
            `IncompleteError` has their reports.
    """
    targets, precisions = get_targets(to), as_precisions(precision)
    if opset is not None and "onnx" not in (target.name for target in targets):
        raise ExportError(f"opset {opset} is for onnx, which is not among the targets: leave it out.")
    _check_folders(precisions, calibration, labelled)
    wanted_sizes = None if sizes is None else as_sizes(sizes)
    wanted_batches, axes = as_batches(batches), as_axes(dynamic)
    prepared = prepare(model, _file_name(name), checkpoint, pretrained, preprocess, model_options, swap)
    quality = _quality(prepared, calibration, labelled, max_drop)
    job = Job(
        prepared=prepared,
        sizes=wanted_sizes or (prepared.native,),
        batches=wanted_batches,
        options={"onnx": {"opset": opset}},
        axes=axes,
        say=say,
        patience=patience,
        quality=quality,
        bundle=_bundle(prepared, bundle, classes),
    )
    root = Path(out) if out is not None else Path("exports") / prepared.name
    return _export_all(job, [(target, name) for target in targets for name in precisions], root)


def _check_folders(precisions: Sequence[str], calibration: str | Path | None, labelled: str | Path | None) -> None:
    """See that there are folders for what needs them, and none for nothing."""
    if "int8" in precisions and calibration is None:
        raise FolderError(
            "int8 takes its scales from real images: give a folder with some dozens, --calibration FOLDER."
        )
    if "int8" not in precisions and calibration is not None:
        raise FolderError("--calibration is for int8, which is not among the precisions: leave it out.")
    if precisions == ("fp32",) and labelled is not None:
        raise FolderError("--labelled is to judge fp16 and int8, which are not among the precisions: leave it out.")


def _quality(
    prepared: Prepared, calibration: str | Path | None, labelled: str | Path | None, max_drop: float
) -> Quality | None:
    if calibration is None and labelled is None:
        return None
    image = Reference(prepared).outputs(prepared.native, 0)
    return Quality(
        prepared,
        calibration_set(calibration, prepared) if calibration is not None else None,
        labelled_set(labelled, prepared, num_classes(image)) if labelled is not None else None,
        max_drop,
    )


def _bundle(prepared: Prepared, wanted: bool, classes: str | Path | Sequence[str] | None) -> Bundle | None:
    if not wanted:
        if classes is not None:
            raise ExportError("--classes is for --bundle: give both, or leave it out.")
        return None
    shape = Reference(prepared).outputs(prepared.native, 0)[0].shape
    if len(shape) != 2:
        raise ExportError("--bundle is for classifiers, whose outputs are (batch, classes): leave it out.")
    names, source = class_names(classes, prepared.config.get("label_names"), shape[1])
    return Bundle(data_config(prepared), names, source)


def _export_all(job: Job, wanted: Sequence[tuple[Target, str]], root: Path) -> list[Report]:
    """Every target in every precision, whatever fails."""
    several = [len({target.name for target, _ in wanted}) > 1, len({name for _, name in wanted}) > 1]
    done, failed = [], []
    for target, precision in wanted:
        parts = [part for part, one_of_many in zip((target.name, precision), several, strict=True) if one_of_many]
        try:
            done.append(_export_one(replace(job, precision=precision), target, root.joinpath(*parts)))
        except MixzooError as error:
            if len(wanted) == 1 and not isinstance(error, ExportError):
                raise
            which = target.name if precision == "fp32" else f"{target.name} in {precision}"
            failed.append(f"{job.prepared.name} could not be exported to {which}: {error}")
            if len(wanted) == 1:
                raise ExportError(failed[0]) from error
            job.say(failed[-1])
    if failed:
        raise IncompleteError(" ".join(failed), done)
    return done


def _export_one(job: Job, target: Target, folder: Path) -> Report:
    if reason := target.unavailable():
        raise MissingExtraError(reason)
    if job.precision not in target.precisions:
        raise ExportError(_refusal(job.precision, target))
    previous = reports.read(folder)
    if previous is not None and _identity(previous) != (job.prepared.name, target.name, job.precision):
        lower = "" if job.precision == "fp32" else f"_{job.precision}"
        folder = folder / f"{job.prepared.name}{lower}"
        previous = reports.read(folder)
    with atomic_dir(folder) as temporary:
        content = reports.manifest(job, target, write(job, target, temporary))
        if job.bundle:
            content["bundle"] = write_bundle(temporary, content, job.bundle)
        reports.write(temporary, content)
    _remove_superseded(folder, previous, content)
    report = Report(folder, content)
    if job.precision == "fp32" and content["verified"]:
        job.floats.update({(target.name, report.dynamic_axes, file.stem): file for file in report.files})
    return report


def _refusal(precision: str, target: Target) -> str:
    """Why ``target`` has no files in ``precision``."""
    if precision in target.refused:
        return target.refused[precision]
    written = " and ".join(target.precisions)
    return f"mixzoo writes files for {target.title} in {written} only: leave {precision} out."


def _identity(content: Mapping[str, Any]) -> tuple[Any, ...]:
    return content.get("model"), content.get("target"), content.get("precision")


def _remove_superseded(folder: Path, previous: Mapping[str, Any] | None, content: Mapping[str, Any]) -> None:
    """Delete files of an earlier export of the same model that the new one did not replace."""
    for name in _files(previous or {}) - _files(content):
        if name == Path(name).name:
            remove(folder / name)


def _files(content: Mapping[str, Any]) -> set[str]:
    items = [i for a in content.get("artifacts", []) for i in (a, *a.get("companions", []))]
    items += content.get("bundle", {}).get("files", [])
    return {str(item["file"]) for item in items}


def _file_name(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"[\w][\w.\-]*", name):
        raise ExportError(f"name {name!r} cannot name a file: use letters, digits, dots, dashes and underscores.")
    return name
