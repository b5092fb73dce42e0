"""Models with one fault each, and a runtime that is torch itself, to stage what goes wrong in an export."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import mixzoo
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mixzoo.export.attempt import PATIENCE, Job, write
from mixzoo.export.prepare import prepare
from mixzoo.export.protocol import FileFacts, Placed, TensorInfo
from mixzoo.export.shapes import AXES, parse_batches, parse_sizes
from mixzoo.export.target import TARGETS
from mixzoo.zoo.fill import fill_
from torch import Tensor, nn

Damage = Callable[[list[np.ndarray]], list[np.ndarray]]


class ProgramRunner:
    """A saved torch.export program, run by torch; ``damage`` is done to what it gives."""

    device = "cpu"

    def __init__(self, path: Path, damage: Damage) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's loader warns of its own read-only buffers
            self.module = torch.export.load(path).module(check_guards=False)
        self.damage = damage

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.outputs(x)[0]

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        y = self.module(torch.from_numpy(x))
        return self.damage([t.detach().numpy() for t in (y if isinstance(y, tuple | list) else [y])])


class ProgramTarget:
    """A target that saves the captured graph."""

    name, title, extra, suffix, packages, runtime = "program", "torch", "none", ".pt2", (), "torch"
    axes = (AXES, ("batch",), ())
    batched = True
    precisions = ("fp32",)
    refused: ClassVar[dict[str, str]] = {}
    timed, undivided = True, "torch runs it whole"

    def __init__(self, damage: Damage = lambda outputs: outputs) -> None:
        self.damage = damage

    def unavailable(self) -> str | None:
        return None

    def export(self, capture: Any, path: Path, options: dict[str, Any]) -> None:
        torch.export.save(capture.program, path)
        self.shape = tuple(a if a in capture.axes else n for a, n in zip(_AXES, capture.example.shape, strict=True))

    def load(self, path: Path, threads: int | None = None) -> ProgramRunner:
        return ProgramRunner(path, self.damage)

    def describe(self, path: Path) -> FileFacts:
        return FileFacts((TensorInfo("image", "float32", self.shape),), (), {}, 4)


class TwiceProgramTarget(ProgramTarget):
    """The same with an accelerator; ``damage`` is done by that alone."""

    def accelerator(self) -> str | None:
        return "a second torch"

    def load(self, path: Path, threads: int | None = None) -> ProgramRunner:
        return ProgramRunner(path, lambda outputs: outputs)

    def load_accelerated(self, path: Path) -> ProgramRunner:
        return ProgramRunner(path, self.damage)

    def placed(self, path: Path, images: np.ndarray) -> Placed:
        return Placed(nodes=5, rest={"Shape": len(images)})


_AXES = ("batch", "channels", "height", "width")


class Small(nn.Module):
    """Convolution, position table resized to the map, pooling, classifier: runs at any size.

    Args:
        freeze: what of the input's shape (B, C, H, W) becomes a constant of a captured graph.
    """

    def __init__(self, freeze: Callable[[torch.Size], Any] = lambda shape: None) -> None:
        super().__init__()
        self.freeze = freeze
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.table = nn.Parameter(torch.linspace(-1, 1, 8 * 16).reshape(1, 8, 4, 4))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.freeze(x.shape)
        x = self.conv(x).relu()
        x = x + F.interpolate(self.table, size=x.shape[-2:], mode="bilinear")
        return self.fc(x.square().mean((2, 3)))


def freeze_size(shape: torch.Size) -> None:
    """Make height and width constants, as a loop over rows would."""
    int(shape[2]), int(shape[3])


def freeze_all(shape: torch.Size) -> None:
    """Make every axis a constant."""
    for side in shape:
        int(side)


class Windowed(nn.Module):
    """Pads to multiples of 7 only where needed, a branch that a captured graph takes once and for all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = -x.shape[2] % 7, -x.shape[3] % 7
        if height or width:
            x = F.pad(x, (0, width, 0, height))
        b, c, h, w = x.shape
        rows = x.reshape(b * c * (h // 7), 7 * w).softmax(-1).reshape(b, c, h, w)
        return self.conv(rows * 100).amax((2, 3))


def wait_for_size(shape: torch.Size) -> None:
    """Wait for a height that is no symbol."""
    while not isinstance(shape[2], int):
        pass


def branch_on_size(shape: torch.Size) -> bool:
    """Branch on the width, to no effect."""
    return bool(shape[3] % 5 == 0)


class Mixing(Small):
    """Subtracts the mean of the batch: an image's outputs depend on its neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 0.5 * x.mean(0, keepdim=True))


class Unstable(Small):
    """Turns float32 rounding into outputs of any size."""

    def forward(self, x: Tensor) -> Tensor:
        return (1e7 * super().forward(x)).sin()


class Pyramid(nn.Module):
    """Two outputs, of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.first(x).relu()
        return [x, self.second(x)]


def mixed() -> nn.Module:
    """A backbone of four mixers, filled, in evaluation mode."""
    mixers = ["pool", "sepconv", "single_head", "attention"]
    model = mixzoo.create_model("metaformer", depths=(1,) * 4, dims=(8, 16, 24, 32), mixers=mixers, num_classes=10)
    return fill_(model).eval()


def small(**options: Any) -> Small:
    """A small filled module in evaluation mode."""
    return fill_(Small(**options)).eval()


def images(size: tuple[int, int], batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def attempt(
    model: nn.Module,
    folder: Path,
    target: Any = None,
    sizes: str = "40",
    batches: str = "1",
    dynamic: tuple[str, ...] = AXES,
    patience: float | None = PATIENCE,
) -> Any:
    """Write and verify for the target that is torch itself, or another."""
    prepared = prepare(model, "small")
    job = Job(prepared, parse_sizes(sizes), parse_batches(batches), {}, dynamic, lambda text: None, patience)
    folder.mkdir(exist_ok=True)
    return write(job, target or ProgramTarget(), folder)


def stage(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Make the target that is torch itself known as 'program'."""
    monkeypatch.setitem(TARGETS, "program", ProgramTarget(**options))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()
