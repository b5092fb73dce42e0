"""Recipes: everything a training run depends on, typed, read from one YAML file.

A recipe is frozen: what is written to ``train.json`` is what ran. An unknown key is an error that names the nearest
valid one, a wrong value is an error that names the key. Single values are changed with dotted overrides, such as
``optim.lr=1e-3``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .. import configs
from ..zoo.errors import MixzooError, UnknownNameError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


class RecipeError(MixzooError, ValueError):
    """A recipe that cannot be read, or holds an unknown key or a wrong value."""


class Section(BaseModel):
    """Base of every part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecipe(Section):
    """The backbone, by its name in the zoo; classes and input channels come from the data."""

    name: str
    kwargs: dict[str, Any] = Field(default={}, description="passed to mixzoo.create_model as they are")


class DataRecipe(Section):
    """Which images, at what size, in which batches."""

    source: Literal["digits"]
    size: int = Field(ge=32, description="pixels per side that images are scaled to")
    batch: int = Field(default=64, ge=2, description="images per step; an incomplete last batch is left out")
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, ...] = Field(description="per channel, of pixels in [0, 1]")
    std: tuple[float, ...] = Field(description="per channel, of pixels in [0, 1]")

    @model_validator(mode="after")
    def _statistics_agree(self) -> DataRecipe:
        if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
            raise ValueError("mean and std need one value per channel, and std must be positive")
        return self


class AugmentRecipe(Section):
    """Random affine changes, drawn for each training image; 0 switches one off."""

    rotate: float = Field(default=0.0, ge=0, le=180, description="greatest angle, degrees")
    shift: float = Field(default=0.0, ge=0, lt=1, description="greatest shift, share of the side")
    scale: float = Field(default=0.0, ge=0, lt=1, description="greatest change of size, share")


class OptimRecipe(Section):
    """timm's optimizer by name; norms and biases are not decayed."""

    optimizer: str = "adamw"
    lr: float = Field(gt=0, description="at the peak, for the recipe's own batch")
    weight_decay: float = Field(default=0.0, ge=0)
    clip_grad: float | None = Field(default=None, gt=0)
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    kwargs: dict[str, Any] = Field(default={}, description="passed to the optimizer as they are (eps, betas, ...)")

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        from timm.optim import list_optimizers

        known = [str(name) for name in list_optimizers()]
        if name not in known:
            raise ValueError(f"timm has no optimizer {name!r}, the nearest is {_nearest(name, known)!r}")
        return name

    @model_validator(mode="after")
    def _known_options(self) -> OptimRecipe:
        from timm.optim import get_optimizer_class

        parameters = inspect.signature(get_optimizer_class(self.optimizer, bind_defaults=False)).parameters
        known = [k for k in parameters if k not in ("params", "lr", "weight_decay")]
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            for key in self.kwargs:
                if key not in known:
                    raise ValueError(
                        f"{self.optimizer!r} has no option {key!r}, the nearest is {_nearest(key, known)!r}"
                    )
        return self


class ScheduleRecipe(Section):
    """timm's learning-rate schedule by name, updated at every step."""

    schedule: Literal["cosine", "constant"] = "cosine"
    epochs: int = Field(ge=1)
    warmup_epochs: int = Field(default=0, ge=0)
    warmup_lr: float = Field(default=1e-6, ge=0)
    min_lr: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _warmup_fits(self) -> ScheduleRecipe:
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be fewer than epochs ({self.epochs})")
        return self


class RegularisationRecipe(Section):
    """What keeps the model from memorising, apart from augmentation and weight decay."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class ComputeRecipe(Section):
    """How the arithmetic is done; results differ in their last bits between settings."""

    threads: int | None = Field(default=None, ge=1, description="of torch; what torch chooses if null")
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"


class Recipe(Section):
    """A whole training run. ``seed`` fixes initial weights, image order and augmentation."""

    model: ModelRecipe
    data: DataRecipe
    augment: AugmentRecipe = AugmentRecipe()
    optim: OptimRecipe
    schedule: ScheduleRecipe
    regularisation: RegularisationRecipe = RegularisationRecipe()
    compute: ComputeRecipe = ComputeRecipe()
    seed: int = Field(default=0, ge=0, lt=2**32)


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(f.name[: -len(".yaml")] for f in _shipped().iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by its name in the package or by the path of a YAML file, and apply ``key=value`` overrides.

    Args:
        name_or_path: ``"shvit_digits"``, or a path that ends in .yaml or .yml.
        overrides: dotted keys with YAML values, such as ``"optim.lr=1e-3"``; later ones win.

    Raises:
        UnknownNameError: no recipe has this name.
        RecipeError: the file cannot be read, a key is unknown (the nearest one is named) or a value is wrong.
    """
    tree = _parse(_read(name_or_path), str(name_or_path))
    return _build(tree, overrides, str(name_or_path))


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """A copy of ``recipe`` with ``key=value`` changes; raises RecipeError as :func:`load_recipe` does."""
    return _build(recipe.model_dump(), overrides, "with overrides")


