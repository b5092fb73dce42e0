"""Recipes, data and the training loop, on a model that trains in a second."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch
from mixzoo.train import DivergedError, Recipe, RecipeError, TrainResult, list_recipes, load_recipe, load_run, train
from mixzoo.train.data import augment, batches, digits, load_data, normalise
from mixzoo.train.engine import accuracy, predict_logits
from mixzoo.train.recipe import override, recipe_variants
from mixzoo.train.schema import AugmentRecipe, valid_keys
from mixzoo.zoo.errors import CheckpointError, MixzooError, UnknownNameError
from mixzoo.zoo.timing import torch_threads
from rich.console import Console
from torch import nn

RECIPES = Path(__file__).resolve().parent.parent / "configs" / "recipes"
TINY = (
    "model.kwargs={depths: [1, 1, 1], dims: [16, 24, 32], partial_dims: [null, 8, 8]}",
    "data.size=32",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
)


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A short run of a tiny model, with its folder."""
    return train("shvit_digits", [*TINY, "schedule.epochs=5"], tmp_path_factory.mktemp("run"), quiet())


# recipes


@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_is_valid_and_its_header_says_what_it_costs(name: str) -> None:
    assert isinstance(load_recipe(name), Recipe)
    header = re.match(r"(#.*\n)+", (RECIPES / f"{name}.yaml").read_text())
    assert header and all(f"# {word}" in header[0] for word in ("Command", "Result", "Source", "Cost"))
    assert f"mixzoo train {name} " in header[0]


