"""Images on their way to the model: sources, order, augmentation, and what is said of those that do not fit."""

from __future__ import annotations

import gzip
import struct
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mixzoo.train import load_recipe
from mixzoo.train.data import (
    Examples,
    Finish,
    TrainBatches,
    UnreadableError,
    epoch_order,
    eval_transform,
    make_loader,
    shard_of_batch,
    train_transform,
)
from mixzoo.train.images import ArrayImages, Images
from mixzoo.train.pixels import as_pixels, digits, normalise
from mixzoo.train.randomness import borrowed_generators, seed_all
from mixzoo.train.schema import AugmentRecipe, DataRecipe
from mixzoo.train.sources import DataError, load_data
from mixzoo.zoo.errors import MissingExtraError
from PIL import Image

GREY: dict[str, Any] = {"source": "digits", "size": 32, "mean": (0.5,), "std": (0.5,)}
EVERYTHING = AugmentRecipe(
    rotate=20,
    shift=0.1,
    flip=0.5,
    crop_scale=(0.5, 1.0),
    crop_ratio=(0.8, 1.2),
    auto_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.5,
)


def noise(count: int, size: int = 20, channels: int = 3) -> ArrayImages:
    """Random images of two classes."""
    shape = (count, size, size, 3) if channels == 3 else (count, size, size)
    return ArrayImages(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), [i % 2 for i in range(count)])


def colour(**options: Any) -> DataRecipe:
    return DataRecipe(**{"source": "folder", "size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "batch": 8, **options})


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two splits of two classes with four images each."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = generator.integers(0, 256, (24, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


# the digits


def test_digits_are_split_once_and_for_all() -> None:
    first, second = digits(), digits()
    assert (len(first.train), len(first.test), first.train.images.shape[1:]) == (1347, 450, (1, 8, 8))
    assert torch.equal(first.test.images, second.test.images)
    shares = [torch.bincount(s.labels) / len(s) for s in (first.train, first.test)]
    assert (shares[0] - shares[1]).abs().max() < 0.003  # stratified
    seen = {image.numpy().tobytes() for image in first.train.images}
    assert not any(image.numpy().tobytes() in seen for image in first.test.images)


def test_images_have_the_recipes_size_range_and_statistics() -> None:
    recipe = load_recipe("shvit_digits").data
    images = as_pixels(load_data(recipe), recipe).train.images
    assert images.shape[1:] == (1, recipe.size, recipe.size)
    assert images.min() >= 0 and images.max() <= 1
    normal = normalise(images, recipe)
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.05


# augmentation


def test_images_move_by_at_most_what_the_recipe_says() -> None:
    array = np.zeros((40, 40), np.uint8)
    array[20, 20] = 255
    recipe = DataRecipe(**{**GREY, "size": 40, "interpolation": "bilinear"})
    transform = train_transform(recipe, AugmentRecipe(shift=0.1))
    with borrowed_generators():
        torch.manual_seed(0)
        moved = [transform(Image.fromarray(array))[0] for _ in range(64)]
    peaks = torch.stack([torch.nonzero(m == m.max())[0] for m in moved]) - 20
    assert 2 <= peaks.abs().max() <= 5  # pixels: 4, and 1 for the interpolation
    plain = train_transform(recipe, AugmentRecipe())(Image.fromarray(array))
    assert torch.equal(plain[0], torch.from_numpy(array))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_is_augmented_alike_whoever_reads_it_and_wherever_reading_begins(channels: int, workers: int) -> None:
    recipe = colour(mean=(0.5,) * channels, std=(0.5,) * channels)

    def epoch(workers: int, start: int, rank: int = 0, count: int = 1, seed: int = 3) -> list[torch.Tensor]:
        images = noise(34, channels=channels)
        examples = Examples(images, train_transform(recipe, EVERYTHING), recipe, seed)
        batches = TrainBatches(34, recipe, seed, rank, count)
        batches.seek(2, start)
        finish = Finish(recipe, torch.device("cpu"), EVERYTHING, seed)
        with borrowed_generators():
            return [finish(batch)[0] for batch in make_loader(examples, batches, workers, False)]

    whole = epoch(0, 0)
    assert len(whole) == 4 and whole[0].shape == (8, channels, 32, 32) and whole[0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], epoch(workers, 1), strict=True))
    shares = [epoch(0, 0, rank, 2) for rank in range(2)]
    both = torch.cat([shares[rank][0] for rank in range(2)])
    assert torch.equal(both, whole[0][[0, 1, 6, 7, 2, 3, 4, 5]])
    assert not torch.equal(whole[0], epoch(0, 0, seed=4)[0])


