"""What is known of the zoo's models, as plain records for JSON and as tables for people."""

from __future__ import annotations

import fnmatch
import inspect
import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import yaml
from rich.table import Table
from torch import nn

from .. import configs
from ..blocks.mixers import MIXERS
from .dense_configs import configs_for
from .errors import MixzooError, UnknownNameError
from .registry import FAMILIES, VARIANTS, create_model, get_variant, timm_name
from .spec import Variant, Weights
from .tables import new_table

Record = dict[str, Any]
GLOB = "*?["


class NothingFoundError(MixzooError, LookupError):
    """A filter that no model passes."""


def find_models(pattern: str = "", family: str = "", mixer: str = "") -> list[Variant]:
    """Variants whose name matches ``pattern`` (a glob, or part of the name), of one family and with one mixer.

    Raises:
        UnknownNameError: no such family or mixer.
        NothingFoundError: no variant is left.
    """
    if family and family not in FAMILIES:
        raise UnknownNameError("family", family, FAMILIES, f"Families: {', '.join(FAMILIES)}.")
    if mixer and mixer not in _mixers():
        raise UnknownNameError("mixer", mixer, _mixers(), f"Mixers: {', '.join(_mixers())}.")
    glob = pattern if any(c in pattern for c in GLOB) else f"*{pattern}*"
    found = [
        v
        for v in VARIANTS.values()
        if fnmatch.fnmatch(v.name, glob) and family in ("", v.family) and (not mixer or mixer in _used(v))
    ]
    if not found:
        raise NothingFoundError("No model passes this filter: `mixzoo list` without one shows them all.")
    return found


def expand(names: Sequence[str]) -> list[str]:
    """Model names in which globs are replaced by the models that match, each once.

    Raises:
        UnknownModelError: a name that is no model's.
        NothingFoundError: a glob that matches nothing.
    """
    found = (find_models(n) if any(c in n for c in GLOB) else [get_variant(n)] for n in names)
    return list(dict.fromkeys(variant.name for variants in found for variant in variants))


def _mixers() -> list[str]:
    """Every mixer that can be asked for: the registered ones and those that only some family has."""
    return sorted({*MIXERS, *(m for v in VARIANTS.values() for m in _used(v))})


def _used(variant: Variant) -> list[str]:
    """The mixers of a variant, each once, in the order of their stages; a stage may have two ("agent+window")."""
    return list(dict.fromkeys(name for names in variant.mixers for name in names.split("+")))


def mixer_rows(pattern: str = "") -> list[Record]:
    """Rows of `mixzoo list --mixers`: every token mixer that any model can be built with, and who uses it.

    Raises:
        NothingFoundError: no mixer's name matches ``pattern`` (a glob, or part of the name).
    """
    glob = pattern if any(c in pattern for c in GLOB) else f"*{pattern}*"
    rows = [_mixer_row(name) for name in sorted(MIXERS) if fnmatch.fnmatch(name, glob)]
    if not rows:
        raise NothingFoundError("No mixer has such a name: `mixzoo list --mixers` shows them all.")
    return rows


def _mixer_row(name: str) -> Record:
    users = [v for v in VARIANTS.values() if name in v.mixers]
    text = inspect.getdoc(MIXERS[name]) or ""
    papers = set(re.findall(r"\d{4}\.\d{4,5}", f"{text} {sys.modules[MIXERS[name].__module__].__doc__}"))
    options = [
        p for p in inspect.signature(MIXERS[name]).parameters if p not in ("dim", "grid", "num_sources", "index")
    ]
    return {
        "name": name,
        "description": re.split(r"[:.](?:\s|$)", text, maxsplit=1)[0].replace("\n", " ").replace("`", ""),
        "papers": sorted(papers),
        "options": options,
        "families": list(dict.fromkeys(v.family for v in users)),
        "models": len(users),
    }


