"""Scenes of real items on photographs: what the annotations say is what the pictures show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixzoo.train import placing, scenes
from mixzoo.train.images import ArrayImages
from mixzoo.train.scenes import ScenesError, SceneSettings, make_scenes, run_lengths
from mixzoo.train.sources import DataError
from mixzoo.zoo.cli import app
from mixzoo.zoo.errors import UnknownNameError
from PIL import Image
from typer.testing import CliRunner

SMALL = SceneSettings(train=6, val=4, size=(96, 128), source="digits")
SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "made"
    make_scenes(out, SMALL)
    return out


def record(folder: Path, split: str) -> dict[str, Any]:
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def decode(annotation: dict[str, Any]) -> np.ndarray:
    """The mask (H, W) of COCO's uncompressed run lengths, written here anew."""
    size, counts = annotation["segmentation"]["size"], annotation["segmentation"]["counts"]
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# what is written


def test_files_are_those_of_both_layouts(folder: Path) -> None:
    numbers = {"train": range(6), "val": range(4)}
    expected = {f"{split}/{n:05d}.jpg" for split in SPLITS for n in numbers[split]}
    expected |= {f"annotations/{split}/{n:05d}.png" for split in SPLITS for n in numbers[split]}
    assert set(contents(folder)) == expected | {f"annotations/instances_{split}.json" for split in SPLITS}
    assert {Image.open(p).size for p in folder.rglob("*.*g")} == {(128, 96)}


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_and_areas_are_those_of_the_masks(folder: Path, split: str) -> None:
    found = record(folder, split)
    assert [a["id"] for a in found["annotations"]] == list(range(1, len(found["annotations"]) + 1))
    for annotation in found["annotations"]:
        mask = decode(annotation)
        rows, columns = np.nonzero(mask)
        left, top, width, height = annotation["bbox"]
        assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (top, top + height, left, left + width)
        assert annotation["area"] == mask.sum() > 0


@pytest.mark.parametrize("split", SPLITS)
def test_maps_of_classes_are_the_masks(folder: Path, split: str) -> None:
    """No pixel is two items', and every pixel of an item has its class."""
    found = record(folder, split)
    for picture in found["images"]:
        mine = [a for a in found["annotations"] if a["image_id"] == picture["id"]]
        masks = np.array([decode(a) for a in mine])
        assert 2 <= len(mine) <= SMALL.most and masks.sum(0).max() == 1
        path = folder / "annotations" / split / picture["file_name"].replace(".jpg", ".png")
        expected = sum(mask * a["category_id"] for mask, a in zip(masks, mine, strict=True))
        assert np.array_equal(np.asarray(Image.open(path)), expected)


def test_categories_are_the_classes(folder: Path) -> None:
    for split in SPLITS:
        found = record(folder, split)
        assert found["categories"] == [{"id": n + 1, "name": str(n)} for n in range(10)]
        assert {a["category_id"] for a in found["annotations"]} <= set(range(1, 11))


def test_classes_can_be_chosen(tmp_path: Path) -> None:
    """They are numbered in the order that they are given in; a drawn item is one of theirs."""
    count = make_scenes(tmp_path / "made", replace(SMALL, classes=("7", "1")))
    found = record(tmp_path / "made", "train")
    assert found["categories"] == [{"id": 1, "name": "7"}, {"id": 2, "name": "1"}]
    assert {a["category_id"] for a in found["annotations"]} == {1, 2}
    assert list(count["train"]) == ["7", "1"] and sum(count["train"].values()) == len(found["annotations"])
    chosen, _ = scenes._items(replace(SMALL, classes=("7", "1")), "train")
    every, _ = scenes._items(SMALL, "train")
    assert chosen.labels is not None and every.labels is not None
    for number, label in enumerate((7, 1)):
        mine = [np.asarray(chosen.read(i)[0]) for i, found in enumerate(chosen.labels) if found == number]
        theirs = [np.asarray(every.read(i)[0]) for i, found in enumerate(every.labels) if found == label]
        assert len(mine) > 100 and np.array_equal(mine, theirs)


def test_items_can_be_seen(folder: Path) -> None:
    """An item is lighter than the dimmed photograph around it."""
    for split in SPLITS:
        for path in sorted((folder / split).glob("*.jpg")):
            light = np.asarray(Image.open(path).convert("L"), np.float32)
            classes = np.asarray(Image.open(folder / "annotations" / split / f"{path.stem}.png"))
            assert light[classes > 0].mean() > light[classes == 0].mean() + 25


