"""What OpenVINO's converter does not know or gets wrong, and what is said where nothing helps."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mixzoo.export import get_target
from mixzoo.export.capture import Capture
from mixzoo.export.errors import ExportError
from mixzoo.export.shapes import AXES
from mixzoo.zoo.fill import fill_
from support import TOLERANCE, image, rel_err
from torch import Tensor, nn
from torch.nn import functional as F

TARGET = get_target("openvino")
pytestmark = pytest.mark.skipif(bool(TARGET.unavailable()), reason=str(TARGET.unavailable()))


class Resized(nn.Module):
    """A map, and a table of its size, made as large as the other."""

    def __init__(self, mode: str, antialias: bool = False) -> None:
        super().__init__()
        self.mode, self.antialias = mode, antialias
        self.table = fill_(nn.ParameterDict({"table": nn.Parameter(torch.ones(1, 3, 9, 7))}))["table"]

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(x, 4)
        return F.interpolate(self.table, size=y.shape[-2:], mode=self.mode, antialias=self.antialias) * y


class Sides(nn.Module):
    """Lesser, greater and quotient of sides."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        least, most = torch.sym_min(height, width), torch.sym_max(width - 10, 3)
        return F.pad(x, (0, most, least, 0)) * (torch.sym_float(height) / width)


OPEN = {
    "linear": Resized("bilinear"),
    "cubic": Resized("bicubic"),
    "smoothly linear": Resized("bilinear", antialias=True),
    "smoothly cubic": Resized("bicubic", antialias=True),
    "sides": Sides(),
}


@pytest.mark.parametrize("module", OPEN.values(), ids=OPEN.keys())
def test_open_sides_are_computed_with_as_torch_does(module: nn.Module, tmp_path: Path) -> None:
    """Also where a side of a map is 1, of which the converter takes the first value and torch the middle."""
    module = module.eval().requires_grad_(False)
    TARGET.export(Capture(module, image((2, 3, 36, 28)).float(), AXES), tmp_path / "sides.xml", {})
    run = TARGET.load(tmp_path / "sides.xml", threads=1)
    column = 8 if getattr(module, "antialias", False) else 5  # torch itself is wrong about columns of one pixel
    for shape in ((2, 3, 36, 28), (1, 3, 4, 30), (3, 3, 20, column), (1, 3, 4, 4)):
        x = image(shape, seed=shape[2]).float()
        (got,) = run.outputs(x.numpy())
        assert rel_err(torch.from_numpy(got), module(x)) < 10 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("options", [{"size": (5, 1)}, {"size": (1, 9)}, {"scale_factor": 1.7}, {"scale_factor": 0.4}])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_tables_of_files_with_fixed_sides(mode: str, corners: bool, options: dict[str, Any], tmp_path: Path) -> None:
    """... are resized by the converter itself."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", image((1, 3, 6, 4)).float())

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            table, resized = (F.interpolate(t, mode=mode, align_corners=corners, **options) for t in (self.table, x))
            return table + x.mean(), resized

    module, x = Scaled().eval(), image((2, 3, 6, 4), seed=1).float()
    TARGET.export(Capture(module, x, ()), tmp_path / "fixed.xml", {})
    for got, wanted in zip(TARGET.load(tmp_path / "fixed.xml", threads=1).outputs(x.numpy()), module(x), strict=True):
        assert rel_err(torch.from_numpy(got), wanted) < 10 * TOLERANCE[torch.float32]


class Cornered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, (5, 3), mode="bilinear", antialias=True, align_corners=True)


def test_what_no_rule_of_ours_can_convert_is_said(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot convert the model: nothing resizes with antialias=True and align_c"):
        TARGET.export(Capture(Cornered().eval(), image((1, 3, 8, 8)).float(), ()), tmp_path / "corners.xml", {})


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0e(x)


def test_the_operator_that_the_converter_lacks_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """... and what is logged from then on is seen: the converter hides it."""
    before = logging.root.level, list(logging.root.filters), list(logging.root.handlers)
    capture = Capture(Unknown().eval(), image((1, 3, 8, 8)).float(), ())
    with pytest.raises(ExportError, match=r"OpenVINO cannot convert the model: No conversion rule found.*special_i0e"):
        TARGET.export(capture, tmp_path / "unknown.xml", {})
    assert not list(tmp_path.iterdir())
    assert before == (logging.root.level, logging.root.filters, logging.root.handlers)
    logging.getLogger("mixzoo").warning("still heard")
    assert "still heard" in caplog.text


SIGNALLED = """
import faulthandler, pathlib, signal, sys
from mixzoo.export import get_target
faulthandler.enable()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
load, path = get_target("openvino").load, pathlib.Path(sys.argv[1])
first, second = load(path), load(path)
del first
signal.raise_signal(signal.SIGUSR1)
del second
signal.raise_signal(signal.SIGUSR1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO changes the stack of signal handlers on Linux")
def test_signals_are_handled_when_files_are_closed(tmp_path: Path) -> None:
    """In the order in which they were opened: OpenVINO then leaves the process without a stack to handle them on."""
    TARGET.export(Capture(nn.Conv2d(3, 4, 1), image((1, 3, 8, 8)).float(), ()), tmp_path / "conv.xml", {})
    words = [sys.executable, "-c", SIGNALLED, str(tmp_path / "conv.xml")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["handled"] * 2), done.stderr[-1000:]
