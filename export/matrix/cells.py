"""Which cells there are, and what each is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...zoo.errors import UnknownModelError, UnknownNameError
from ...zoo.listing import expand
from ...zoo.registry import FAMILIES, VARIANTS
from ..precision import as_precisions
from ..prepare import TIMM_PREFIX
from ..target import get_target, get_targets


@dataclass(frozen=True)
class Cell:
    """One export.

    Attributes:
        model: its name, as `mixzoo export` takes it.
        target, precision: of the file.
    """

    model: str
    target: str
    precision: str = "fp32"

    @property
    def key(self) -> tuple[str, str, str]:
        return self.model, self.target, self.precision

    @property
    def family(self) -> str:
        """The model's family; "timm" for what is not of the zoo."""
        return VARIANTS[self.model].family if self.model in VARIANTS else "timm"

    def __str__(self) -> str:
        return f"{self.model} {self.target} {self.precision}"


@dataclass(frozen=True)
class Settings:
    """What every cell is asked.

    Attributes:
        sizes: as in `mixzoo export`; empty for each model's own.
        batches: as there.
        dynamic: as there.
        calibration: folder of images for int8; None leaves int8 cells out.
        labelled: folder of labelled images, by which fp16 and int8 are judged.
        max_drop: points of top-1 that they may lose.
        weights: words of the command that say which weights every model gets; filled ones by default.
        checkpoints: folder with weights for each model under its name, the folder of a training run or a file.
    """

    sizes: str = ""
    batches: str = "1"
    dynamic: str = "batch,height,width"
    calibration: Path | None = None
    labelled: Path | None = None
    max_drop: float | None = None
    weights: tuple[str, ...] = ()
    checkpoints: Path | None = None

    def arguments(self, cell: Cell, out: Path) -> list[str]:
        """Words of the command that fills ``cell``."""
        words = ["export", cell.model, "--to", cell.target, "--out", str(out), "--batches", self.batches]
        words += self.weights
        words += ["--checkpoint", str(found)] if (found := self.checkpoint(cell)) else []
        words += ["--dynamic", self.dynamic, *(["--sizes", self.sizes] if self.sizes else [])]
        if cell.precision != "fp32":
            words += ["--precision", cell.precision]
        given = {f"--{name.replace('_', '-')}": value for name, value in self._judged_by(cell).items()}
        return words + [word for name, value in given.items() if value is not None for word in (name, str(value))]

    def checkpoint(self, cell: Cell) -> Path | None:
        """The weights in `checkpoints` for the model of ``cell``."""
        if self.checkpoints is None:
            return None
        name = cell.model.replace(":", "_")
        places = [self.checkpoints / f"{name}{suffix}" for suffix in ("", ".safetensors", ".pth", ".pt")]
        return next((place for place in places if place.exists()), None)

    def without_weights(self, cell: Cell) -> str | None:
        """Why a cell cannot have the weights that are asked for; None where it can."""
        if self.checkpoints is None or self.checkpoint(cell):
            return None
        return f"{self.checkpoints.name} has no weights of that model"

    def _judged_by(self, cell: Cell) -> dict[str, Any]:
        """What a precision below float32 is calibrated with and judged by."""
        calibration = {"calibration": self.calibration} if cell.precision == "int8" else {}
        judge = {"labelled": self.labelled, "max_drop": self.max_drop} if cell.precision != "fp32" else {}
        return calibration | judge

    def record(self, cell: Cell) -> dict[str, Any]:
        """What a record must have been made with to hold still."""
        asked: dict[str, Any] = {"sizes": self.sizes, "batches": self.batches, "dynamic": self.dynamic}
        folders = self._judged_by(cell).items()  # by name: where they are is nobody's business
        asked |= {name: value.name if isinstance(value, Path) else value for name, value in folders}
        asked |= {"checkpoints": self.checkpoints.name} if self.checkpoints else {}
        packages = ("mixzoo", "torch", "timm", *get_target(cell.target).packages)
        return asked | {"versions": {name: _version(name) for name in packages}}


@dataclass
class Plan:
    """Cells to fill, and those that cannot be filled here, with the reason."""

    cells: list[Cell] = field(default_factory=list)
    absent: dict[Cell, str] = field(default_factory=dict)


def smallest_models(family: str = "") -> list[str]:
    """The model with the fewest parameters of ``family``, or of every family that has models."""
    names = [family] if family else list(FAMILIES)
    members = ([v for v in VARIANTS.values() if v.family == name] for name in names)
    return [min(some, key=lambda v: v.params_m or float("inf")).name for some in members if some]


def models_of(names: Sequence[str], family: str = "") -> list[str]:
    """Names and globs of models; the smallest of each family where none is given.

    A name that only timm has becomes "timm:NAME", which always is timm's own.

    Raises:
        UnknownModelError, UnknownNameError, NothingFoundError: no such model, family, or no model that matches.
    """
    if family and family not in FAMILIES:
        raise UnknownNameError("family", family, FAMILIES, f"Families: {', '.join(FAMILIES)}.")
    if not names:
        return smallest_models(family)
    found = [one for name in names for one in _found(name)]
    return [name for name in dict.fromkeys(found) if not family or Cell(name, "").family == family]


def _found(name: str) -> list[str]:
    import timm

    if name.startswith(TIMM_PREFIX):
        return [name]
    try:
        return expand([name])
    except UnknownModelError:
        if timm.is_model(name):
            return [TIMM_PREFIX + name]
        raise


def plan(models: Sequence[str], targets: str, precisions: str, settings: Settings) -> Plan:
    """The cells of models x targets x precisions; int8 is asked only with images to calibrate with.

    Raises:
        UnknownNameError: no such target or precision.
    """
    found = Plan()
    wanted = [name for name in as_precisions(precisions) if name != "int8" or settings.calibration]
    for target in get_targets(targets):
        reason = target.unavailable()
        for cell in (Cell(model, target.name, precision) for model in models for precision in wanted):
            if cell.precision not in target.precisions:
                found.absent[cell] = f"mixzoo does not write {target.title} files in {cell.precision}"
            elif missing := reason or settings.without_weights(cell):
                found.absent[cell] = missing
            else:
                found.cells.append(cell)
    place = {model: i for i, model in enumerate(models)}
    found.cells.sort(key=lambda cell: place[cell.model])
    return found


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
