"""Every variant through everything: conversion both ways, sizes, features, deploy and export. Takes hours."""

from __future__ import annotations

from pathlib import Path

import mixzoo
import pytest
import torch
from mixzoo.blocks.deploy import fold
from mixzoo.zoo.fill import calibrate_, fill_
from mixzoo.zoo.registry import VARIANTS
from mixzoo.zoo.weights import to_official
from support import TOLERANCE, image, rel_err

pytestmark = pytest.mark.full
EXPORTED = [name for name, v in VARIANTS.items() if v.params_m is not None and v.params_m <= 100]


@pytest.mark.parametrize("name", VARIANTS)
def test_conversion_sizes_and_deploy(name: str) -> None:
    model = calibrate_(fill_(mixzoo.create_model(name, dtype=torch.float64)), (96, 96), batch=4).eval()
    other = mixzoo.create_model(name, dtype=torch.float64).eval()
    other.load_state_dict(to_official(model))
    for size in ((64, 96), (33, 47)):
        x = image((2, 3, *size))
        with torch.no_grad():
            expected = model(x)
            assert rel_err(other(x), expected) == 0
            for form in (fold, mixzoo.deploy):
                assert rel_err(form(model)(x), expected) <= TOLERANCE[torch.float64]
            assert rel_err(model(x[:1]), expected[:1]) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("name", VARIANTS)
def test_features(name: str) -> None:
    model = mixzoo.create_model(name, features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 128, 160))
    for feature, width, reduction in zip(
        maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert feature.shape[1] == width
        assert abs(feature.shape[2] - 128 / reduction) <= 1 and abs(feature.shape[3] - 160 / reduction) <= 1


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", EXPORTED)
def test_export(name: str, tmp_path: Path) -> None:
    """Native size and another one, batches 1 and 3; `mixzoo.export` raises unless every run agrees."""
    side = VARIANTS[name].resolution
    (report,) = mixzoo.export(name, to=("onnx",), out=tmp_path, sizes=((side, side), (192, 256)), batches=(1, 3))
    assert report.error <= 1e-4 and "batch" in report.dynamic_axes
    assert list(tmp_path.glob("*.onnx")) and (tmp_path / "manifest.json").is_file()
