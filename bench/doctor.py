"""What works on this machine: every package is imported and every runtime runs something small, nothing is assumed."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import unquote, urlparse

import torch
from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table
from torch import nn

from ..export import export
from ..export.protocol import Target
from ..zoo.machine import describe_machine

IMPORT_NAMES = {
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "pillow": "PIL",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "pytest-xdist": "xdist",
    "pytest-timeout": "pytest_timeout",
    "onedl-mmengine": "mmengine",
    "onedl-mmcv": "mmcv",
    "onedl-mmdetection": "mmdet",
    "onedl-mmsegmentation": "mmseg",
}
NOT_IMPORTED = ("types-pyyaml", "ruff")  # stubs and programs
MMCV_NEEDS = "'setuptools<82' wheel ninja psutil"  # before it is built, without isolation


@dataclass(frozen=True)
class Check:
    """One thing that was tried. ``detail`` is a version, a result, or what went wrong."""

    name: str
    works: bool
    detail: str


@dataclass(frozen=True)
class Extra:
    """One extra of mixzoo: what it brings, and the command that would install it where something is missing."""

    name: str
    works: bool
    packages: tuple[Check, ...]
    command: str | None


@dataclass(frozen=True)
class Diagnosis:
    """All that `mixzoo doctor` found. ``command`` would install every extra that does not work."""

    machine: dict[str, Any]
    core: tuple[Check, ...]
    extras: tuple[Extra, ...]
    runtimes: tuple[Check, ...]
    command: str | None

    @property
    def healthy(self) -> bool:
        """Whether all that mixzoo cannot do without works."""
        return all(check.works for check in self.core)

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"healthy": self.healthy}


def diagnose(targets: Mapping[str, Target], on_step: Callable[[str], object] = lambda text: None) -> Diagnosis:
    """Try everything.

    Args:
        targets: export targets by name; each writes and runs a tiny model.
        on_step: told what is being tried, for a progress display.
    """
    on_step("packages")
    needs = _requirements()
    core = tuple(_package(need) for need in needs.pop("", []))
    extras = tuple(_extra(name, wanted) for name, wanted in needs.items() if name != "all")
    runtimes = tuple(_runtimes(targets, on_step))
    missing = [extra.name for extra in extras if not extra.works]
    return Diagnosis(describe_machine(), core, extras, runtimes, install_command(missing) if missing else None)


def install_command(extras: list[str]) -> str:
    """The command that installs ``extras`` into this interpreter, from where mixzoo was installed."""
    listed = ",".join(extras)
    flags = " --no-build-isolation" if "openmmlab" in extras else ""
    pip = f"{quote(sys.executable)} -m pip install"
    first = f"{pip} {MMCV_NEEDS} && MMCV_WITH_OPS=1 " if flags else ""
    return f"{first}{pip}{flags} {_source(listed)}"


def _source(extras: str) -> str:
    """What pip is told to install: the checkout of an editable install with its constraints, else the package."""
    text = metadata.distribution("mixzoo").read_text("direct_url.json")
    origin = json.loads(text) if text else {}
    if not origin.get("dir_info", {}).get("editable"):
        return f"'mixzoo[{extras}]'"
    folder = Path(unquote(urlparse(origin["url"]).path))
    constraints = folder / "constraints.txt"
    return (f"-c {quote(str(constraints))} " if constraints.exists() else "") + f"-e {quote(f'{folder}[{extras}]')}"


def _requirements() -> dict[str, list[Requirement]]:
    """What each extra asks for, '' being what is always needed; an extra made of other extras lists theirs too."""
    distribution = metadata.distribution("mixzoo")
    parsed = [Requirement(text) for text in distribution.requires or []]
    extras = ["", *(distribution.metadata.get_all("Provides-Extra") or [])]
    direct = {extra: [r for r in parsed if _asked_by(r, extra)] for extra in extras}
    return {extra: list(_expand(needs, direct)) for extra, needs in direct.items()}


def _asked_by(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return extra == ""
    plain = requirement.marker.evaluate({"extra": ""})
    return plain if extra == "" else not plain and requirement.marker.evaluate({"extra": extra})


def _expand(needs: list[Requirement], direct: dict[str, list[Requirement]]) -> Iterator[Requirement]:
    for need in needs:
        if need.name == "mixzoo":
            for extra in sorted(need.extras):
                yield from _expand(direct[extra], direct)
        else:
            yield need


def _extra(name: str, needs: list[Requirement]) -> Extra:
    packages = tuple({check.name: check for check in map(_package, needs)}.values())
    works = all(check.works for check in packages)
    return Extra(name, works, packages, None if works else install_command([name]))


def _package(need: Requirement) -> Check:
    """Whether the package is there, is new enough and can be imported."""
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return Check(need.name, False, "not installed")
    if not need.specifier.contains(version, prereleases=True):
        return Check(need.name, False, f"{version} is not {need.specifier}")
    name = need.name.lower()
    if name in NOT_IMPORTED:
        return Check(need.name, True, version)
    return _try(need.name, lambda: (import_module(IMPORT_NAMES.get(name, name.replace("-", "_"))), version)[1])


def _try(name: str, attempt: Callable[[], str]) -> Check:
    try:
        return Check(name, True, attempt())
    except Exception as error:  # whatever a broken package raises is the finding
        text = str(error).strip().splitlines() or [""]
        return Check(name, False, f"{type(error).__name__}: {text[0]}")


def _runtimes(targets: Mapping[str, Target], on_step: Callable[[str], object]) -> Iterator[Check]:
    on_step("torch")
    yield _try("torch", lambda: _agreement(_tiny()(_image()), _tiny()(_image())))
    on_step("torch.compile")
    yield _try("torch.compile", lambda: _agreement(torch.compile(_tiny())(_image()), _tiny()(_image())))
    for name, target in targets.items():
        on_step(name)
        reason = target.unavailable()
        yield Check(name, False, reason) if reason else _try(name, partial(_round_trip, name))
    if torch.cuda.is_available():
        yield _try("cuda", lambda: _agreement(_tiny().cuda()(_image().cuda()).cpu(), _tiny()(_image())))


def _round_trip(name: str) -> str:
    """Write a tiny model for the target ``name``, run the file, and compare with torch."""
    with tempfile.TemporaryDirectory(prefix="mixzoo-doctor-") as folder:
        [written] = export(_tiny(), to=(name,), out=folder, sizes=((32, 32),), name="tiny")
        if not written.manifest["verified"]:
            return f"writes a tiny model, but cannot run it: {written.manifest['not_run_because']}"
        return f"writes and runs a tiny model, relative error {written.error:.0e}"


def _tiny() -> nn.Module:
    """A convolution and a rectifier: always the same weights."""
    conv = nn.Conv2d(3, 4, 3, bias=False).requires_grad_(False)
    conv.weight.copy_(torch.linspace(-1, 1, conv.weight.numel()).view_as(conv.weight))
    return nn.Sequential(conv, nn.ReLU()).eval()


def _image() -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)


def _agreement(got: torch.Tensor, want: torch.Tensor) -> str:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    if float(want.abs().max()) < 1e-3:
        raise AssertionError("the outputs are zero")
    return "runs, and agrees with torch"


def table(diagnosis: Diagnosis) -> Table:
    """What was found."""
    grid = Table(header_style="bold")
    for heading in ("what", "works", "detail"):
        grid.add_column(heading)
    machine = diagnosis.machine
    grid.add_row("python", "yes", f"{machine['python']} on {machine['system']} {machine['arch']}, {machine['cpu']}")
    for check in diagnosis.core:
        grid.add_row(check.name, _yes(check.works), escape(check.detail))
    grid.add_section()
    for extra in diagnosis.extras:
        grid.add_row(f"extra {extra.name}", _yes(extra.works), escape(_what(extra)))
    grid.add_section()
    for check in diagnosis.runtimes:
        grid.add_row(f"runtime {check.name}", _yes(check.works), escape(check.detail))
    return grid


def _yes(works: bool) -> str:
    return "[green]yes[/]" if works else "[red]no[/]"


def _what(extra: Extra) -> str:
    broken = [f"{check.name} {check.detail}" for check in extra.packages if not check.works]
    return "; ".join(broken) or ", ".join(f"{check.name} {check.detail}" for check in extra.packages)
