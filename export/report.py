"""What is said of an export: manifest.json for programs; `mixzoo.export.words` puts it in words."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .artifacts import companions
from .attempt import Elsewhere, Job, Outcome, Written
from .latency import Latency
from .prepare import Prepared, sha256, size_of
from .protocol import BuiltAhead, Delegated, Target, TensorInfo, not_run_because
from .sensitivity import Fit
from .shapes import Axes
from .verify import BOUNDS, Check
from .words import summary

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
    def precision(self) -> str:
        """What the files compute in."""
        return str(self.manifest["precision"])

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


def manifest(job: Job, target: Target, outcome: Outcome) -> dict[str, Any]:
    """The content of manifest.json."""
    prepared, bounds = job.prepared, BOUNDS[job.precision]
    return {
        "model": prepared.name,
        "target": target.name,
        **_run(target),
        "precision": job.precision,
        "form": prepared.form,
        "weights": prepared.weights,
        "swapped": prepared.swapped,
        "parameters": prepared.num_parameters,
        "preprocess": _preprocess(prepared),
        "dynamic_axes": list(outcome.axes),
        "fixed_because": [{"tried": list(axes), "reason": reason} for axes, reason in outcome.fixed.items()],
        "tolerance": bounds.tolerance,
        "control": {"least": bounds.control, "times_the_error": bounds.margin},
        **_quality(job),
        "error": max(c.error for f in outcome.files for c in f.checks),
        "max_rank": max(f.facts.max_rank for f in outcome.files),
        **outcome.files[0].facts.extra,
        "artifacts": [_artifact(f, target) for f in outcome.files],
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


def _artifact(written: Written, target: Target) -> dict[str, Any]:
    path, facts = written.path, written.facts
    return {
        "file": path.name,
        "bytes": size_of(path),
        "sha256": sha256(path),
        "companions": [{"file": p.name, "bytes": size_of(p), "sha256": sha256(p)} for p in companions(path)],
        "inputs": [_tensor(t) for t in facts.inputs],
        "outputs": [_tensor(t) for t in facts.outputs],
        "nodes": sum(facts.operators.values()),
        "operators": facts.operators,
        "max_rank": facts.max_rank,
        "unranked_tensors": facts.unranked,
        "delegated": _delegated(facts.delegated),
        "undivided_because": None if facts.delegated else target.undivided,
        "checks": [_check(c) for c in written.checks],
        "latency": _latency(written.latency),
        "elsewhere": _elsewhere(written.elsewhere),
        "float32_bytes": written.float_bytes,
        "judged": _judged(written.fit),
    }


def _quality(job: Job) -> dict[str, Any]:
    """What files of lower precision were calibrated with and held to."""
    if job.precision == "fp32" or (quality := job.quality) is None:
        return {}
    calibrated = quality.calibration and job.precision == "int8"
    return {
        "calibration_images": len(quality.calibration) if quality.calibration and calibrated else None,
        "labelled_images": len(quality.labelled) if quality.labelled else None,
        "max_drop": quality.max_drop if quality.labelled else None,
    }


def _judged(fit: Fit | None) -> dict[str, Any] | None:
    """What real images said of a file of lower precision, and which layers they kept in float."""
    if fit is None:
        return None
    judgement = fit.judgement
    return {
        "images": judgement.images,
        "accuracy": judgement.accuracy,
        "accuracy_of_original": judgement.original,
        "drop": judgement.drop,
        "top1_agreement": judgement.agreement,
        "agreement_by_chance": judgement.chance,
        "median_error": judgement.error,
        "negative_control": judgement.control,
        "layers": fit.layers,
        "kept_in_float": list(fit.keep),
    }


def _elsewhere(seen: Elsewhere | None) -> dict[str, Any] | None:
    """What was seen on an accelerator beside the processor."""
    if seen is None:
        return None
    return {
        "run_by": seen.by,
        "error": max(check.error for check in seen.checks),
        "nodes": seen.placed.nodes,
        "rest": seen.placed.rest,
        "checks": [_check(check) for check in seen.checks],
        "latency": _latency(seen.latency),
    }


def _latency(latency: Latency | None) -> dict[str, Any] | None:
    if latency is None:
        return None
    return {
        "batch": latency.case.batch,
        "height": latency.case.size[0],
        "width": latency.case.size[1],
        "threads": latency.threads,
        "device": latency.device,
        "file_ms": round(latency.file_ms, 3),
        "torch_deploy_ms": round(latency.torch_ms, 3),
        "times_faster": round(latency.ratio, 3),
        "float32_ms": latency.before_ms and round(latency.before_ms, 3),
        "times_faster_than_float32": latency.before_ratio and round(latency.before_ratio, 3),
        "machine_load": round(latency.load, 2),
    }


def _delegated(part: Delegated | None) -> dict[str, Any] | None:
    if part is None:
        return None
    return {
        "to": part.to,
        "share": round(part.share, 4),
        "nodes": part.nodes,
        "parts": part.parts,
        "rest": part.rest,
        "macs_share": None if part.macs_share is None else round(part.macs_share, 6),
        "macs": part.macs,
        "rest_macs": part.rest_macs,
    }


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