@pytest.mark.parametrize("policy", ["rand-m10-n15-mstd0-p1-inc1", "original-mstd0"])
def test_the_greatest_magnitudes_may_leave_no_bits_of_an_image(policy: str) -> None:
    steps = train_transform(colour(), AugmentRecipe(auto_augment=policy)).transforms
    (auto,) = (step for step in steps if type(step).__name__.endswith("Augment"))
    found = [*getattr(auto, "ops", ()), *(op for group in getattr(auto, "policy", ()) for op in group)]
    image = Image.fromarray(np.full((8, 8, 3), 255, dtype=np.uint8))
    operations = [op for op in found if op.name.startswith("Posterize")]
    assert operations
    for operation in operations:
        levels = [np.asarray(operation.aug_fn(image, bits, fillcolor=0)).max() for bits in (8, 1, 0)]
        assert levels == [255, 128, 0]


def test_the_generators_of_the_caller_stay_as_they_were() -> None:
    before = torch.get_rng_state()
    with borrowed_generators():
        torch.manual_seed(1)
    assert torch.equal(before, torch.get_rng_state())


# order


def test_an_epoch_visits_every_image_at_most_once_in_its_own_order() -> None:
    recipe = colour(batch=4)
    batches = TrainBatches(11, recipe, 0)
    epochs = []
    for number in (1, 2):
        batches.seek(number, 0)
        epochs.append([index for batch in batches for index, _, _ in batch])
    assert all(len(e) == 8 == len(set(e)) for e in epochs) and epochs[0] != epochs[1]
    assert batches.steps == 2


def test_repeated_augmentation_shows_fewer_images_more_often() -> None:
    order = epoch_order(9, 0, 1, 3)
    assert len(order) == 9 and torch.bincount(order).sort().values.tolist()[-3:] == [3, 3, 3]


@pytest.mark.parametrize(("size", "total"), [(8, 2), (12, 3), (6, 2), (8, 1)])
def test_parts_of_a_batch_make_up_the_whole_and_keep_the_pairs_of_mixup(size: int, total: int) -> None:
    parts = [shard_of_batch(size, part, total) for part in range(total)]
    assert sorted(i for part in parts for i in part) == list(range(size))
    if size % (2 * total) == 0:
        assert all(a + b == size - 1 for part in parts for a, b in zip(part, reversed(part), strict=True))


# sources


def test_a_folder_for_each_class(folders: Path) -> None:
    data = load_data(colour(root=str(folders)))
    assert data.classes == ("cat", "dog") and data.train.labels == [0] * 4 + [1] * 4
    image, label = data.test.read(7)
    assert (image.size, label) == ((30, 24), 1) and data.test.name(7).endswith("val/dog/3.png")


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_from_the_files_of_debians_package(tmp_path: Path, packed: bool) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        for kind, array in (("images-idx3", arrays), ("labels-idx1", np.arange(10, dtype=np.uint8))):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            content = header + array.tobytes()
            name = f"{prefix}-{kind}-ubyte" + (".gz" if packed else "")
            (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    recipe = DataRecipe(**{**GREY, "source": "fashion_mnist", "root": str(tmp_path)})
    data = load_data(recipe)
    assert data.classes[9] == "Ankle boot" and np.array_equal(np.asarray(data.test.read(3)[0]), arrays[3])
    path = next(tmp_path.glob("train-images*"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"is not a whole idx file.*fetch it again"):
        load_data(recipe)


def test_a_torchvision_source_without_network_or_files_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Error downloading: no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", offline)
    with pytest.raises(DataError, match=r"'cifar10'.*no network.*set data\.root to a folder"):
        load_data(colour(source="cifar10", root=str(tmp_path)))


def test_shards_of_webdataset_are_read_at_any_place(tmp_path: Path, folders: Path) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"set-train-{number:04d}.tar", "w") as tar:
            for label, name in enumerate(("cat", "dog")):
                (tmp_path / "label").write_text(str(label))
                tar.add(tmp_path / "label", f"{number}_{name}.cls")
                tar.add(folders / "train" / name / f"{number}.png", f"{number}_{name}.png")
    for split in ("train", "set-train-{0000..0001}.tar"):
        data = load_data(colour(source="wds/set", root=str(tmp_path), train=split, test=split))
        assert data.train.labels == [0, 1, 0, 1] and data.classes == ("0", "1")
        expected = Image.open(folders / "train" / "dog" / "1.png")
        assert np.array_equal(np.asarray(data.train.read(3)[0]), np.asarray(expected))
    with pytest.raises(ValueError, match="No shards of the split 'val'"):
        load_data(colour(source="wds/set", root=str(tmp_path), test="val"))


# what does not fit


def test_classes_that_differ_between_the_splits_are_named(folders: Path) -> None:
    (folders / "val" / "dog").rename(folders / "val" / "wolf")
    with pytest.raises(DataError, match=r"only in data\.train: 'dog'; only in data\.test: 'wolf'"):
        load_data(colour(root=str(folders)))


def test_an_empty_class_is_named(folders: Path) -> None:
    (folders / "train" / "emu").mkdir()
    with pytest.raises(DataError, match="no images of 'emu'"):
        load_data(colour(root=str(folders)))


def test_labels_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(8)
    images.labels = [0, 1, 2, 3, 4, 5, 6, 10]
    monkeypatch.setattr("mixzoo.train.sources._from_tensors", lambda split: images)
    with pytest.raises(DataError, match=r"is 10, but there are 10 classes"):
        load_data(DataRecipe(**GREY))


@pytest.mark.parametrize("missing", ["root", "folder", "split"])
def test_missing_images_are_said_to_be_missing(folders: Path, missing: str) -> None:
    root = {"root": None, "folder": str(folders / "nowhere"), "split": str(folders)}[missing]
    options = {"test": "holdout"} if missing == "split" else {}
    with pytest.raises(DataError, match=r"needs data\.root|no such folder|no folder 'holdout'"):
        load_data(colour(root=root, **options))


class Damaged(ArrayImages):
    """Some of its images cannot be read."""

    bad = (1, 2, 5)

    def read(self, index: int) -> tuple[Image.Image, int]:
        if index in self.bad:
            raise OSError("image file is truncated")
        return super().read(index)


def damaged() -> Images:
    plain = noise(10)
    return Damaged(plain.arrays, plain.labels or [])


def test_unreadable_images_are_replaced_by_the_next_good_ones() -> None:
    recipe = colour(corrupt_share=0.3)
    examples = Examples(damaged(), eval_transform(recipe), recipe, seed=0)
    batch = examples.__getitems__([(i, 1, i) for i in range(10)])
    good = Examples(noise(10), eval_transform(recipe), recipe, seed=0)
    expected = good.__getitems__([(i, 1, i) for i in (0, 3, 3, 3, 4, 6, 6, 7, 8, 9)])
    assert torch.equal(batch.images, expected.images) and torch.equal(batch.labels, expected.labels)
    assert sorted(batch.unreadable) == [1, 2, 5] and "image 5: image file is truncated" in batch.unreadable.values()


def test_unreadable_test_images_are_left_out() -> None:
    recipe = colour(corrupt_share=0.3)
    batch = Examples(damaged(), eval_transform(recipe), recipe, None).__getitems__([(i, 0, i) for i in range(10)])
    assert [n for n, _, _ in batch.places] == [0, 3, 4, 6, 7, 8, 9] and len(batch.images) == len(batch.labels) == 7


def test_more_unreadable_images_than_allowed_are_an_error() -> None:
    recipe = colour(corrupt_share=0.2)
    examples = Examples(damaged(), eval_transform(recipe), recipe, seed=0)
    with pytest.raises(UnreadableError, match=r"3 of 10 .* allows 2 \(image 1: .*; image 5: .*replace them"):
        examples.__getitems__([(i, 1, i) for i in range(10)])


def test_a_truncated_file_counts_as_unreadable(folders: Path) -> None:
    path = folders / "train" / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:200])
    recipe = colour(root=str(folders), corrupt_share=0.5)
    batch = Examples(load_data(recipe).train, eval_transform(recipe), recipe, 0).__getitems__([(0, 1, 0), (1, 1, 1)])
    assert list(batch.unreadable) == [0] and torch.equal(batch.images[0], batch.images[1])


