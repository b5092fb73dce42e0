"""What is said of an export: manifest.json for programs, summary.md for readers, a table for the terminal."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .attempt import Outcome, Written, describe_axes
from .latency import Latency
from .prepare import Prepared, sha256, size_of
from .protocol import BuiltAhead, Delegated, Target, TensorInfo, not_run_because
from .shapes import Axes, size_name
from .verify import CONTROL, CONTROL_MARGIN, TOLERANCE, Check

if TYPE_CHECKING:
    from rich.console import RenderableType

MANIFEST, SUMMARY = "manifest.json", "summary.md"


@dataclass(frozen=True)
class Report:
    """A finished export.

    Attributes:
        folder: where everything is.
        manifest: the content of manifest.json.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.manifest["model"])

    @property
    def target(self) -> str:
        """The target's name."""
        return str(self.manifest["target"])

    @property
    def files(self) -> list[Path]:
        """The written files, one for each fixed shape; companions with external weights are not listed."""
        return [self.folder / item["file"] for item in self.manifest["artifacts"]]

    @property
    def path(self) -> Path:
        """The first file."""
        return self.files[0]

    @property
    def dynamic_axes(self) -> Axes:
        """The axes that were proved dynamic."""
        return tuple(self.manifest["dynamic_axes"])

    @property
    def error(self) -> float:
        """The greatest relative error at any shape."""
        return max(check["error"] for item in self.manifest["artifacts"] for check in item["checks"])


