"""Every mixer leaves as a file for ONNX and for OpenVINO that computes what it does at any size; shells with some do.

That any mixer works in any shell, deployed and at odd sizes, is what `test_mixers` shows, and that its graph holds at
any size what `test_open_sizes` does. What is left is how the operators of a mixer, and those of a shell, are written.
"""

from __future__ import annotations

from pathlib import Path

import mixzoo
import pytest
import torch
from mixzoo.blocks.deploy import fold
from mixzoo.blocks.mixers import MIXERS
from mixzoo.export import get_target
from mixzoo.export.capture import Capture
from mixzoo.zoo.fill import fill_
from support import TOLERANCE, image, rel_err
from test_mixers import SHELLS, build, side
from test_open_sizes import CLOSED, GRID, SIZES

STEP = 7  # of pairs of shell and mixer, one is exported
NEVER = {"DFT", "STFT", "Col2Im"}  # what other runtimes lack


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_exports(mixer: str, name: str, tmp_path: Path) -> None:
    """One file of the folded mixer at any batch, and at any size where its graph can leave that open."""
    module = fold(fill_(MIXERS[mixer](48, GRID)).eval()).requires_grad_(False)
    closed = mixer in CLOSED
    traced, axes = (GRID, ("batch",)) if closed else ((20, 22), ("batch", "height", "width"))
    target = get_target(name)
    if reason := target.unavailable():
        pytest.skip(reason)
    path = tmp_path / f"mixer{target.suffix}"
    target.export(Capture(module, image((2, 48, *traced)).float(), axes), path, {})
    run = target.load(path, threads=1)
    for shape in [(1, *GRID), (3, *GRID)] if closed else SIZES:
        x = image((shape[0], 48, *shape[1:]), seed=shape[1]).float()
        with torch.no_grad():
            assert rel_err(torch.from_numpy(run(x.numpy())), module(x)) < 10 * TOLERANCE[torch.float32]
            assert rel_err(torch.from_numpy(run(x.flip(1).numpy())), module(x)) > 1e-3
    facts = target.describe(path)
    assert facts.max_rank <= 5 and not NEVER & set(facts.operators)


def some_pairs() -> list[tuple[str, str]]:
    """Each shell with every seventh mixer, so that each mixer is in three shells."""
    return [(s, m) for i, s in enumerate(SHELLS) for j, m in enumerate(MIXERS) if (i + j) % STEP == 0]


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("shell", "mixer"), some_pairs())
def test_shells_export_with_any_mixer(shell: str, mixer: str, tmp_path: Path) -> None:
    model, edge = build(shell, mixer).float(), side(shell)
    options = {"sizes": ((edge, edge), (edge, edge + 32)), "batches": (1, 2), "dynamic": ("batch",)}
    (report,) = mixzoo.export(model, out=tmp_path, **options)
    assert report.error <= 1e-4 and report.dynamic_axes == ("batch",)