def test_a_data_set_of_hugging_face_tells_its_classes(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("datasets")
    (folders / "val").rename(folders / "validation")
    cache = tmp_path_factory.mktemp("cache")
    data = load_data(colour(source=f"hfds/{folders}", root=str(cache)))
    assert data.classes == ("cat", "dog") and data.train.labels == [0] * 4 + [1] * 4
    assert data.train.read(5)[0].size == (30, 24) and data.train.name(5).endswith("dog/1.png")


@pytest.mark.parametrize("source", ["hfds/mnist", "tfds/mnist"])
def test_a_source_without_its_package_names_it(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixzoo.train.sources.available", lambda module: False)
    with pytest.raises(MissingExtraError, match=f"'{source}' needs a package that is not installed: pip install"):
        load_data(colour(source=source))


def test_random_access_sources_of_tensorflow_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package: its own reader is not run here."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 1), dtype=np.uint8)
    examples = [{"image": image, "label": np.int64(index % 2)} for index, image in enumerate(pixels)]
    names = SimpleNamespace(features={"label": SimpleNamespace(names=["no", "yes"])})
    package = SimpleNamespace(
        data_source=lambda name, split, data_dir, download: examples,
        builder=lambda name, data_dir: SimpleNamespace(info=names),
    )
    monkeypatch.setattr("mixzoo.train.sources._package", lambda *args: package)
    data = load_data(DataRecipe(**{**GREY, "source": "tfds/some"}))
    image, label = data.train.read(3)
    assert data.classes == ("no", "yes") and label == 1 and np.array_equal(np.asarray(image), pixels[3, :, :, 0])


def test_generators_are_set_without_a_call_left_behind_for_devices_that_are_not_in_use() -> None:
    queued = len(torch.cuda._queued_calls)  # type: ignore[attr-defined]
    with borrowed_generators():
        for number in range(10):
            seed_all(number)
    assert torch.cuda.is_initialized() or len(torch.cuda._queued_calls) == queued  # type: ignore[attr-defined]
