"""Every mixer leaves as an ONNX file that computes what it does: in one shell, and in all of them. Takes hours."""

from __future__ import annotations

from pathlib import Path

import mixzoo
import pytest
from mixzoo.blocks.mixers import MIXERS
from test_mixers import SHELLS, side

pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]
DEPTH = 2  # windows move between blocks, and tokens pass from one to the next


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_exports(mixer: str, tmp_path: Path) -> None:
    """At two sizes, of which one divides into no windows, and two batches; the export raises unless all agree."""
    model = mixzoo.create_model(
        "deit", depth=DEPTH, dim=48, class_token=False, num_classes=5, img_size=128, mixer=mixer
    )
    options = {"sizes": ((128, 96), (80, 144)), "batches": (1, 2), "dynamic": ("batch",)}
    (report,) = mixzoo.export(model, out=tmp_path, name=mixer, **options)
    assert report.error <= 1e-4 and report.dynamic_axes == ("batch",)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("shell", SHELLS)
def test_every_mixer_exports_from_every_shell(shell: str, mixer: str, tmp_path: Path) -> None:
    edge = side(shell)
    model = mixzoo.create_model(shell, num_classes=5, img_size=edge, mixer=mixer, **SHELLS[shell])
    (report,) = mixzoo.export(model, out=tmp_path, sizes=((edge, edge), (edge, edge + 32)), batches=(1, 2))
    assert report.error <= 1e-4