def parse_recipe(tree: Mapping[str, Any], origin: str) -> Recipe:
    """Check a tree of plain values (from YAML or JSON) and return the recipe; ``origin`` names it in errors."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"Recipe {origin!r}: {_sentence(error)}.") from None


def valid_keys() -> list[str]:
    """Every dotted key that a recipe may hold, in the order of declaration."""
    return list(_dotted(Recipe))


def _shipped() -> Traversable:
    return resources.files(configs) / "recipes"


def _read(name_or_path: str | Path) -> str:
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or name.endswith((".yaml", ".yml")):
        try:
            return Path(name_or_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"Cannot read the recipe {name!r}: {error}.") from error
    if name not in list_recipes():
        raise UnknownNameError("recipe", name, list_recipes(), _remedy())
    return (_shipped() / f"{name}.yaml").read_text(encoding="utf-8")


def _remedy() -> str:
    return f"The package has {', '.join(list_recipes())}; for a file of your own give a path that ends in .yaml."


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"Recipe {origin!r} is not valid YAML: {_problem(error)}.") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"Recipe {origin!r} must be a mapping with the keys {', '.join(Recipe.model_fields)}.")
    return tree


def _build(tree: dict[str, Any], overrides: Iterable[str], origin: str) -> Recipe:
    for change in overrides:
        _set(tree, change)
    return parse_recipe(tree, origin)


def _set(tree: dict[str, Any], change: str) -> None:
    """Set one dotted key of ``tree`` in place; keys that no recipe has are refused here, values later by the types."""
    key, equals, text = change.partition("=")
    key = key.strip()
    if not equals or not key:
        raise RecipeError(f"The override {change!r} must have the form key=value, for example optim.lr=1e-3.")
    _check_key(key)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"The value in {change!r} is not valid YAML: {_problem(error)}.") from None
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise RecipeError(f"Cannot set {key!r}: {parent!r} is {node!r} in the recipe and has no keys.")
    node[leaf] = value


def _check_key(key: str) -> None:
    if key in Recipe.model_fields and key not in valid_keys():
        raise RecipeError(f"{key!r} is a section: set one of {', '.join(_keys_of(key))}.")
    free = tuple(f"{k}." for k in valid_keys() if k.endswith(".kwargs"))
    if key not in valid_keys() and not key.startswith(free):
        raise RecipeError(f"Unknown key {key!r}: the nearest valid one is {_nearest_key(key, valid_keys())!r}.")


def _keys_of(section: str) -> list[str]:
    return [k for k in valid_keys() if k.startswith(f"{section}.")]


def _dotted(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _dotted(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _nearest(name: str, known: Iterable[str]) -> str:
    return max(known, key=lambda k: difflib.SequenceMatcher(None, name, k).ratio())


def _nearest_key(key: str, known: Iterable[str]) -> str:
    """The known dotted key most like ``key``: the last part counts most, so ``lr`` finds ``optim.lr``."""

    def likeness(candidate: str) -> float:
        pairs = zip((key, *key.rpartition(".")[::2]), (candidate, *candidate.rpartition(".")[::2]), strict=True)
        whole, section, leaf = (difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)
        return whole + section + 2 * (1.0 if _initials(key) == candidate.rpartition(".")[2] else leaf)

    return max(known, key=likeness)


def _initials(key: str) -> str:
    """'lr' for optim.learning_rate."""
    return "".join(word[:1] for word in key.rpartition(".")[2].split("_"))


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong, in words, with the dotted key."""
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [*valid_keys(), *Recipe.model_fields] if "." not in key else valid_keys()
        return f"unknown key {key!r}, the nearest valid one is {_nearest_key(key, known)!r}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    if first["type"] == "model_type":
        return f"{key!r} is {first['input']!r}, but it is a section with the keys {', '.join(_keys_of(key))}"
    message = first["msg"].removeprefix("Value error, ")
    found = "" if isinstance(first["input"], dict) else f" is {first['input']!r}"
    return f"{key!r}{found}: {message[0].lower()}{message[1:]}"


def _problem(error: yaml.YAMLError) -> str:
    """What a YAML file has wrong, and in which line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())
