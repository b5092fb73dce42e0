"""The `mixzoo` command: what it prints, what it refuses and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mixzoo
import pytest
import torch
from click.testing import Result
from mixzoo.blocks.mixers import MIXERS
from mixzoo.export.target import TARGETS
from mixzoo.zoo import cli
from mixzoo.zoo.fill import fill_
from mixzoo.zoo.registry import VARIANTS
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

DONE, FAILED, BAD_USAGE = 0, 1, 2


def mixzoo_command(*arguments: object, code: int = DONE) -> Result:
    """Run the command in this process and hold its exit code."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: object, code: int = BAD_USAGE) -> str:
    """What the command says when it refuses: on standard error, without a traceback, nothing on standard output."""
    result = mixzoo_command(*arguments, code=code)
    assert not result.stdout
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def records(*arguments: object) -> Any:
    return json.loads(mixzoo_command(*arguments, "--json").stdout)


# list and info


def test_list_shows_every_model() -> None:
    rows = records("list")
    assert [row["name"] for row in rows] == list(VARIANTS) == mixzoo.list_models()
    keys = {"name", "family", "mixers", "params_m", "macs_g", "resolution", "top1", "weights", "timm_name"}
    assert all(set(row) == keys for row in rows)


def test_list_filters_by_glob_part_family_and_mixer() -> None:
    assert [r["name"] for r in records("list", "shvit_s?")] == [f"shvit_s{i}" for i in range(1, 5)]
    assert {r["family"] for r in records("list", "hvit")} == {"shvit"}
    assert {r["family"] for r in records("list", "--family", "van")} == {"van"}
    pooled = records("list", "--mixer", "pool")
    assert pooled and all("pool" in r["mixers"] for r in pooled)
    assert len(pooled) < len(VARIANTS)


def test_list_as_a_table_has_the_figures() -> None:
    out = mixzoo_command("list", "shvit_s1").stdout
    variant = VARIANTS["shvit_s1"]
    for text in ("name", "family", "mixers", "params", "MACs", "top-1", "weights", f"{variant.top1:g}", "yes"):
        assert text in out
    assert "\x1b[" not in out


def test_list_shows_every_mixer() -> None:
    rows = records("list", "--mixers")
    assert [row["name"] for row in rows] == sorted(MIXERS)
    assert all(row["description"] and "->" not in row["description"] for row in rows)
    (window,) = records("list", "large_k", "--mixers")
    assert window["families"] == ["van"] and window["papers"] == ["2202.09741"]
    assert "large_kernel" in mixzoo_command("list", "--mixers").stdout
    assert "No mixer" in refused("list", "nothing_like_it", "--mixers")


def test_info_tells_what_is_known() -> None:
    facts = records("info", "shvit_s1")
    assert facts["timm_name"] == "mz_shvit_s1"
    assert facts["feature_channels"] == [128, 224, 320]
    assert facts["feature_reductions"] == [16, 32, 64]
    assert facts["params_counted"] == sum(p.numel() for p in mixzoo.create_model("shvit_s1").parameters())
    assert facts["weights_published"][0]["url"].startswith("https://")
    assert facts["paper"].startswith("https://arxiv.org/abs/")
    out = mixzoo_command("info", "shvit_s1").stdout
    assert all(text in out for text in ("128, 224, 320", facts["weights_published"][0]["url"], facts["paper"]))


def test_info_knows_the_recipes() -> None:
    assert "shvit_digits" in records("info", "shvit_s1")["recipes"]
    assert records("info", "van_b2")["recipes"] == ["van"]
    assert records("info", "affnet_et")["recipes"] == []


# errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("info", "shvit_s9"), "'shvit_s1'"),
        (("bench", "caformer_s81"), "'caformer_s18'"),
        (("list", "--family", "shvti"), "'shvit'"),
        (("list", "--mixer", "pol"), "'pool'"),
        (("list", "nothing_like_it"), "mixzoo list"),
        (("bench", "shvit_s1", "--form", "deploi"), "'deploy'"),
        (("bench", "shvit_s1", "--against", "tim"), "'timm'"),
        (("bench", "shvit_s1", "--size", "22x4x4"), "224"),
        (("bench", "shvit_s1", "--size", "64,96"), "one size"),
        (("bench", "shvit_s1", "--threads", "0"), "--threads"),
        (("predict", "shvit_s1", "cat.jpg"), "--checkpoint FILE or --pretrained"),
        (("train", "shvit_digit"), "'shvit_digits'"),
        (("train", "shvit_digits", "optim.lrr=1"), "optim.lr"),
        (("export", "shvit_s9"), "Did you mean 'shvit_s"),
        (("export", "shvit_s1", "--to", "onx"), "'onnx'"),
        (("export", "shvit_s1", "--dynamic", "batch,widht"), "'width'"),
        (("bnech",), "bench"),
        (("list", "--familly", "van"), "--family"),
    ],
)
def test_wrong_usage_is_refused_with_the_remedy(arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(*arguments)


def test_debug_lets_the_traceback_through() -> None:
    result = CliRunner().invoke(cli.app, ["--debug", "info", "shvit_s9"])
    assert isinstance(result.exception, mixzoo.zoo.errors.UnknownModelError)
    result = CliRunner().invoke(cli.app, ["info", "shvit_s9"], env={"MIXZOO_DEBUG": "1"})
    assert isinstance(result.exception, mixzoo.zoo.errors.UnknownModelError)


def test_an_unforeseen_error_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixzoo.zoo import listing

    monkeypatch.setattr(listing, "facts", lambda name: 1 / 0)
    assert "ZeroDivisionError: division by zero" in refused("info", "shvit_s1", code=FAILED)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mixzoo.bench import report, run

    row = run.Row("a", "mixzoo", "eager", 1, 64, 64, 2, 12.0, top1=70.0)
    file = report.write_json_lines(tmp_path / "b.jsonl", [row], {})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'mixzoo[train]'" in refused("plot", file, "--out", tmp_path / "b.png", code=FAILED)


# predict


def seven_classes() -> nn.Module:
    """A filled model whose classifier is mild enough for probabilities that differ from 0 and 1."""
    model = fill_(mixzoo.create_model("shvit_s1", num_classes=7)).eval()
    with torch.no_grad():
        model.head.fc.weight.mul_(0.001)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of `seven_classes`."""
    path = tmp_path_factory.mktemp("weights") / "seven.safetensors"
    save_file(seven_classes().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two different pictures, of different sizes and modes."""
    folder = tmp_path_factory.mktemp("images")
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (90, 120, 3), generator=noise, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(folder / "noise.png")
    Image.linear_gradient("L").resize((300, 200)).save(folder / "ramp.jpg")
    return [folder / "noise.png", folder / "ramp.jpg"]


def test_predict_prepares_images_as_the_weights_expect(checkpoint: Path, images: list[Path]) -> None:
    found = records("predict", "shvit_s1", *images, "--checkpoint", checkpoint, "--topk", 3)
    assert [Path(p["image"]) for p in found] == images
    model = seven_classes()
    for path, prediction in zip(images, found, strict=True):
        with torch.inference_mode():
            scores = model(prepared(path))[0].softmax(-1)
        best = scores.topk(3)
        assert [g["index"] for g in prediction["guesses"]] == best.indices.tolist()
        assert [g["probability"] for g in prediction["guesses"]] == pytest.approx(best.values.tolist(), rel=1e-4)
    first, second = ([g["probability"] for g in p["guesses"]] for p in found)
    assert first != pytest.approx(second, rel=1e-2)


def prepared(path: Path) -> torch.Tensor:
    """ImageNet's evaluation preprocessing, written out: short side to 256, centre 224. (1, 3, 224, 224)"""
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    image = image.crop((left, top, left + 224, top + 224))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(224, 224, 3).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels - mean[:, None, None]) / std[:, None, None])[None]


def test_predict_as_a_table(checkpoint: Path, images: list[Path]) -> None:
    out = mixzoo_command("predict", "shvit_s1", images[0], "--checkpoint", checkpoint, "--topk", 99).stdout
    assert out.count("0.") == 7  # all of the seven classes, no more


