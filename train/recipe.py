"""Recipes: everything a training run depends on, typed (`mixzoo.train.schema`), read from one YAML file.

A recipe is frozen: what is written to ``train.json`` is what ran. An unknown key is an error that names the nearest
valid one, a wrong value is an error that names the key. Single values are changed with dotted overrides, such as
``optim.lr=1e-3``.

A file may hold ``variants`` beside the sections: globs of model names, each with the dotted keys that differ for those
models. All that match the model are applied in their order, then the overrides. A model's name in place of a recipe's
finds the recipe that lists it:

    variants:
      van_b[012]: {}
      van_b3: {regularisation.drop_path: 0.2}
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from .. import configs
from ..zoo.errors import MixzooError, UnknownNameError
from .nearest import nearest_key
from .schema import Recipe, keys_of, valid_keys

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

VARIANTS = "variants"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it


class RecipeError(MixzooError, ValueError):
    """A recipe that cannot be read, or holds an unknown key or a wrong value."""


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(f.name[: -len(".yaml")] for f in _shipped().iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe by its name in the package or by the path of a YAML file, and apply ``key=value`` overrides.

    Args:
        name_or_path: ``"shvit_digits"``, a path that ends in .yaml or .yml, or the name of a model that a recipe lists.
        overrides: dotted keys with YAML values, such as ``"optim.lr=1e-3"``; later ones win.

    Raises:
        UnknownNameError: no recipe has this name, and none lists such a model.
        RecipeError: the file cannot be read, a key is unknown (the nearest one is named) or a value is wrong.
    """
    name, model = _recipe_and_model(name_or_path)
    tree, changes = _parse(_read(name), str(name)), list(overrides)
    if model:
        changes.insert(0, f"model.name={model}")
    variants = _variants(tree, str(name))
    for change in changes:
        _set(tree, *_split(change))
    for key, value in _deltas(variants, _model_name(tree)):
        _set(tree, key, value)
    return _build(tree, changes, str(name))


def recipe_variants(name_or_path: str | Path) -> list[str]:
    """The globs of models that a recipe lists, in their order."""
    return list(_variants(_parse(_read(name_or_path), str(name_or_path)), str(name_or_path)))


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """A copy of ``recipe`` with ``key=value`` changes; raises RecipeError as :func:`load_recipe` does."""
    return _build(recipe.model_dump(), overrides, "with overrides")


def parse_recipe(tree: Mapping[str, Any], origin: str) -> Recipe:
    """Check a tree of plain values (from YAML or JSON) and return the recipe; ``origin`` names it in errors."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"Recipe {origin!r}: {_sentence(error)}.") from None


def _shipped() -> Traversable:
    return resources.files(configs) / "recipes"


def _recipe_and_model(name_or_path: str | Path) -> tuple[str | Path, str | None]:
    """(the recipe that is meant, the model where that was named in its place)."""
    name = str(name_or_path)
    if _is_path(name_or_path) or name in list_recipes():
        return name_or_path, None
    patterns = {recipe: recipe_variants(recipe) for recipe in list_recipes()}
    found = [recipe for recipe, globs in patterns.items() if name in globs]
    found = found or [recipe for recipe, globs in patterns.items() if any(fnmatch.fnmatchcase(name, g) for g in globs)]
    if len(found) > 1:
        raise RecipeError(f"{name!r} is listed by the recipes {', '.join(found)}: name one, with model.name={name}.")
    return (found[0], name) if found else (name, None)


def _is_path(name_or_path: str | Path) -> bool:
    return isinstance(name_or_path, Path) or name_or_path.endswith((".yaml", ".yml"))


def _read(name_or_path: str | Path) -> str:
    name = str(name_or_path)
    if _is_path(name_or_path):
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
        tree = yaml.load(text, _LOADER)
    except yaml.YAMLError as error:
        raise RecipeError(f"Recipe {origin!r} is not valid YAML: {_problem(error)}.") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"Recipe {origin!r} must be a mapping with the keys {', '.join(Recipe.model_fields)}.")
    return tree


def _variants(tree: dict[str, Any], origin: str) -> dict[str, dict[str, Any]]:
    """Take ``variants`` out of ``tree``: glob of model names -> dotted key -> value."""
    found = tree.pop(VARIANTS, None) or {}
    if not isinstance(found, dict) or not all(isinstance(delta or {}, dict) for delta in found.values()):
        raise RecipeError(f"Recipe {origin!r}: {VARIANTS!r} must map globs of model names to dotted keys with values.")
    return {str(pattern): delta or {} for pattern, delta in found.items()}


def _deltas(variants: Mapping[str, Mapping[str, Any]], model: str) -> list[tuple[str, Any]]:
    """What differs for ``model``, in the order of the file."""
    return [
        (key, value)
        for pattern, delta in variants.items()
        if fnmatch.fnmatchcase(model, pattern)
        for key, value in delta.items()
    ]


def _model_name(tree: Mapping[str, Any]) -> str:
    section = tree.get("model")
    return str(section.get("name", "")) if isinstance(section, dict) else ""


def _build(tree: dict[str, Any], overrides: Iterable[str], origin: str) -> Recipe:
    for change in overrides:
        _set(tree, *_split(change))
    return parse_recipe(tree, origin)


def _split(change: str) -> tuple[str, Any]:
    """The key and the value of ``key=value``."""
    key, equals, text = change.partition("=")
    key = key.strip()
    if not equals or not key:
        raise RecipeError(f"The override {change!r} must have the form key=value, for example optim.lr=1e-3.")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"The value in {change!r} is not valid YAML: {_problem(error)}.") from None


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted key of ``tree`` in place; keys that no recipe has are refused here, values later by the types."""
    _check_key(key)
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise RecipeError(f"Cannot set {key!r}: {parent!r} is {node!r} in the recipe and has no keys.")
    node[leaf] = value


def _check_key(key: str) -> None:
    if key in Recipe.model_fields and key not in valid_keys():
        raise RecipeError(f"{key!r} is a section: set one of {', '.join(keys_of(key))}.")
    free = tuple(f"{k}." for k in valid_keys() if k.endswith(".kwargs"))
    if key not in valid_keys() and not key.startswith(free):
        raise RecipeError(f"Unknown key {key!r}: the nearest valid one is {nearest_key(key, valid_keys())!r}.")


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong, in words, with the dotted key."""
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [*valid_keys(), *Recipe.model_fields, VARIANTS] if "." not in key else valid_keys()
        return f"unknown key {key!r}, the nearest valid one is {nearest_key(key, known)!r}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    if first["type"] == "model_type":
        return f"{key!r} is {first['input']!r}, but it is a section with the keys {', '.join(keys_of(key))}"
    message = first["msg"].removeprefix("Value error, ")
    found = "" if isinstance(first["input"], dict) else f" is {first['input']!r}"
    where = f"{key!r}{found}: " if key else ""
    return f"{where}{message[0].lower()}{message[1:]}"


def _problem(error: yaml.YAMLError) -> str:
    """What a YAML file has wrong, and in which line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())