def manifest(prepared: Prepared, target: Target, outcome: Outcome, precision: str = "fp32") -> dict[str, Any]:
    """The content of manifest.json."""
    return {
        "model": prepared.name,
        "target": target.name,
        **_run(target),
        "precision": precision,
        "form": prepared.form,
        "weights": prepared.weights,
        "parameters": prepared.num_parameters,
        "preprocess": _preprocess(prepared),
        "dynamic_axes": list(outcome.axes),
        "fixed_because": [{"tried": list(axes), "reason": reason} for axes, reason in outcome.fixed.items()],
        "tolerance": TOLERANCE[precision],
        "error": max(c.error for f in outcome.files for c in f.checks),
        "max_rank": max(f.facts.max_rank for f in outcome.files),
        **outcome.files[0].facts.extra,
        "artifacts": [_artifact(f) for f in outcome.files],
        "versions": _versions(target),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _run(target: Target) -> dict[str, Any]:
    """Whether the files themselves were run and compared, by what, and if not, what was instead."""
    reason = not_run_because(target)
    if reason is None or not isinstance(target, BuiltAhead):
        return {"verified": True, "run_by": target.runtime, "in_its_runtime": target.timed}
    return {"verified": False, "run_by": None, "not_run_because": reason, "checks_are_of": target.source}


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write manifest.json and summary.md into ``folder``."""
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")
    (folder / SUMMARY).write_text(summary(content))


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest in ``folder``; None where there is none that can be read."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _artifact(written: Written) -> dict[str, Any]:
    path, facts = written.path, written.facts
    companions = sorted(p for p in path.parent.iterdir() if p != path and p.name.startswith(f"{path.stem}."))
    return {
        "file": path.name,
        "bytes": size_of(path),
        "sha256": sha256(path),
        "companions": [{"file": p.name, "bytes": size_of(p), "sha256": sha256(p)} for p in companions],
        "inputs": [_tensor(t) for t in facts.inputs],
        "outputs": [_tensor(t) for t in facts.outputs],
        "nodes": sum(facts.operators.values()),
        "operators": facts.operators,
        "max_rank": facts.max_rank,
        "unranked_tensors": facts.unranked,
        "delegated": _delegated(facts.delegated),
        "checks": [_check(c) for c in written.checks],
        "latency": _latency(written.latency),
    }


def _latency(latency: Latency | None) -> dict[str, Any] | None:
    if latency is None:
        return None
    return {
        "batch": latency.case.batch,
        "height": latency.case.size[0],
        "width": latency.case.size[1],
        "threads": latency.threads,
        "file_ms": round(latency.file_ms, 3),
        "torch_deploy_ms": round(latency.torch_ms, 3),
        "times_faster": round(latency.ratio, 3),
        "machine_load": round(latency.load, 2),
    }


def _delegated(part: Delegated | None) -> dict[str, Any] | None:
    if part is None:
        return None
    return {"to": part.to, "share": round(part.share, 4), "nodes": part.nodes, "parts": part.parts, "rest": part.rest}


def _tensor(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}


def _check(check: Check) -> dict[str, Any]:
    return {
        "batch": check.case.batch,
        "height": check.case.size[0],
        "width": check.case.size[1],
        "asked": check.case.asked,
        "error": check.error,
        "negative_control": check.control,
        "top1_agreement": check.top1,
        "batch_against_single": check.batch_error,
        "unstable_images_replaced": check.replaced,
    }


def _preprocess(prepared: Prepared) -> dict[str, Any]:
    values = "RGB in [0, 1]" if prepared.preprocess else "(RGB in [0, 1] - mean) / std"
    return {
        "in_graph": prepared.preprocess,
        "input": values if prepared.in_chans == 3 else values.replace("RGB", f"{prepared.in_chans} channels"),
        "mean": list(prepared.mean),
        "std": list(prepared.std),
    }


def _versions(target: Target) -> dict[str, str | None]:
    return {name: _version(name) for name in ("mixzoo", "torch", "timm", "numpy", *target.packages)}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


# for readers


def summary(content: dict[str, Any]) -> str:
    """The manifest in words: Markdown."""
    lines = [f"# {content['model']} for {content['target']}", ""]
    lines += [f"- {label}: {value}" for label, value in _facts(content)]
    for item in content["artifacts"]:
        lines += ["", f"## {item['file']}", "", f"sha256 `{item['sha256']}`", ""]
        lines += [f"- {label}: {value}" for label, value in _artifact_facts(item)]
        lines += ["", *_markdown_table(_HEADER, [_row(c) for c in item["checks"]])]
    whole = "Every file" if content.get("in_its_runtime") else "The program read back from every file"
    ran = whole if content["verified"] else f"Not the file itself, but {content['checks_are_of']},"
    return "\n".join([*lines, "", _METHOD.format(ran=ran, tolerance=content["tolerance"]), ""])


def render(report: Report) -> RenderableType:
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
        table.caption = "\n".join(f"{label}: {value}" for label, value in (*_delegation(item), *_speed(item)))
        tables.append(table)
    return Group(*tables)


_HEADER = ("batch", "size", "asked", "error", "other image", "top-1", "batch = single")
_METHOD = (
    "{ran} was run at every shape listed and compared with the original model in PyTorch, image by image: "
    "error is max|a - b| / max|b|, at most {tolerance:.0e} passes. *Other image* is the least relative difference "
    f"that another image makes; it must be at least {CONTROL:.0e} and {CONTROL_MARGIN:.0f} times the error, or the "
    "comparison could not have failed. Shapes that were not asked for prove that an axis is dynamic."
)


def _facts(content: dict[str, Any]) -> list[tuple[str, str]]:
    pre = content["preprocess"]
    facts = [
        ("model", f"{content['model']}, {content['parameters'] / 1e6:.2f} M parameters, {content['form']}"),
        ("weights", content["weights"]),
        ("target", f"{content['target']}, {content['precision']}" + _opset(content)),
        *_run_facts(content),
        ("input", f"{pre['input']}, float32; mean {_numbers(pre['mean'])}, std {_numbers(pre['std'])}"),
        *_built(content),
        ("axes", describe_axes(tuple(content["dynamic_axes"]))),
        ("greatest error" if content["verified"] else "greatest error of the source", f"{content['error']:.1e}"),
        ("greatest tensor rank", str(content["max_rank"])),
    ]
    reasons = [(f"{', '.join(r['tried'])} not all open", r["reason"]) for r in content["fixed_because"]]
    return [*facts, *reasons, ("made with", _made_with(content))]


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
        ("size", _megabytes(item)),
        ("inputs", "; ".join(_signature(t) for t in item["inputs"])),
        ("outputs", "; ".join(_signature(t) for t in item["outputs"])),
        (f"{item['nodes']} operators", operators),
        *_delegation(item),
        *_speed(item),
    ]


_BUSY = 1.0  # load from which figures are marked


def _speed(item: dict[str, Any]) -> list[tuple[str, str]]:
    if not (t := item["latency"]):
        return [("time", "not taken: the runtime itself does not run here")]
    where = f"batch {t['batch']}, {size_name((t['height'], t['width']))}, {t['threads']} threads"
    where += f", load {t['machine_load']:.1f}" if t["machine_load"] > _BUSY else ""
    ratio = t["times_faster"]
    verdict = f"{ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times slower"
    return [("time", f"{t['file_ms']:.2f} ms ({where}); PyTorch deploy form {t['torch_deploy_ms']:.2f} ms: {verdict}")]


def _delegation(item: dict[str, Any]) -> list[tuple[str, str]]:
    """In words what the accelerated partition takes; nothing where the runtime has none."""
    if not (part := item["delegated"]):
        return []
    rest = ", ".join(f"{name} {count}" for name, count in part["rest"].items()) or "nothing"
    taken = f"{part['share']:.0%} of the nodes in {part['parts']} part{'s' * (part['parts'] != 1)}"
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


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
