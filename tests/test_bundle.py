"""Bundles: what is said of classes and preprocessing is right, and the examples run where nothing of mixzoo is."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mixzoo.export import ExportError, bundle, export
from mixzoo.export.bundle import native, python
from mixzoo.export.bundle.facts import Facts
from mixzoo.export.bundle.preprocessing import preprocessing
from mixzoo.export.prepare import sha256
from mixzoo.export.target import TARGETS
from mixzoo.zoo.pictures import preparation
from small import shallow
from timm.data import resolve_data_config
from torch import nn

CONFIG: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
SIDE = 64
NAMES = [f"class {i}" for i in range(10)]
RUNS_HERE = [name for name in TARGETS if name not in ("coreml", "tensorrt")]  # those need macOS, and a GPU
LINES = 12  # of an example, imports and comments counted


def facts(target: str, **more: Any) -> Facts:
    prepared = preprocessing({**CONFIG, **more}, (160, 192) if "size" in more else (160, 160), False)
    return Facts(
        target=target,
        file=f"van_b0{TARGETS[target].suffix}",
        input="the_input",
        output="the_output",
        batch=1,
        channels=(prepared["colour"] == "RGB" and 3) or 1,
        height=160,
        width=160,
        num_classes=37,
        preprocess=prepared,
        in_graph=False,
        classes="classes.txt",
    )


# preprocessing


def test_preprocessing_says_what_timm_does() -> None:
    said = preprocessing(CONFIG, (224, 224), False)
    assert said["resize"]["shorter_side"] == 256 and said["crop"] == {"from": "center", "height": 224, "width": 224}
    assert (said["colour"], said["layout"], said["mean"][0], said["std"][2]) == ("RGB", "NCHW", 0.485, 0.225)
    assert preprocessing(CONFIG, (224, 256), False)["resize"]["covers"] == {"height": 256, "width": 292}
    squashed = preprocessing({**CONFIG, "crop_mode": "squash", "crop_pct": 1.0}, (224, 256), True)
    assert (squashed["resize"]["height"], squashed["resize"]["width"]) == (224, 256)
    assert squashed["normalise"] == "in the file"
    assert preprocessing({**CONFIG, "input_size": (1, 28, 28)}, (28, 28), False)["colour"] == "grey"


@pytest.mark.parametrize("odd", [{"crop_mode": "border"}, {"interpolation": "random"}, {"input_size": (4, 224, 224)}])
def test_what_examples_do_not_know_is_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match="--bundle"):
        preprocessing({**CONFIG, **odd}, (224, 224), False)


# classes


def test_classes_are_those_given_or_known(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n\n")
    assert bundle.class_names(tmp_path / "names.txt", None, 2) == (("cat", "dog"), "file names.txt")
    assert bundle.class_names(None, ["0", "1"], 2) == (("0", "1"), "the training of the weights")
    assert bundle.class_names(["a", "b"], ["0", "1"], 2)[0] == ("a", "b")
    names, source = bundle.class_names(None, None, 1000)
    assert names and len(names) == 1000 and names[0].startswith("tench") and "ImageNet" in source
    nothing, why = bundle.class_names(None, None, 7)
    assert nothing is None and "--classes" in why
    with pytest.raises(ExportError, match="tells 3 apart"):
        bundle.class_names(tmp_path / "names.txt", None, 3)
    with pytest.raises(ExportError, match="cannot be read"):
        bundle.class_names(tmp_path / "none.txt", None, 3)


# examples


PLACES = r"\b(FILE|MODEL|INPUT|OUTPUT|WEIGHTS|CHANNELS|HEIGHT|WIDTH|PIXELS|CLASSES|MEAN_?F?|STD_?F?|RUN|KIND|LOAD)\b"


def lines(text: str) -> int:
    """All but empty ones."""
    return sum(bool(line.strip()) for line in text.splitlines())


@pytest.mark.parametrize("target", TARGETS)
def test_python_examples_are_short_and_valid(target: str) -> None:
    text, beside = python.example(facts(target)), python.preprocess(facts(target))
    assert lines(text) <= LINES + (target == "tensorrt") and lines(beside) <= 2 * LINES
    assert f"van_b0{TARGETS[target].suffix}" in text and "182 * side" in beside and "0.485" in beside
    for source in (text, beside):
        compile(source, "example.py", "exec")
        assert max(map(len, source.splitlines())) <= 120
        assert "mixzoo" not in source and not re.findall(PLACES, source)


@pytest.mark.parametrize("target", TARGETS)
def test_examples_of_platforms_hold_the_manifests_numbers(target: str) -> None:
    (name, text), (beside, preparation) = native.examples(facts(target))
    assert (name, beside) == {
        "coreml": ("Example.swift", "Preprocess.swift"),
        "litert": ("Example.kt", "Preprocess.kt"),
        "executorch": ("Example.kt", "Preprocess.kt"),
    }.get(target, ("example.cpp", "preprocess.hpp"))
    assert lines(text) <= LINES + 3 * (target == "tensorrt")  # which moves its memory to the GPU and back by hand
    for source in (text, preparation):
        assert max(map(len, source.splitlines())) <= 120 and not re.findall(PLACES, source)
        for opening, closing in ("()", "{}", "[]"):
            assert source.count(opening) == source.count(closing)
    assert "van_b0" in text and all(number in preparation for number in ("0.485", "0.225", str(160 * 160)))
    if target in ("onnx", "ncnn", "coreml", "tensorrt"):  # the others take tensors by position
        assert '"the_input"' in text and '"the_output"' in text


def test_a_file_that_normalises_leaves_it_out_of_the_examples() -> None:
    from dataclasses import replace

    own = replace(facts("onnx"), in_graph=True)
    assert "0.485" not in python.preprocess(own)
    _, (_, found) = native.examples(own)
    assert "mean[] = {0.0f, 0.0f, 0.0f}, deviation[] = {1.0f, 1.0f, 1.0f}" in found


def test_the_example_for_openvino_compiles(tmp_path: Path) -> None:
    compiler, package = shutil.which("g++"), importlib.util.find_spec("openvino")
    if not (compiler and package and package.origin):
        pytest.skip("needs g++ and OpenVINO's headers, which its wheel has")
    for name, text in native.examples(facts("openvino")):
        (tmp_path / name).write_text(text)
    include = Path(package.origin).parent / "include"
    command = [compiler, "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", f"-I{include}", "example.cpp"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)


# the whole of it


@pytest.fixture(scope="module")
def model() -> nn.Module:
    backbone: Any = shallow("shvit_s1")
    backbone.pretrained_cfg = CONFIG
    return backbone


@pytest.fixture(scope="module")
def picture() -> Path:
    datasets = importlib.util.find_spec("sklearn.datasets")
    if datasets is None or datasets.origin is None:
        pytest.skip("needs the photographs that come with scikit-learn")
    return Path(datasets.origin).parent / "images" / "china.jpg"


def expected(model: Any, picture: Path) -> torch.Tensor:
    config = resolve_data_config(pretrained_cfg=dict(model.pretrained_cfg))
    image = preparation({**config, "input_size": (3, SIDE, SIDE)})(picture)
    with torch.no_grad():
        found = model(image[None]).softmax(-1)[0]
    assert 0.15 < found.max() < 0.95  # or nothing would be proved
    return found


def run_alone(example: Path, picture: Path, folder: Path) -> list[tuple[float, str]]:
    """(probability, class) as a program prints them that cannot import mixzoo, only what is beside it."""
    code = "import runpy, sys; sys.modules['mixzoo'] = None; sys.argv = sys.argv[1:]; "
    code += f"sys.path.insert(0, {str(example.parent)!r}); runpy.run_path(sys.argv[0])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(example), str(picture)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines() if re.match(r"[\d.e-]+ ", line)]
    return [(float(probability), name) for probability, name in lines]


@pytest.mark.parametrize(
    "target", [pytest.param(name, marks=[] if name == "onnx" else pytest.mark.slow) for name in RUNS_HERE]
)
def test_the_python_example_gives_what_the_model_gives(
    target: str, model: nn.Module, picture: Path, tmp_path: Path
) -> None:
    if reason := TARGETS[target].unavailable():
        pytest.skip(reason)
    options: dict[str, Any] = {"to": target, "out": tmp_path / "out", "sizes": str(SIDE), "dynamic": "none"}
    (report,) = export(model, name="shvit", bundle=True, classes=NAMES, **options)
    listed = {item["file"]: item for item in report.manifest["bundle"]["files"]}
    assert {"classes.txt", "preprocess.json", "preprocess.py", "example.py"} < set(listed)
    for name, item in listed.items():
        assert (item["sha256"], item["bytes"]) == (sha256(report.folder / name), (report.folder / name).stat().st_size)
    said = json.loads((report.folder / "preprocess.json").read_text())
    assert said["crop"]["height"] == SIDE and (report.folder / "classes.txt").read_text().splitlines() == NAMES
    wanted = expected(model, picture)
    printed = run_alone(report.folder / "example.py", picture, tmp_path)
    assert printed[0][1] == NAMES[int(wanted.argmax())] and len(printed) == 5
    for probability, name in printed:
        assert probability == pytest.approx(float(wanted[NAMES.index(name)]), rel=1e-3, abs=1e-7)
    if target == "onnx":
        (again,) = export(model, name="shvit", **options)
        assert "bundle" not in again.manifest and not set(listed) & {p.name for p in again.folder.iterdir()}


def test_classes_without_a_bundle_are_refused(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--bundle"):
        export(model, name="shvit", out=tmp_path, classes=NAMES)
    with pytest.raises(ExportError, match="tells 10 apart"):
        export(model, name="shvit", out=tmp_path, bundle=True, classes=NAMES[1:])