def test_coco_reads_them(folder: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    data = coco.COCO(folder / "annotations" / "instances_val.json")
    for annotation in data.loadAnns(data.getAnnIds()):
        assert np.array_equal(data.annToMask(annotation).astype(bool), decode(annotation))


# what is drawn


def test_a_seed_gives_the_same_pictures_however_many_there_are(folder: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    make_scenes(again, replace(SMALL, train=3))
    make_scenes(other, replace(SMALL, train=3, seed=1))
    first, second, third = contents(folder), contents(again), contents(other)
    assert all(first[name] == second[name] for name in second if name != "annotations/instances_train.json")
    assert record(again, "train")["annotations"] == [
        a for a in record(folder, "train")["annotations"] if a["image_id"] <= 3
    ]
    assert not any(first[name] == third[name] for name in third if name.startswith(SPLITS))


def test_what_lies_over_an_item_hides_it() -> None:
    """Solid squares: each annotated mask is what the later ones leave, and at least `SEEN` of a square."""
    squares = ArrayImages(np.full((3, 8, 8), 255, np.uint8), [0, 1, 2])
    hidden = 0
    for seed in range(20):
        ground = [Image.new("RGB", (256, 256))]
        scene = placing.compose(squares, ground, (96, 128), 6, np.random.default_rng(seed))
        assert sum(item.mask for item in scene.items).max() == 1
        boxes = [np.ptp(np.nonzero(item.mask), axis=1) + 1 for item in scene.items]
        shares = [item.mask.sum() / box.max() ** 2 for item, box in zip(scene.items, boxes, strict=True)]
        hidden += sum(share < 0.95 for share in shares)
        assert min(shares) > placing.SEEN - 0.01
        assert shares[-1] == 1  # nothing lies over the last
        colours = [scene.picture[item.mask] for item in scene.items]
        assert all((colour == colour[0]).all() for colour in colours)
    assert hidden > 5


def test_splits_share_no_part_of_a_photograph(tmp_path: Path) -> None:
    """A photograph whose left part is red and whose right part is blue."""
    array = np.zeros((100, 200, 3), np.uint8)
    array[:, :140, 0] = array[:, 140:, 2] = 255
    (tmp_path / "grounds").mkdir()
    Image.fromarray(array).save(tmp_path / "grounds" / "two.png")
    make_scenes(tmp_path / "made", replace(SMALL, size=(64, 64), backgrounds=tmp_path / "grounds"))
    for split, channel in (("train", 0), ("val", 2)):
        for path in (tmp_path / "made" / split).glob("*.jpg"):
            picture = np.asarray(Image.open(path), np.int32)
            ground = np.asarray(Image.open(tmp_path / "made/annotations" / split / f"{path.stem}.png")) == 0
            median = np.median(picture[ground], axis=0)
            assert median[channel] > 100 and median[2 - channel] < 40


def test_run_lengths_begin_outside() -> None:
    assert run_lengths(np.array([[True, False], [True, False]])) == [0, 2, 2]
    assert run_lengths(np.array([[False, True], [False, True]])) == [2, 2]
    assert run_lengths(np.array([[False, True], [True, False]])) == [1, 2, 1]


# what goes wrong


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"source": "digts"}, UnknownNameError, "digits"),
        ({"classes": ("1", "11")}, UnknownNameError, "'1'"),
        ({"size": (32, 128)}, ScenesError, "32x128"),
        ({"train": 0}, ScenesError, "picture to train on"),
        ({"most": 1}, ScenesError, "two items"),
        ({"source": "fashion_mnist", "root": Path("no/such")}, ScenesError, "--root"),
        ({"backgrounds": Path("no/such")}, ScenesError, "--backgrounds"),
    ],
)
def test_errors_name_the_remedy(options: dict[str, Any], error: type[Exception], told: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=told):
        make_scenes(tmp_path / "made", replace(SMALL, **options))
    assert not any(tmp_path.iterdir())


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(b"\0\0\x08")
    with pytest.raises((DataError, ValueError), match="train-images-idx3-ubyte"):
        make_scenes(tmp_path / "made", SceneSettings(root=tmp_path))
    (tmp_path / "picture.png").write_bytes(b"no picture")
    with pytest.raises(ScenesError, match=r"picture\.png"):
        make_scenes(tmp_path / "made", replace(SMALL, backgrounds=tmp_path))
    Image.new("RGB", (40, 400)).save(tmp_path / "picture.png")
    with pytest.raises(ScenesError, match="64x64"):
        make_scenes(tmp_path / "made", replace(SMALL, backgrounds=tmp_path))


def test_a_folder_that_is_there_is_left_alone(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(ScenesError, match="exists already"):
        make_scenes(folder, SMALL)
    assert contents(folder) == before


def test_nothing_is_left_of_what_broke_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def fails_at_the_third(*arguments: Any) -> placing.Scene:
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return placing.compose(*arguments)

    monkeypatch.setattr(scenes, "compose", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_scenes(tmp_path / "made", SMALL)
    assert not any(tmp_path.iterdir())


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    out = tmp_path / "made"
    done = CliRunner().invoke(
        app, f"scenes --out {out} --train 2 --val 1 --size 64x96 --source digits --seed 3".split()
    )
    assert done.exit_code == 0, done.output
    assert "2 pictures to train on and 1 to test on" in done.output and str(out) in done.output.replace("\n", "")
    assert len(contents(out)) == 2 * 3 + 2
    again = CliRunner().invoke(app, f"scenes --out {out} --source digits".split())
    assert again.exit_code == 2 and "exists already" in again.output