def test_predict_refuses_what_it_cannot_use(checkpoint: Path, images: list[Path], tmp_path: Path) -> None:
    both = ("--checkpoint", checkpoint, "--pretrained")
    assert "only one" in refused("predict", "shvit_s1", images[0], *both)
    assert "No image" in refused("predict", "shvit_s1", tmp_path / "none.png", "--checkpoint", checkpoint)
    (tmp_path / "text.png").write_text("not a picture")
    assert "not an image" in refused("predict", "shvit_s1", tmp_path / "text.png", "--checkpoint", checkpoint)
    missing = refused("predict", "shvit_s1", images[0], "--checkpoint", tmp_path / "none.pth", code=FAILED)
    assert "none.pth" in missing
    assert "fit" in refused("predict", "shvit_s2", images[0], "--checkpoint", checkpoint, code=FAILED)


# export, bench, plot, train, doctor


def test_export_passes_on_what_was_asked(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setenv("MIXZOO_ALONE", "1")
    monkeypatch.setattr(sys.modules["mixzoo.export"], "export", lambda **asked: seen.update(asked) or [])
    texts = {"to": "onnx", "sizes": "64,64x96", "batches": "1,3", "dynamic": "batch", "opset": 20}
    texts |= {"precision": "fp16,int8", "max-drop": 0.5, "swap": "gelu=relu"}
    folders = {"calibration": tmp_path / "some", "labelled": tmp_path / "more", "classes": tmp_path / "c.txt"}
    options: list[Any] = ["--out", tmp_path, "--preprocess", "--bundle"]
    options += [part for name, value in (texts | folders).items() for part in (f"--{name}", value)]
    mixzoo_command("export", "shvit_s1", "--checkpoint", checkpoint, *options)
    assert seen.pop("say")
    assert seen == {
        "model": "shvit_s1",
        "checkpoint": checkpoint,
        "pretrained": False,
        "model_options": {"num_classes": 7, "in_chans": 3},
        "to": ("onnx",),
        "out": tmp_path,
        "sizes": "64,64x96",
        "batches": "1,3",
        "dynamic": "batch",
        "preprocess": True,
        "opset": 20,
        "precision": "fp16,int8",
        "max_drop": 0.5,
        "swap": "gelu=relu",
        "bundle": True,
        **folders,
    }


@pytest.mark.slow
def test_export_writes_a_verified_file(checkpoint: Path, tmp_path: Path) -> None:
    sizes = ("--sizes", "64,64x96", "--batches", "1,2", "--out", tmp_path)
    [manifest] = records("export", "shvit_s1", "--checkpoint", checkpoint, "--to", "onnx", *sizes)
    assert Path(manifest["folder"]) == tmp_path
    assert manifest["weights"].startswith("checkpoint seven.safetensors")
    assert (tmp_path / "manifest.json").is_file() and (tmp_path / manifest["artifacts"][0]["file"]).is_file()
    checks = {(c["batch"], c["height"], c["width"]) for item in manifest["artifacts"] for c in item["checks"]}
    assert {(1, 64, 64), (2, 64, 64), (1, 64, 96), (2, 64, 96)} <= checks
    assert manifest["artifacts"][0]["outputs"][0]["shape"][-1] == 7


def test_bench_writes_json_lines_that_plot_draws(tmp_path: Path) -> None:
    file, picture = tmp_path / "b.jsonl", tmp_path / "b.svg"
    options = ("--form", "eager,deploy", "--size", "96", "--runs", 2, "--threads", 1, "--no-memory")
    out = mixzoo_command("bench", "shvit_s1", *options, "--out", file).stdout
    assert all(text in out for text in ("shvit_s1", "deploy", "median ms", "speedup", "torch 2"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["form"], row["height"], row["threads"]) for row in rows] == [("eager", 96, 1), ("deploy", 96, 1)]
    assert all(row["median_ms"] > 0 and row["machine"]["cpu"] for row in rows)
    assert str(picture) in mixzoo_command("plot", file, "--out", picture).stdout
    assert ">shvit_s1<" in picture.read_text()


def test_bench_with_a_form_that_breaks_fails_and_shows_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from mixzoo.bench import forms

    monkeypatch.setitem(forms.FORMS, "deploy", replace(forms.FORMS["deploy"], build=lambda *_: 1 / 0))
    options = ("--size", "64", "--runs", 1, "--threads", 1, "--no-memory")
    result = mixzoo_command("bench", "shvit_s1", *options, code=FAILED)
    assert "ZeroDivisionError" in result.stdout and "eager" in result.stdout
    assert "shvit_s1 mixzoo deploy could not be timed" in result.stderr


def test_bench_where_nothing_can_be_timed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from mixzoo.bench import forms

    monkeypatch.setitem(forms.FORMS, "compile", replace(forms.FORMS["compile"], unavailable=lambda: "no compiler"))
    options = ("--form", "compile", "--size", "64", "--no-memory")
    result = mixzoo_command("bench", "shvit_s1", *options, code=FAILED)
    assert "no compiler" in result.stdout
    assert "Nothing could be timed" in result.stderr


@pytest.mark.slow
def test_doctor_tries_everything_and_names_the_command() -> None:
    found = records("doctor")
    assert found["healthy"]
    extras = {extra["name"]: extra for extra in found["extras"]}
    assert set(extras) == {
        "export",
        "train",
        "segmentation",
        "openmmlab",
        "dev",
        *(target.extra for target in TARGETS.values()),
    }
    assert extras["onnx"]["works"] and extras["onnx"]["command"] is None
    here = {name for name, target in TARGETS.items() if target.unavailable() is None}
    assert {"torch", "onnx"} <= {"torch", *here} <= {check["name"] for check in found["runtimes"] if check["works"]}
    broken = [name for name, extra in extras.items() if not extra["works"]]
    assert bool(broken) == bool(found["command"])
    assert all(name in found["command"] for name in broken)


def test_doctor_finds_what_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixzoo.bench import doctor
    from packaging.requirements import Requirement

    assert not doctor._package(Requirement("no-such-package-at-all")).works
    assert not doctor._package(Requirement("torch>=999")).works
    assert doctor._package(Requirement("torch>=2")).works
    monkeypatch.setitem(sys.modules, "sklearn", None)
    broken = doctor._extra("train", [Requirement("scikit-learn")])
    assert not broken.works
    assert broken.command and "pip install" in broken.command and "train" in broken.command
    assert not doctor._try("zeros", lambda: doctor._agreement(torch.zeros(2), torch.zeros(2))).works
    assert not doctor._try("other", lambda: doctor._agreement(torch.ones(2), torch.zeros(2))).works


# the process


def test_version_and_module_form() -> None:
    done = subprocess.run([sys.executable, "-m", "mixzoo", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"mixzoo {mixzoo.__version__}"
    assert mixzoo_command("--version").stdout == done.stdout


def test_every_command_explains_itself() -> None:
    names = [c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback]
    exports, training = {"export", "check", "matrix", "benchmark"}, {"train", "eval", "extract", "compare"}
    assert set(names) == {"list", "info", "predict", "bench", "plot", "scenes", "doctor"} | exports | training
    for name in names:
        assert "Usage" in mixzoo_command(name, "--help").stdout


def test_a_real_process_ends_with_the_right_code_and_streams() -> None:
    done = subprocess.run([sys.executable, "-m", "mixzoo", "info", "shvit_s9"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (BAD_USAGE, "")
    assert done.stderr.startswith("Error: Unknown model 'shvit_s9'. Did you mean")


@pytest.mark.slow
def test_a_training_run_is_a_checkpoint_with_its_own_preprocessing(tmp_path: Path, images: list[Path]) -> None:
    run = tmp_path / "run"
    out = mixzoo_command("train", "shvit_digits", "schedule.epochs=1", "schedule.warmup_epochs=0", "--out", run).stdout
    assert "% of the test images are right" in out
    [found] = records("predict", "shvit", images[0], "--checkpoint", run, "--topk", 10)
    assert sorted(g["label"] for g in found["guesses"]) == [str(i) for i in range(10)]
    same = records("predict", "shvit", images[0], "--checkpoint", run / "model.safetensors", "--topk", 10)
    assert same == [found]
    assert "not van_b0" in refused("predict", "van_b0", images[0], "--checkpoint", run)