def test_every_recipe_on_disk_is_listed() -> None:
    assert list_recipes() == sorted(p.stem for p in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("optim.learning_rate=1", "optim.lr"),
        ("lr=1", "optim.lr"),
        ("optm.lr=1", "optim.lr"),
        ("schedule.epoch=3", "schedule.epochs"),
        ("epochs=3", "schedule.epochs"),
        ("data.sise=64", "data.size"),
        ("augment.rotation=3", "augment.rotate"),
        ("label_smoothing=0", "regularisation.label_smoothing"),
        ("sed=3", "seed"),
        ("model=shvit", "model.name"),
        ("optim.kwargs.esp=1", "eps"),
        ("optim.optimizer=adamww", "adamw"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(wrong: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("shvit_digits", [wrong])
    assert nearest in re.findall(r"[\w.]+", str(caught.value).replace(repr(wrong.partition("=")[0]), ""))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optimm: {lr: 1}", "unknown key 'optimm', the nearest valid one is 'optim'"),
        ("optim: {lr: 1, weight_deca: 0}", "'optim.weight_deca', the nearest valid one is 'optim.weight_decay'"),
        ("model: {nam: x}", "'model.nam', the nearest valid one is 'model.name'"),
        ("model: shvit", "'model' is 'shvit', but it is a section with the keys model.name, model.kwargs,"),
        ("model: {name: x}", "the key 'data' is missing"),
        ("model: [", "not valid YAML"),
        ("3", "must be a mapping"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_the_key(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(RecipeError, match=re.escape(says)):
        load_recipe(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("optim.lr=fast", "'optim.lr' is 'fast'"),
        ("optim.lr=0", "'optim.lr' is 0"),
        ("data.size=16", "'data.size' is 16"),
        ("data.source=digit", "'data.source' is 'digit': no such source, the nearest is 'digits'"),
        ("data.source=wds/", "names that begin with wds/"),
        ("schedule.epochs=2.5", "'schedule.epochs' is 2.5"),
        ("schedule.warmup_epochs=20", "must be fewer than epochs"),
        ("data.mean=[0.3, 0.3]", "one value per channel"),
        ("data={mean: [1, 1], std: [1, 1]}", "section"),
        ("augment.crop_scale=[1, 0.5]", "the lesser first"),
        ("distillation.teacher=van_b0", "needs weights"),
        ("seed", "form key=value"),
    ],
)
def test_a_wrong_value_names_its_key(wrong: str, says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)):
        load_recipe("shvit_digits", [wrong])


def test_overrides_change_only_what_they_name() -> None:
    plain = load_recipe("shvit_digits")
    changed = load_recipe("shvit_digits", ["optim.lr=1e-2", "model.kwargs.qk_dim=8", "optim.lr=2e-2", "seed=7"])
    assert (changed.optim.lr, changed.seed, changed.model.kwargs["qk_dim"]) == (2e-2, 7, 8)
    assert changed.model.kwargs["dims"] == plain.model.kwargs["dims"]
    assert changed.optim.model_copy(update={"lr": plain.optim.lr}) == plain.optim
    assert override(plain, ["seed=7"]).seed == 7
    assert plain == load_recipe("shvit_digits") != changed


FAMILY = """
model: {name: van_b0}
data: {source: folder, size: 224, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
optim: {lr: 1.0e-3}
schedule: {epochs: 300}
variants:
  van_b[01]: {}
  van_*: {regularisation.drop_path: 0.1}
  van_b3: {regularisation.drop_path: 0.2, model.kwargs.depths: [1]}
"""


@pytest.fixture
def family(tmp_path: Path) -> Path:
    (tmp_path / "van.yaml").write_text(FAMILY)
    return tmp_path / "van.yaml"


@pytest.mark.parametrize(
    ("changes", "drop_path"),
    [
        ([], 0.1),
        (["model.name=van_b3"], 0.2),
        (["model.name=van_b3", "model.name=van_b0"], 0.1),
        (["regularisation.drop_path=0.3", "model.name=van_b3"], 0.3),
        (["model.name=resnet18"], None),
    ],
)
def test_a_variant_changes_what_it_names_and_overrides_win(
    family: Path, changes: list[str], drop_path: float | None
) -> None:
    recipe = load_recipe(family, changes)
    assert recipe.regularisation.drop_path == drop_path
    assert ("depths" in recipe.model.kwargs) == (recipe.model.name == "van_b3")


def test_a_models_name_finds_the_recipe_that_lists_it(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixzoo.train.recipe._shipped", lambda: family.parent)
    assert load_recipe("van_b3") == load_recipe("van", ["model.name=van_b3"])
    assert recipe_variants("van") == ["van_b[01]", "van_*", "van_b3"]
    (family.parent / "other.yaml").write_text(FAMILY)
    with pytest.raises(RecipeError, match=r"'van_b0' is listed by the recipes other, van: name one"):
        load_recipe("van_b0")


@pytest.mark.parametrize(
    ("variants", "says"),
    [
        ("[van_b0]", "must map globs of model names"),
        ("{van_b0: {optim.learning_rate: 1}}", "the nearest valid one is 'optim.lr'"),
        ("{van_b0: {optim.lr: fast}}", "'optim.lr' is 'fast'"),
    ],
)
def test_a_wrong_variant_names_its_key(family: Path, variants: str, says: str) -> None:
    family.write_text(FAMILY.split("variants:")[0] + f"variants: {variants}\n")
    with pytest.raises(RecipeError, match=re.escape(says)):
        load_recipe(family)


def test_a_recipe_is_frozen_and_knows_its_keys() -> None:
    recipe = load_recipe("shvit_digits")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]
    assert {"model.name", "optim.lr", "compute.threads", "seed"} <= set(valid_keys())


def test_an_unknown_recipe_suggests_near_names(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_recipe("shvit_digit")
    assert caught.value.suggestions[0] == "shvit_digits"
    with pytest.raises(RecipeError, match=r"Cannot read the recipe .*missing\.yaml"):
        load_recipe(tmp_path / "missing.yaml")


# data


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
    images = load_data(recipe).train.images
    assert images.shape[1:] == (1, recipe.size, recipe.size)
    assert images.min() >= 0 and images.max() <= 1
    normal = normalise(images, recipe)
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.05


def test_mean_and_std_must_fit_the_channels() -> None:
    with pytest.raises(RecipeError, match="images have 1 or 3 channels, but mean has 2 values"):
        load_recipe("shvit_digits", ["data.mean=[0.3, 0.3]", "data.std=[0.3, 0.3]"])


def test_augmentation_moves_images_by_at_most_what_the_recipe_says() -> None:
    images = torch.zeros(64, 1, 40, 40)
    images[:, :, 20, 20] = 1.0
    moved = augment(images, AugmentRecipe(shift=0.1), torch.Generator().manual_seed(0))
    peaks = torch.stack([torch.nonzero(m[0] == m.max())[0] for m in moved]) - 20
    assert 2 <= peaks.abs().max() <= 5  # pixels: 4, and 1 for the interpolation
    assert torch.equal(augment(images, AugmentRecipe(), torch.Generator()), images)


def test_augmentation_keeps_the_centre_under_rotation_and_repeats_with_its_generator() -> None:
    images = torch.rand(8, 1, 33, 33, generator=torch.Generator().manual_seed(1))
    recipe = AugmentRecipe(rotate=30, scale=0.2)
    turned = [augment(images, recipe, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(turned[0], turned[1]) and not torch.equal(turned[0], turned[2])
    assert torch.allclose(turned[0][:, :, 16, 16], images[:, :, 16, 16], atol=1e-4)
    assert (turned[0] - images).abs().max() > 0.1


def test_an_epoch_visits_every_image_at_most_once() -> None:
    split = digits().test
    seen = torch.cat([labels for _, labels in batches(split, 64, torch.Generator().manual_seed(0))])
    assert len(seen) == 448
    orders = [next(iter(batches(split, 64, torch.Generator().manual_seed(s))))[1] for s in (0, 1)]
    assert not torch.equal(*orders)


# the loop


def test_training_lowers_the_loss_and_beats_chance(run: TrainResult) -> None:
    assert run.epochs[-1].loss < run.epochs[0].loss - 0.3
    assert run.accuracy > 0.4  # chance is 0.1
    assert not run.model.training


def test_the_schedule_ends_at_the_least_learning_rate(run: TrainResult) -> None:
    assert run.epochs[-1].lr == pytest.approx(run.recipe.schedule.min_lr, rel=0.01)
    assert run.epochs[0].lr > 10 * run.epochs[-1].lr


def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    seeds = {"a": 0, "b": 0, "c": 1}
    short = [*TINY, "schedule.epochs=1"]
    runs = {k: train("shvit_digits", [*short, f"seed={s}"], tmp_path / k, quiet()) for k, s in seeds.items()}
    weights = {k: (tmp_path / k / "model.safetensors").read_bytes() for k in runs}
    assert weights["a"] == weights["b"] != weights["c"]
    assert runs["a"].epochs[0].loss == runs["b"].epochs[0].loss != runs["c"].epochs[0].loss


def test_the_callers_random_state_and_threads_stay_as_they_were(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    with torch_threads(2):
        train("shvit_digits", [*TINY, "schedule.epochs=1", "compute.threads=1"], tmp_path, quiet())
        assert torch.get_num_threads() == 2
    assert torch.equal(before, torch.get_rng_state())
    assert json.loads((tmp_path / "train.json").read_text())["threads"] == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"step \d+ \(epoch 1 of 2.*\): the loss is (nan|inf).*optim\.lr") as caught:
        train("shvit_digits", [*TINY, "optim.optimizer=sgd", "optim.lr=1e30"], tmp_path, quiet())
    assert 1 < int(re.search(r"step (\d+)", str(caught.value))[1]) < 21  # type: ignore[index]
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_gradients_are_clipped_where_the_recipe_says_so(run: TrainResult, tmp_path: Path) -> None:
    clipped = train("shvit_digits", [*TINY, "schedule.epochs=1", "optim.clip_grad=1e-9"], tmp_path, quiet())
    assert clipped.epochs[0].loss != run.epochs[0].loss


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'data\.batch' is 2000, but there are only 1347"):
        train("shvit_digits", [*TINY, "data.batch=2000"], tmp_path, quiet())


def test_an_unknown_model_or_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MixzooError, match="shvit_s1"):
        train("shvit_digits", ["model.name=shvit_s11", "model.kwargs={}"], tmp_path, quiet())
    with pytest.raises(MixzooError, match="depths"):
        train("shvit_digits", ["model.kwargs.depth=[1, 1, 1]"], tmp_path, quiet())


# what a run leaves


def test_the_checkpoint_gives_the_same_logits(run: TrainResult) -> None:
    trained, images = load_run(run.checkpoint), run.data.test.images
    logits = predict_logits(trained.model, images, trained.recipe)
    assert torch.equal(logits, predict_logits(run.model, images, run.recipe))
    fresh = predict_logits(_refilled(load_run(run.checkpoint).model), images, run.recipe)
    assert not torch.allclose(logits, fresh, rtol=0.1)
    assert run.accuracy == trained.record["test_accuracy"]
    assert accuracy(logits, run.data.test.labels) == pytest.approx(run.accuracy, abs=1 / 450)


def _refilled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    return model


def test_the_model_says_how_its_images_must_be_prepared(run: TrainResult) -> None:
    cfg = load_run(run.checkpoint).model.pretrained_cfg
    assert isinstance(cfg, dict)
    assert (cfg["input_size"], cfg["num_classes"]) == ((1, 32, 32), 10)
    assert (cfg["mean"], cfg["std"]) == (run.recipe.data.mean, run.recipe.data.std)


def test_the_record_tells_the_whole_run(run: TrainResult) -> None:
    record = json.loads((run.checkpoint / "train.json").read_text())
    assert Recipe.model_validate(record["recipe"]) == run.recipe
    assert (record["seed"], record["train_images"], record["test_images"]) == (0, 1347, 450)
    assert {"python", "mixzoo", "torch", "timm"} <= set(record["versions"])
    with (run.checkpoint / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["loss"]) for r in rows] == [pytest.approx(e.loss, abs=1e-6) for e in run.epochs]
    assert sorted(p.name for p in run.checkpoint.iterdir()) == ["log.csv", "model.safetensors", "train.json"]


def test_files_that_do_not_belong_together_are_refused(run: TrainResult, tmp_path: Path) -> None:
    for name in ("train.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run.checkpoint / name).read_bytes())
    assert load_run(tmp_path)
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(CheckpointError, match=r"not the file that train\.json describes"):
        load_run(tmp_path)
    with pytest.raises(CheckpointError, match="does not hold a finished training run"):
        load_run(tmp_path / "nothing")


# what is seen meanwhile


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_lines_in_a_pipe_and_a_bar_on_a_terminal(tmp_path: Path, terminal: bool) -> None:
    screen = io.StringIO()
    train("shvit_digits", TINY, tmp_path, Console(file=screen, force_terminal=terminal, width=120))
    lines = re.findall(r"^epoch \d/2  loss [\d.]+  test accuracy [\d.]+%  \d+ images/s", screen.getvalue(), re.M)
    assert len(lines) == (0 if terminal else 2)
    assert ("\x1b[" in screen.getvalue()) == terminal
    assert "images/s" in screen.getvalue()
