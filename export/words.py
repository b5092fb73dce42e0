"""What is said of an export in words: summary.md, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..zoo.markdown import markdown_table
from .attempt import describe_axes
from .numbers import percent
from .shapes import size_name

if TYPE_CHECKING:
    from rich.console import RenderableType


class Reported(Protocol):
    """A `mixzoo.export.Report`."""

    @property
    def folder(self) -> Path: ...

    @property
    def manifest(self) -> dict[str, Any]: ...


def summary(content: dict[str, Any]) -> str:
    """The manifest in words: Markdown."""
    lines = [f"# {content['model']} for {content['target']}", ""]
    lines += [f"- {label}: {value}" for label, value in _facts(content)]
    for item in content["artifacts"]:
        lines += ["", f"## {item['file']}", "", f"sha256 `{item['sha256']}`", ""]
        lines += [f"- {label}: {value}" for label, value in _artifact_facts(item)]
        lines += ["", *markdown_table(_HEADER, [_row(c) for c in item["checks"]])]
    whole = "Every file" if content.get("in_its_runtime") else "The program read back from every file"
    ran = whole if content["verified"] else f"Not the file itself, but {content['checks_are_of']},"
    return "\n".join([*lines, "", _method(ran, content), ""])


def render(report: Reported) -> RenderableType:
    """The report for a terminal."""
    from rich.console import Group
    from rich.table import Table

    content = report.manifest
    grid = Table.grid(padding=(0, 2))
    for label, value in [*_facts(content), ("folder", str(report.folder))]:
        grid.add_row(f"[bold]{label}[/]", value)
    tables: list[RenderableType] = [grid]
    for item in content["artifacts"]:
        table = Table(title=f"{item['file']} ({_megabytes(item)})", title_justify="left")
        for title in _HEADER:
            table.add_column(title, justify="right")
        for check in item["checks"]:
            table.add_row(*_row(check))
        table.caption = "\n".join(
            f"{label}: {value}"
            for label, value in (*_quality(item), *_delegation(item), *_speed(item["latency"]), *_elsewhere(item))
        )
        tables.append(table)
    return Group(*tables)


_HEADER = ("batch", "size", "asked", "error", "other image", "top-1", "batch = single")
_METHOD = (
    "{ran} was run at every shape listed and compared with the original model in PyTorch, image by image: "
    "error is max|a - b| / max|b|, at most {tolerance:.0e} passes. *Other image* is the least relative difference "
    "that another image makes; it must be at least {least:.0e} and {margin:.0f} times the error, or the "
    "comparison could not have failed. Shapes that were not asked for prove that an axis is dynamic."
)
_BY_ACCURACY = (
    "Eight bits have no tolerance: the file is judged by its accuracy on labelled images, of which it may lose "
    "{max_drop:g} points, and by naming the model's class far more often than chance would."
)
_BY_AGREEMENT = (
    "Eight bits have no tolerance, and accuracy was not measured: what is shown is that the file names the "
    "model's class, on the images it was calibrated with, far more often than chance would. Labelled images "
    "(--labelled) would show more."
)


def _method(ran: str, content: dict[str, Any]) -> str:
    control = content["control"]
    bounds = {"tolerance": content["tolerance"], "least": control["least"], "margin": control["times_the_error"]}
    method = _METHOD.format(ran=ran, **bounds)
    if content["precision"] != "int8":
        return method
    judged = _BY_AGREEMENT if content["max_drop"] is None else _BY_ACCURACY.format(max_drop=content["max_drop"])
    return f"{method} {judged}"


def _facts(content: dict[str, Any]) -> list[tuple[str, str]]:
    pre = content["preprocess"]
    facts = [
        ("model", f"{content['model']}, {content['parameters'] / 1e6:.2f} M parameters, {content['form']}"),
        ("weights", content["weights"]),
        *_swapped(content),
        ("target", f"{content['target']}, {content['precision']}" + _opset(content)),
        *_run_facts(content),
        ("input", f"{pre['input']}, float32; mean {_numbers(pre['mean'])}, std {_numbers(pre['std'])}"),
        *_built(content),
        *_images(content),
        *_bundled(content),
        ("axes", describe_axes(tuple(content["dynamic_axes"]))),
        ("greatest error" if content["verified"] else "greatest error of the source", f"{content['error']:.1e}"),
        ("greatest tensor rank", str(content["max_rank"])),
    ]
    reasons = [(f"{', '.join(r['tried'])} not all open", r["reason"]) for r in content["fixed_because"]]
    return [*facts, *reasons, ("made with", _made_with(content))]


def _swapped(content: dict[str, Any]) -> list[tuple[str, str]]:
    """That the model is not the one that was trained, where parts of it were swapped."""
    if not (swapped := content.get("swapped")):
        return []
    changes = ", ".join(f"{change} ({count} times)" for change, count in swapped["changes"].items())
    return [
        ("swapped", f"{changes}: not the trained model; its outputs moved by {swapped['difference']:.1e} (relative)")
    ]


def _images(content: dict[str, Any]) -> list[tuple[str, str]]:
    """What was calibrated with, and what was judged by."""
    facts = []
    if calibrated := content.get("calibration_images"):
        facts = [("calibrated with", f"{calibrated} images, at every size that was asked for")]
    if labelled := content.get("labelled_images"):
        facts += [("accuracy on", f"{labelled} images, at most {content['max_drop']:g} points may be lost")]
    return facts


def _bundled(content: dict[str, Any]) -> list[tuple[str, str]]:
    """What was written for apps, where that was asked for."""
    if not (bundle := content.get("bundle")):
        return []
    names = ", ".join(item["file"] for item in bundle["files"])
    return [("bundle", f"{names}, for {bundle['example_of']}"), ("classes", bundle["classes_from"])]


def _built(content: dict[str, Any]) -> list[tuple[str, str]]:
    """For which GPUs, and in which precisions, where a file is built for some."""
    if "built_for" not in content:
        return []
    tensors = ", ".join(f"{kind} {count}" for kind, count in content["layer_precision"].items())
    return [("built for", ", ".join(content["built_for"])), ("tensors of its layers", tensors)]


def _run_facts(content: dict[str, Any]) -> list[tuple[str, str]]:
    if content["verified"]:
        return [("run by", content["run_by"])]
    facts = [("not run", f"{content['not_run_because']}; the file was built, and is not verified")]
    facts += [("checks are of", content["checks_are_of"])]
    return facts


def _artifact_facts(item: dict[str, Any]) -> list[tuple[str, str]]:
    operators = ", ".join(f"{name} {count}" for name, count in item["operators"].items())
    return [
        ("size", _megabytes(item) + _before(item)),
        *_quality(item),
        ("inputs", "; ".join(_signature(t) for t in item["inputs"])),
        ("outputs", "; ".join(_signature(t) for t in item["outputs"])),
        (f"{item['nodes']} operators", operators),
        *_delegation(item),
        *_speed(item["latency"]),
        *_elsewhere(item),
    ]


def _before(item: dict[str, Any]) -> str:
    return f"; the float32 file {item['float32_bytes'] / 1e6:.1f} MB" if item["float32_bytes"] else ""


def _quality(item: dict[str, Any]) -> list[tuple[str, str]]:
    """What real images said of a file of lower precision."""
    if not (judged := item["judged"]):
        return []
    facts = []
    if judged["accuracy"] is None:
        facts += [("accuracy", "not measured: no labelled images")]
    else:
        points = f"{abs(judged['drop']):.2f} points {'lost' if judged['drop'] >= 0 else 'won'}"
        before, after = (100 * judged[key] for key in ("accuracy_of_original", "accuracy"))
        facts += [("accuracy", f"{after:.2f} %, the original {before:.2f} %: {points} on {judged['images']} images")]
    if judged["top1_agreement"] is not None:
        agreement, chance = judged["top1_agreement"], judged["agreement_by_chance"]
        facts += [("same class", f"on {agreement:.1%} of {judged['images']} images; by chance on {chance:.0%}")]
    facts += [("median error", f"{judged['median_error']:.1e}; another image makes {judged['negative_control']:.1e}")]
    if judged["layers"]:
        kept = judged["kept_in_float"]
        facts += [("in float", f"{len(kept)} of {judged['layers']} layers{': ' if kept else ''}{', '.join(kept)}")]
    return facts


_BUSY = 1.0  # load from which figures are marked


def _elsewhere(item: dict[str, Any]) -> list[tuple[str, str]]:
    """What an accelerator made of a file that is run on the processor as well."""
    if not (seen := item.get("elsewhere")):
        return []
    rest = ", ".join(f"{name} {count}" for name, count in seen["rest"].items()) or "nothing"
    shapes = f"{len(seen['checks'])} shape{'s' * (len(seen['checks']) != 1)}"
    facts = [("also run by", f"{seen['run_by']} at {shapes}: greatest error {seen['error']:.1e}")]
    facts += [("on it", f"{seen['nodes']} operators; on the processor: {rest}")]
    return facts + [(f"{label} on it", value) for label, value in _speed(seen["latency"])]


def _speed(t: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not t:
        return [("time", "not taken: the runtime itself does not run here")]
    computed_on = f"{t['threads']} threads" if t.get("device", "cpu") == "cpu" else "images and outputs copied"
    where = f"batch {t['batch']}, {size_name((t['height'], t['width']))}, {computed_on}"
    where += f", load {t['machine_load']:.1f}" if t["machine_load"] > _BUSY else ""
    against = f"PyTorch deploy form {t['torch_deploy_ms']:.2f} ms: {_verdict(t['times_faster'])}"
    if t["float32_ms"]:
        against += f"; float32 file {t['float32_ms']:.2f} ms: {_verdict(t['times_faster_than_float32'])}"
    return [("time", f"{t['file_ms']:.2f} ms ({where}); {against}")]


def _verdict(ratio: float) -> str:
    return f"{ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times slower"


def _delegation(item: dict[str, Any]) -> list[tuple[str, str]]:
    """In words what the accelerated partition takes, or why the runtime tells of none."""
    if not (part := item["delegated"]):
        reason = item.get("undivided_because")
        return [("accelerated partition", f"none told: {reason}")] if reason else []
    rest = ", ".join(f"{name} {count}" for name, count in part["rest"].items()) or "nothing"
    taken = f"{percent(part['share'])} of the nodes in {part['parts']} part{'s' * (part['parts'] != 1)}"
    if part["macs_share"] is not None:
        taken += f", {percent(part['macs_share'])} of {(part['macs'] + part['rest_macs']) / 1e6:.4g} M MACs"
    return [(f"in {part['to']}", f"{taken}; outside: {rest}")]


def _opset(content: dict[str, Any]) -> str:
    return f", opset {content['opset']}" if "opset" in content else ""


def _made_with(content: dict[str, Any]) -> str:
    packages = [f"{name} {number}" for name, number in content["versions"].items() if number]
    return ", ".join([*packages, f"Python {content['python']}", content["platform"]])


def _signature(tensor: dict[str, Any]) -> str:
    return f"{tensor['name']} {tensor['dtype']} ({', '.join(map(str, tensor['shape']))})"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


def _megabytes(item: dict[str, Any]) -> str:
    total = item["bytes"] + sum(c["bytes"] for c in item["companions"])
    return f"{total / 1e6:.1f} MB"


def _row(check: dict[str, Any]) -> list[str]:
    top1, batch = check["top1_agreement"], check["batch_against_single"]
    return [
        str(check["batch"]),
        size_name((check["height"], check["width"])),
        "yes" if check["asked"] else "proof",
        f"{check['error']:.1e}",
        f"{check['negative_control']:.1e}",
        "-" if top1 is None else f"{top1:.0%}",
        "-" if batch is None else f"{batch:.1e}",
    ]
