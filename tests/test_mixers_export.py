"""Every mixer leaves as an ONNX file that computes what it does, and every shell with some mixers. Takes an hour.

That any mixer works in any shell, deployed and at odd sizes, is what `test_mixers` shows, and that its graph holds at
any size what `test_open_sizes` does. What is left is how the operators of a mixer, and those of a shell, are written.
"""

from __future__ import annotations

from pathlib import Path

import mixzoo
import pytest
from mixzoo.blocks.mixers import MIXERS
from test_mixers import SHELLS, side

pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]
STEP = 7  # of pairs of shell and mixer, one is exported
DEPTH = 2  # windows move between blocks, and tokens pass from one to the next


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_exports(mixer: str, tmp_path: Path) -> None:
    """At two sizes, of which one divides into no windows, and two batches; the export raises unless all agree."""
    model = mixzoo.create_model(
        "deit", depth=DEPTH, dim=48, class_token=False, num_classes=5, img_size=128, mixer=mixer
    )
    (report,) = mixzoo.export(model, out=tmp_path, name=mixer, sizes=((128, 96), (80, 144)), batches=(1, 2))
    assert report.error <= 1e-4 and "batch" in report.dynamic_axes
    content = report.manifest
    assert content["max_rank"] <= 5 and not {"DFT", "STFT", "Col2Im"} & set(content["artifacts"][0]["operators"])


def some_pairs() -> list[tuple[str, str]]:
    """Each shell with every seventh mixer, so that each mixer is in three shells."""
    return [(s, m) for i, s in enumerate(SHELLS) for j, m in enumerate(MIXERS) if (i + j) % STEP == 0]


@pytest.mark.parametrize(("shell", "mixer"), some_pairs())
def test_shells_export_with_any_mixer(shell: str, mixer: str, tmp_path: Path) -> None:
    edge = side(shell)
    model = mixzoo.create_model(shell, num_classes=5, img_size=edge, mixer=mixer, **SHELLS[shell])
    options = {"sizes": ((edge, edge), (edge, edge + 32)), "batches": (1, 2), "dynamic": ("batch",)}
    (report,) = mixzoo.export(model, out=tmp_path, **options)
    assert report.error <= 1e-4 and report.dynamic_axes == ("batch",)
