"""What exports are asked with: models, checkpoints, sizes and targets, and the errors for what cannot be used."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import mixzoo
import pytest
import timm
import torch
from export_doubles import (
    images,
    names,
    small,
    stage,
)
from mixzoo.export import ExportError, ShapeError, export
from mixzoo.export.numbers import least_difference, outputs_of, relative_error
from mixzoo.export.prepare import prepare
from mixzoo.export.shapes import as_axes, parse_batches, parse_sizes
from mixzoo.export.steady import APART, ROUNDING, fill_steadily_, rounding
from mixzoo.export.target import TARGETS
from mixzoo.zoo import extras
from mixzoo.zoo.errors import CheckpointError, MissingExtraError, UnknownModelError, UnknownNameError
from mixzoo.zoo.fill import fill_
from torch import nn


def test_checkpoint_is_loaded_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(monkeypatch)
    trained, file = small(), tmp_path / "best.pth"
    trained.fc.bias.data += 1
    torch.save({"model": trained.state_dict()}, file)
    (report,) = export(small(), "program", tmp_path / "out", sizes="40", checkpoint=file, name="small")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert report.manifest["weights"] == f"checkpoint best.pth sha256 {digest}"
    x = images((40, 40))
    got = TARGETS["program"].load(report.path)(x.numpy())
    assert relative_error([got], [trained(x).detach().numpy()]) < 1e-4
    assert relative_error([got], [small()(x).detach().numpy()]) > 1e-2
    with pytest.raises(CheckpointError, match="does not fit"):
        export(nn.Conv2d(3, 4, 3), "program", tmp_path / "out", sizes="40", checkpoint=file)


def test_checkpoint_of_a_named_model_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "best.pth"
    model = fill_(mixzoo.create_model("shvit_s1", num_classes=7))
    torch.save(model.state_dict(), file)
    prepared = prepare("shvit_s1", checkpoint=file, model_options={"num_classes": 7})
    assert all(torch.equal(v, prepared.original.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("name", "kind"), [("shvit_s1", "mixzoo"), ("timm:shvit_s1", "timm"), ("test_vit", "timm")])
def test_names_are_built_and_filled(name: str, kind: str) -> None:
    prepared = prepare(name, model_options={"num_classes": 7})
    assert prepared.name == name.removeprefix("timm:") and prepared.weights.startswith("filled")
    assert type(prepared.original).__module__.startswith(f"{kind}.")
    assert prepared.original.get_classifier().out_features == 7


def test_what_a_model_keeps_of_its_weights_is_made_anew() -> None:
    """timm's EfficientViT keeps its attention biases for inference: those of weights before they were scaled."""
    model, pair = timm.create_model("efficientvit_m0").eval(), [images((224, 224), seed=seed) for seed in (0, 1)]
    assert fill_steadily_(model, pair) and max(rounding(model, image) for image in pair) <= ROUNDING


def test_fill_is_steady_in_float32() -> None:
    model, x = fill_(mixzoo.create_model("efficientvit_m0")).eval(), images((224, 224))
    assert rounding(model, x) > ROUNDING
    assert fill_steadily_(model, [x, images((224, 224), seed=1)]).startswith("matrices scaled by 0.")
    assert rounding(model, x) <= ROUNDING


def test_a_model_in_which_the_image_fades_is_filled_so_that_it_does_not() -> None:
    model, pair = timm.create_model("mobilenetv3_small_100").eval(), [images((224, 224), seed=i) for i in range(2)]
    assert least_difference(*(outputs_of(fill_(model), x) for x in pair)) < 1e-3
    assert fill_steadily_(model, pair) == "batch norms calibrated"
    assert least_difference(*(outputs_of(model, x) for x in pair)) > APART and rounding(model, pair[0]) <= ROUNDING


def test_unknown_names_are_told_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown export target 'onx'\. Did you mean 'onnx'"):
        export(small(), "onx", tmp_path)
    with pytest.raises(UnknownModelError, match=r"Did you mean .*'shvit_s1'"):
        export("shvit_s0", out=tmp_path)
    with pytest.raises(UnknownNameError, match=r"'opsett'\. Did you mean 'opset'"):
        TARGETS["onnx"].export(None, tmp_path / "x.onnx", {"opsett": 18})


def test_missing_packages_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "available", lambda package: package == "onnx")
    remedy = re.escape("needs onnxscript and onnxruntime: pip install 'mixzoo[onnx]'")
    with pytest.raises(MissingExtraError, match=remedy):
        export(small(), out=tmp_path)


def test_unusable_opset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset 9 is not available: give one from 18 to"):
        export(small(), out=tmp_path / "out", sizes="40", opset=9)
    assert not names(tmp_path)


def test_contradictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="leave one out"):
        export("shvit_s1", out=tmp_path, checkpoint="x.pth", pretrained=True)
    with pytest.raises(ExportError, match="go with a name"):
        export(small(), out=tmp_path, pretrained=True)
    with pytest.raises(ExportError, match="cannot name a file"):
        export(small(), out=tmp_path, name="../small")


def test_sizes_are_read() -> None:
    assert parse_sizes("224, 192x256,224x224") == ((224, 224), (192, 256))
    assert parse_batches("1,3,1") == (1, 3)


@pytest.mark.parametrize("text", ["", "224,", "a", "1x2x3", "-5", "0", "12.5", "x32", "²"])
def test_bad_sizes_are_refused(text: str) -> None:
    with pytest.raises(ShapeError, match="give"):
        parse_sizes(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "1,,2"])
def test_bad_batches_are_refused(text: str) -> None:
    with pytest.raises(ShapeError, match="give"):
        parse_batches(text)


@pytest.mark.parametrize("sizes", [[], [(224,)], [(0, 224)], [(1, 2, 3)]])
def test_bad_pairs_are_refused(sizes: Any, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="give"):
        export(small(), out=tmp_path, sizes=sizes)


@pytest.mark.parametrize("name", list(TARGETS))
def test_targets_keep_the_protocol(name: str) -> None:
    target = TARGETS[name]
    assert target.name == name and target.suffix.startswith(".")
    assert target.axes[-1] == () and all(set(axes) <= {"batch", "height", "width"} for axes in target.axes)


@pytest.mark.parametrize(
    ("asked", "axes"),
    [
        ("width, batch", ("batch", "width")),
        (["height", "height"], ("height",)),
        ("none", ()),
        ((), ()),
    ],
)
def test_axes_are_read(asked: Any, axes: tuple[str, ...]) -> None:
    assert as_axes(asked) == axes


def test_axes_that_cannot_be_read() -> None:
    with pytest.raises(UnknownNameError, match="Axes: batch, height, width, or none of them"):
        as_axes("batch,channels")
    with pytest.raises(ShapeError, match="empty item"):
        as_axes("batch,")
