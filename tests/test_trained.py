"""The runs that come with the package: they load, know their images, and do everything that a run of one's own does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mixzoo.export.target import TARGETS
from mixzoo.train import load_recipe, load_run
from mixzoo.train.models import WEIGHTS, build_model
from mixzoo.zoo.cli import app
from mixzoo.zoo.errors import CheckpointError
from mixzoo.zoo.trained import CARD, RECORD, find_run, trained_runs
from PIL import Image
from typer.testing import CliRunner

SHEET = Path(__file__).parent / "golden" / "fashion_mnist_200.png"  # row c has the first 20 test images of class c
LIMIT = 4_000_000  # bytes
NAME = "shvit_fashion"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 test images in "test", and the last five of each class in "some", with a folder for each class."""
    home, sheet = tmp_path_factory.mktemp("fashion"), np.array(Image.open(SHEET))
    for label, name in enumerate(load_run(NAME).record["classes"]):
        for number in range(20):
            image = Image.fromarray(sheet[28 * label : 28 * label + 28, 28 * number : 28 * number + 28])
            for split in ("test", "some")[: 1 + (number >= 15)]:
                path = home / split / name.replace("/", "_") / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    return home


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", trained_runs())
def test_they_are_small_whole_and_have_a_card(name: str) -> None:
    folder = find_run(name)
    record, card = json.loads((folder / RECORD).read_text()), (folder / CARD).read_text()
    weights = (folder / WEIGHTS).read_bytes()
    assert len(weights) <= LIMIT and hashlib.sha256(weights).hexdigest() == record["weights"]["sha256"]
    assert f"{record['test_accuracy']:.2%}".replace("%", " %") in card
    for word in ("Licence", "Data", "Seed", "Recipe"):
        assert f"**{word}**" in card, word
    trained = load_run(name)
    assert not trained.model.training and len(record["classes"]) == trained.model.num_classes  # type: ignore[arg-type]


def test_there_is_one() -> None:
    assert NAME in trained_runs()
    record = load_run(NAME).record
    assert record["test_accuracy"] >= 0.93 and record["test_images"] == 10_000
    assert sum(p.numel() for p in load_run(NAME).model.parameters()) < 2e6


def test_it_knows_real_images(images: Path) -> None:
    """Folders come in the order of their names, which is not that of the labels."""
    scores = json.loads(run("eval", NAME, "--data", str(images / "test"), "--json"))
    assert scores["images"] == 200 and scores["top1"] >= 0.9
    picture = str(images / "test" / "Ankle boot" / "0.png")
    (found,) = json.loads(run("predict", "shvit", picture, "--checkpoint", NAME, "--json"))
    assert found["guesses"][0]["label"] == "Ankle boot" and found["guesses"][0]["probability"] > 0.5


def test_a_recipe_starts_from_it() -> None:
    recipe = load_recipe("shvit_transfer")
    assert recipe.model.checkpoint == NAME
    model, trained = build_model(recipe, 10), load_run(NAME).model
    for (key, ours), theirs in zip(model.state_dict().items(), trained.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


def test_unknown_names_are_told_what_there_is() -> None:
    with pytest.raises(CheckpointError, match="shvit_fashion"):
        load_run("shvit_fashon")
    with pytest.raises(CheckpointError, match="shvit_fashion"):
        build_model(load_recipe("shvit_transfer", ["model.checkpoint=shvit_fashon"]), 10)


@pytest.mark.slow
@pytest.mark.skipif(bool(TARGETS["onnx"].unavailable()), reason=str(TARGETS["onnx"].unavailable()))
def test_eight_bits_keep_what_it_knows(images: Path, tmp_path: Path) -> None:
    words = ["export", "shvit", "--checkpoint", NAME, "--to", "onnx", "--out", str(tmp_path), "--dynamic", "none"]
    words += ["--precision", "fp32,int8", "--calibration", str(images / "some"), "--labelled", str(images / "test")]
    plain, eight = json.loads(run(*words, "--max-drop", "2", "--json"))
    judged = eight["artifacts"][0]["judged"]
    assert judged["images"] == 200 and judged["drop"] <= 2.0 and judged["accuracy"] >= 0.88
    assert eight["weights"] == plain["weights"] and eight["artifacts"][0]["bytes"] < plain["artifacts"][0]["bytes"] / 2
