"""Recipes: what may stand in one, what changes it, and what is said of a wrong one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mixzoo.train import Recipe, RecipeError, list_recipes, load_recipe
from mixzoo.train.recipe import override, recipe_variants
from mixzoo.train.schema import valid_keys
from mixzoo.zoo.errors import UnknownNameError

RECIPES = Path(__file__).resolve().parent.parent / "configs" / "recipes"


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


def test_mean_and_std_must_fit_the_channels() -> None:
    with pytest.raises(RecipeError, match="images have 1 or 3 channels, but mean has 2 values"):
        load_recipe("shvit_digits", ["data.mean=[0.3, 0.3]", "data.std=[0.3, 0.3]"])


def test_a_plain_no_is_the_word() -> None:
    assert load_recipe("pvt").compute.precision == "fp16"
    assert load_recipe("pvt", ["compute.precision=no"]).compute.precision == "no"
