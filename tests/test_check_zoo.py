"""The zoo is export-clean: no target refuses an operator of any model, except where `KNOWN` says so and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from mixzoo.export.check import RULES, Verdict, check
from mixzoo.zoo.registry import VARIANTS
from mixzoo.zoo.shell import Backbone
from small import KINDS, PAIRS

REPEATED = ("shvit_s1_distilled", "poolformerv2_s12", "randformer_s12", "identityformer_s12")  # operators as in others
# (beginning of the model's name, target): why
KNOWN = {
    ("soft_norm", "ncnn"): "how often the first guess is halved is found by comparisons, which ncnn does not have",
}


def known(name: str) -> set[str]:
    return {target for (prefix, target) in KNOWN if name.startswith(prefix)}


def refused(verdicts: list[Verdict]) -> dict[str, list[str]]:
    return {v.target: [finding.sentence for finding in v.refused] for v in verdicts if not v.clean}


def small(name: str) -> Backbone:
    """With a block per stage, or two where a block depends on its place; weights do not matter."""
    spec, depth = VARIANTS[name].spec, 2 if any(family in name for family in PAIRS) else 1
    spec = replace(spec, stages=tuple(replace(s, depth=min(s.depth, depth)) for s in spec.stages))
    return Backbone(spec, num_classes=10).eval()


def kinds() -> list[Any]:
    """Those with masks take longest to capture."""
    slow = {kind for kind in KINDS if "swin" in kind}
    return [pytest.param(k, marks=pytest.mark.slow if k in slow else ()) for k in KINDS if k not in REPEATED]


@pytest.mark.parametrize("name", kinds())
def test_every_kind_of_backbone(name: str) -> None:
    """At a size that windows do not divide. A target that refuses nothing any more has to leave `KNOWN`."""
    found = refused(check(small(name), "all", sizes=((128, 160),), fast=False))
    assert set(found) == known(name), found


def test_what_is_known_is_of_models_and_targets() -> None:
    for prefix, target in KNOWN:
        assert target in RULES and any(name.startswith(prefix) for name in VARIANTS)


@pytest.mark.full
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant(name: str) -> None:
    """At its own size; blocks of a stage are alike but for the depths that `small` keeps."""
    found = refused(check(small(name), "all", fast=False))
    assert set(found) == known(name), found