def summary(variant: Variant) -> Record:
    """A row of `mixzoo list`."""
    return {
        "name": variant.name,
        "family": variant.family,
        "mixers": [m for m in _used(variant) if m != "none"],
        "params_m": variant.params_m,
        "macs_g": variant.macs_g,
        "resolution": variant.resolution,
        "top1": variant.top1,
        "weights": variant.has_weights,
        "timm_name": timm_name(variant.name),
    }


def facts(name: str) -> Record:
    """Everything known of one model; the model is built once, to count and to ask it.

    Raises:
        UnknownModelError: no such model.
    """
    variant = get_variant(name)
    model: Any = create_model(variant.name)
    return summary(variant) | {
        "description": variant.description,
        "paper": f"https://arxiv.org/abs/{variant.paper}" if variant.paper else None,
        "licence_of_weights": variant.licence,
        "params_counted": _count(model),
        "mixers_per_stage": list(variant.mixers),
        "depths": [stage.depth for stage in variant.spec.stages],
        "feature_channels": [f["num_chs"] for f in model.feature_info],
        "feature_reductions": [f["reduction"] for f in model.feature_info],
        "mean": list(variant.mean),
        "std": list(variant.std),
        "weights_published": [_weights(w) for w in variant.weights if w.url or w.hf_hub_id],
        "recipes": recipes_for(variant.name, variant.family),
        "dense_configs": configs_for(variant.name),
    }


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _weights(item: Weights) -> Record:
    return {
        "tag": item.tag or None,
        "url": item.url,
        "hf_hub_id": item.hf_hub_id,
        "top1": item.top1,
        "resolution": item.resolution,
        "num_classes": item.num_classes,
        "sha256": item.sha256,
    }


def recipes_for(*names: str) -> list[str]:
    """Names of the package's training recipes for any model or family of ``names``."""

    def lists(globs: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in globs)

    return [recipe for recipe, globs in recipe_models().items() if lists(globs)]


@cache
def recipe_models() -> dict[str, tuple[str, ...]]:
    """The models of each of the package's training recipes, as names and globs in the order of its file."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    files = (f for f in (resources.files(configs) / "recipes").iterdir() if f.name.endswith(".yaml"))
    trees = {f.name.removesuffix(".yaml"): yaml.load(f.read_text(encoding="utf-8"), loader) for f in files}
    return {name: tuple(tree.get("variants") or (tree["model"]["name"],)) for name, tree in sorted(trees.items())}


# tables


def models_table(rows: Sequence[Record]) -> Table:
    """`summary` rows."""
    numbers, caption = ("params M", "MACs G", "at", "top-1 %"), f"{len(rows)} model{'s' if len(rows) > 1 else ''}"
    table = new_table(("name", "family"), numbers, ("mixers", "weights"), caption=caption)
    for row in rows:
        figures = (_number(row["params_m"]), _number(row["macs_g"]), str(row["resolution"]), _number(row["top1"]))
        mixers = ", ".join(row["mixers"])
        table.add_row(row["name"], row["family"], *figures, mixers, "yes" if row["weights"] else "no")
    return table


def mixers_table(rows: Sequence[Record]) -> Table:
    """`mixer_rows`."""
    caption = f"{len(rows)} mixers; mixzoo.create_model(MODEL, mixer=NAME) puts one into any model"
    table = new_table(("name",), texts=("what it is", "papers", "options", "families"), caption=caption)
    for row in rows:
        lists = (", ".join(row[key]) for key in ("papers", "options", "families"))
        table.add_row(row["name"], row["description"], *lists)
    return table


def facts_table(record: Record) -> Table:
    """`facts`, one line each."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in record.items():
        if key == "weights_published":
            for item in value:
                table.add_row(f"weights {item['tag'] or ''}".strip(), _weights_line(item))
        elif key != "weights" or not value:
            table.add_row(key.replace("_", " "), _text(value))
    return table


def _weights_line(item: Record) -> str:
    top1 = f"top-1 {item['top1']} % at {item['resolution']}: " if item["top1"] else ""
    sources = [item["url"], f"hf-hub:{item['hf_hub_id']}" if item["hf_hub_id"] else None]
    return top1 + ", ".join(source for source in sources if source)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
