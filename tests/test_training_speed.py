"""The training engine against timm's script: what is asked of the script, and what is read from both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mixzoo.bench import training
from mixzoo.bench.training import Comparison, Job, compare_engines
from mixzoo.zoo.errors import MixzooError
from PIL import Image
from rich.console import Console

SCRIPT = """
import json, os, sys
from pathlib import Path
Path(__file__).with_name("asked.json").write_text(json.dumps([os.environ["OMP_NUM_THREADS"], *sys.argv[1:]]))
print("Train: 0 [   0/4 ( 25%)]  Loss: 0.69 (0.69)  Time: 9.000s,    1.00/s  (9.000s,    1.00/s)  LR: 1e-3")
print("Train: 0 [   3/4 (100%)]  Loss: 0.69 (0.69)  Time: 0.100s,   20.00/s  (0.250s,    8.00/s)  LR: 1e-3")
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Eight training images of two classes, and a script that says what timm's does."""
    for split in ("train", "val"):
        for number in range(8):
            path = tmp_path / "images" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (30 * number, 0, 0)).save(path)
    (tmp_path / "train.py").write_text(SCRIPT)
    return Job(tmp_path / "train.py", tmp_path / "images", "test_efficientnet", 32, 2, 0, 1)


@pytest.mark.slow
def test_both_train_in_turns_and_the_first_round_does_not_count(job: Job) -> None:
    found = compare_engines(job, 1, Console(quiet=True))
    assert found.timm == (2 / 0.25,) and len(found.ours) == 1 and found.ours[0] > 0
    assert found.ratio == pytest.approx(found.ours[0] / 8)
    threads, *asked = json.loads((job.script.parent / "asked.json").read_text())
    assert threads == "1" and asked[asked.index("--num-classes") + 1] == "2"
    assert asked[asked.index("--input-size") + 1 :][:3] == ["3", "32", "32"]
    assert [row[-1] for row in zip(*(column.cells for column in training.table(found).columns), strict=True)][
        1
    ] == "1.000"


def test_the_ratio_is_the_median_of_rounds(job: Job) -> None:
    assert Comparison(job, (100.0, 50.0, 90.0), (100.0, 100.0, 100.0)).ratio == 0.9


def test_a_script_that_fails_or_says_nothing_is_an_error(job: Job) -> None:
    job.script.write_text("import sys; sys.exit('no such option')")
    with pytest.raises(MixzooError, match="no such option"):
        training._timm(job)
    job.script.write_text("print('done')")
    with pytest.raises(MixzooError, match="said nothing of its speed; its last line: done"):
        training._timm(job)
