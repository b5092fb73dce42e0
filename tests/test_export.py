"""Exports: what is written does what the model does, wrong files are found out, and nothing is left of a failure."""

from __future__ import annotations

import copy
import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import mixzoo
import numpy as np
import pytest
import torch
from export_doubles import (
    Mixing,
    ProgramTarget,
    Pyramid,
    Unstable,
    Windowed,
    attempt,
    branch_on_size,
    freeze_all,
    freeze_size,
    images,
    mixed,
    names,
    small,
    stage,
    wait_for_size,
)
from mixzoo.export import ExportError, Report, VerificationError, export, get_target, render
from mixzoo.export.capture import Capture
from mixzoo.export.errors import UnprovableError
from mixzoo.export.numbers import relative_error
from mixzoo.export.patience import limited
from mixzoo.export.prepare import prepare
from mixzoo.export.runtimes import onnx as onnx_target
from mixzoo.export.shapes import proof_sizes
from mixzoo.export.target import TARGETS
from mixzoo.export.verify import Reference
from mixzoo.zoo.errors import UnknownNameError
from mixzoo.zoo.fill import fill_
from torch import Tensor, nn

ALL = ("batch", "height", "width")

# ONNX, from end to end


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Report]:
    """The mixed backbone with normalisation in the graph."""
    model = mixed()
    (report,) = export(
        model, out=tmp_path_factory.mktemp("mixed"), sizes="64,64x96", batches="1,3", preprocess=True, name="mixed"
    )
    return model, report


def test_file_is_the_model_at_a_size_that_nobody_tried(exported: tuple[nn.Module, Report]) -> None:
    model, report = exported
    x = images((71, 118), batch=2)
    run = get_target("onnx").load(report.path)
    mean, std = (torch.tensor(model.pretrained_cfg[k]).reshape(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        wanted = model((x - mean) / std).numpy()
        raw = model(x).numpy()
    assert relative_error([run(x.numpy())], [wanted]) < 1e-4
    assert relative_error([run(x.numpy())], [raw]) > 1e-2, "the normalisation must matter"
    assert relative_error([run(images((71, 118), 2, seed=1).numpy())], [wanted]) > 1e-2, "the image must matter"


def test_axes_are_dynamic_by_proof(exported: tuple[nn.Module, Report]) -> None:
    _, report = exported
    assert report.dynamic_axes == ALL
    (item,) = report.manifest["artifacts"]
    shapes = {(c["batch"], c["height"], c["width"]): c["asked"] for c in item["checks"]}
    assert {k for k, asked in shapes.items() if asked} == {(b, 64, w) for b in (1, 3) for w in (64, 96)}
    assert {k[1:] for k, asked in shapes.items() if not asked} == set(proof_sizes([(64, 64), (64, 96)]))


def test_manifest_is_complete_and_true(exported: tuple[nn.Module, Report]) -> None:
    model, report = exported
    content = json.loads((report.folder / "manifest.json").read_text())
    assert content == report.manifest
    assert {"mixzoo", "torch", "timm", "onnx", "onnxruntime"} <= set(content["versions"])
    assert content["parameters"] == sum(p.numel() for p in model.parameters())
    assert (content["opset"], content["form"], content["weights"]) == (20, "folded", "as given")
    assert content["preprocess"]["in_graph"] and content["preprocess"]["input"] == "RGB in [0, 1]"
    assert content["python"] and content["platform"]
    (item,) = content["artifacts"]
    data = report.path.read_bytes()
    assert (item["bytes"], item["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert item["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}]
    assert item["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["batch", 10]}]
    assert item["operators"]["Conv"] > 0 and sum(item["operators"].values()) == item["nodes"]
    assert item["max_rank"] == 4 and item["unranked_tensors"] == 0
    for check in item["checks"]:
        assert 0 < check["error"] <= content["tolerance"] and check["top1_agreement"] == 1
        assert check["negative_control"] >= max(1e-3, 100 * check["error"])
        assert (check["batch_against_single"] is None) == (check["batch"] == 1)
    assert report.error == max(c["error"] for c in item["checks"]) == content["error"]


def test_reports_can_be_read(exported: tuple[nn.Module, Report], capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    _, report = exported
    summary = (report.folder / "summary.md").read_text()
    assert all(text in summary for text in ("mixed.onnx", "64x96", "batch, height and width open", "opset 20"))
    Console(width=120).print(render(report))
    assert "mixed.onnx" in capsys.readouterr().out


def test_star_relu_stays_in_blocked_layout(exported: tuple[nn.Module, Report]) -> None:
    _, report = exported
    operators = report.manifest["artifacts"][0]["operators"]
    assert "Pow" not in operators and operators["BatchNormalization"] == 1  # before sepconv's depthwise convolution


def test_file_holds_no_traces_of_the_machine(exported: tuple[nn.Module, Report]) -> None:
    data = exported[1].path.read_bytes()
    assert b"site-packages" not in data and str(Path(mixzoo.__file__).parent).encode() not in data


def test_corrupted_onnx_file_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    from onnx import numpy_helper

    original = onnx_target.OnnxTarget.export

    def corrupted(self: Any, capture: Any, path: Path, options: dict[str, Any]) -> None:
        original(self, capture, path, options)
        model = onnx.load(path)
        weights = next(t for t in model.graph.initializer if len(t.dims) == 4)
        values = numpy_helper.to_array(weights).copy()
        values.flat[0] += 0.05
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))
        onnx.save(model, path)

    monkeypatch.setattr(onnx_target.OnnxTarget, "export", corrupted)
    monkeypatch.setattr(onnx_target.OnnxTarget, "axes", ((),))
    with pytest.raises(ExportError, match=r"small could not be exported to onnx: with batch 1, 40x40 the file differs"):
        export(small(), out=tmp_path / "out", sizes="40", name="small")
    assert not names(tmp_path)


def onnx_graph(pads: int, group: int) -> Any:
    """conv(scale * x ** 2 + shift) as an onnx_ir model: (1, 4, 6, 6) -> (1, 4, H, W)."""
    import onnx_ir
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.RandomState(0)
    tensors = {"two": np.array(2), "scale": rng.randn(4, 1, 1), "shift": rng.randn(4, 1, 1)}
    tensors |= {"weight": rng.randn(4, 4 // group, 3, 3), "bias": rng.randn(4)}
    nodes = [
        helper.make_node("Pow", ["image", "two"], ["square"]),
        helper.make_node("Mul", ["scale", "square"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["affine"]),
        helper.make_node("Conv", ["affine", "weight", "bias"], ["out"], pads=[pads] * 4, group=group),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 4, 6, 6))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, (1, 4, 4 + 2 * pads, 4 + 2 * pads))],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in tensors.items()],
        value_info=[
            helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4, 6, 6)) for name in ("square", "affine")
        ],
    )
    return onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@pytest.mark.parametrize(
    ("pads", "group", "operators"),
    [
        (0, 1, ["Mul", "Conv"]),  # all of the affine map goes into the convolution
        (1, 1, ["Mul", "BatchNormalization", "Conv"]),  # zeros enter at the border: it cannot
        (0, 2, ["Mul", "BatchNormalization", "Conv"]),
    ],
)
def test_graph_clean_up_keeps_the_values(pads: int, group: int, operators: list[str], tmp_path: Path) -> None:
    import onnx_ir
    from mixzoo.export.runtimes.onnx_graph import tidy

    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx_ir.save(onnx_graph(pads, group), before)
    model = tidy(onnx_graph(pads, group), ())
    onnx_ir.save(model, after)
    assert [node.op_type for node in model.graph] == operators
    x = np.random.RandomState(1).randn(1, 4, 6, 6).astype(np.float32)
    run = get_target("onnx").load
    assert relative_error([run(after)(x)], [run(before)(x)]) < 1e-6


# which axes are open


def test_any_size_and_batch_where_they_are_dynamic(tmp_path: Path) -> None:
    outcome = attempt(small(), tmp_path, sizes="40,40x56", batches="1,2")
    assert outcome.axes == ALL and names(tmp_path) == {"small.pt2"} and not outcome.fixed


def test_axes_are_left_open_only_where_allowed(tmp_path: Path) -> None:
    assert attempt(small(), tmp_path, dynamic=("batch",)).axes == ("batch",)
    assert attempt(small(), tmp_path, dynamic=("height", "width")).axes == ()
    with pytest.raises(UnknownNameError, match="Did you mean 'height'"):
        export(small(), out=tmp_path, dynamic=("heigth",))


def test_one_file_per_size_where_sizes_are_frozen(tmp_path: Path) -> None:
    outcome = attempt(small(freeze=freeze_size), tmp_path, sizes="40,40x56", batches="1,2")
    assert outcome.axes == ("batch",)
    assert names(tmp_path) == {"small_40x40.pt2", "small_40x56.pt2"}
    assert list(outcome.fixed) == [ALL]
    assert all(len(f.checks) == 2 for f in outcome.files)


def test_one_file_per_shape_where_all_is_frozen(tmp_path: Path) -> None:
    outcome = attempt(small(freeze=freeze_all), tmp_path, sizes="40,40x56", batches="1,2")
    assert outcome.axes == () and len(outcome.fixed) == 2
    assert names(tmp_path) == {f"small_40x{w}_b{b}.pt2" for w in (40, 56) for b in (1, 2)}


def test_frozen_branch_is_not_called_dynamic(tmp_path: Path) -> None:
    outcome = attempt(fill_(Windowed()).eval(), tmp_path, sizes="294")
    assert outcome.axes == ("batch",)
    assert "does not hold for batch 3, 326x358" in outcome.fixed[ALL]


def test_a_guard_that_changes_nothing_closes_no_axis(tmp_path: Path) -> None:
    model = small(freeze=branch_on_size)
    capture = Capture(model, images((128, 160), 2), ALL)
    assert "x.size()[3] % 5" in str(capture.refuses(images((160, 223))))
    assert attempt(model, tmp_path).axes == ALL


def test_a_capture_without_end_is_given_up(tmp_path: Path) -> None:
    outcome = attempt(small(freeze=wait_for_size), tmp_path, patience=1)
    assert outcome.axes == ("batch",) and "in 1 s of processor time" in outcome.fixed[ALL]


def test_a_late_signal_of_the_limit_ends_nothing() -> None:
    with pytest.raises(ExportError, match=r"0\.05 s"), limited(0.05):
        while True:
            pass
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    signal.raise_signal(signal.SIGVTALRM)  # by the system's own handler this process would be gone


def test_onnx_says_why_axes_are_fixed(tmp_path: Path) -> None:
    (report,) = export(small(freeze=freeze_size), out=tmp_path, sizes="40,40x56", name="small")
    assert report.dynamic_axes == ("batch",) and len(report.files) == 2
    assert [r["tried"] for r in report.manifest["fixed_because"]] == [list(ALL)]
    assert "batch open, the rest fixed" in (tmp_path / "summary.md").read_text()
    shapes = [item["inputs"][0]["shape"] for item in report.manifest["artifacts"]]
    assert shapes == [["batch", 3, 40, 40], ["batch", 3, 40, 56]]


# what verification finds


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda ys: [y * (1 + 3e-4) for y in ys], r"with batch 1, 40x40 the file differs from the model by 3\.0e-04"),
        (lambda ys: [np.where(np.arange(y.size).reshape(y.shape) == 1, np.nan, y) for y in ys], "NaN"),
        (lambda ys: [y[:, :-1] for y in ys], "another shape"),
        (lambda ys: [np.roll(y, 1, axis=-1) for y in ys], "differs"),
        (lambda ys: [y[:1].repeat(7, 0) for y in ys], "gives outputs of shapes"),
        (lambda ys: 1 / 0, "does not run: division by zero"),
    ],
)
def test_wrong_outputs_fail(damage: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=message):
        attempt(small(), tmp_path, ProgramTarget(damage))


def test_error_within_tolerance_passes_and_is_told(tmp_path: Path) -> None:
    outcome = attempt(small(), tmp_path, ProgramTarget(lambda ys: [y * (1 + 5e-5) for y in ys]))
    assert 4e-5 < max(c.error for c in outcome.files[0].checks) <= 1e-4


def test_wrong_weights_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixzoo.export import prepare as module

    wrong = small()
    wrong.conv.weight.data[0, 0, 0, 0] += 0.01
    monkeypatch.setattr(module, "fold", lambda model: copy.deepcopy(wrong).eval())
    with pytest.raises(VerificationError, match="differs"):
        attempt(small(), tmp_path)


def test_images_that_depend_on_their_batch_fail(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="with batch 3, 40x40 the file differs"):
        attempt(fill_(Mixing()).eval(), tmp_path, batches="3")


def test_constant_model_trips_the_negative_control(tmp_path: Path) -> None:
    model = small()
    model.fc.weight.data.zero_()
    with pytest.raises(UnprovableError, match="nothing is proved by batch 1, 40x40: another image"):
        attempt(model, tmp_path)


def test_model_that_float32_cannot_hold_is_not_called_verified(tmp_path: Path) -> None:
    model = fill_(Unstable()).eval()
    assert not Reference(prepare(model)).stable((40, 40), 0, 1e-4)
    assert Reference(prepare(small())).stable((40, 40), 0, 1e-4)
    rotated = ProgramTarget(lambda ys: [np.sin(np.arcsin(y) + 0.1) for y in ys])
    with pytest.raises(UnprovableError, match="cannot be verified: float32 rounding"):
        attempt(model, tmp_path, rotated)


def test_every_output_is_compared(tmp_path: Path) -> None:
    model = fill_(Pyramid()).eval()
    assert attempt(model, tmp_path).axes == ALL
    with pytest.raises(VerificationError, match="differs"):
        attempt(model, tmp_path / "wrong", ProgramTarget(lambda ys: [ys[0], ys[1] * 1.01]))


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    class Named(Pyramid):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return dict(zip("ab", super().forward(x), strict=True))

    with pytest.raises(
        ExportError, match=r"the model gives a dict where only tensors can be, alone or in one tuple or l"
    ):
        attempt(fill_(Named()).eval(), tmp_path)


def test_model_that_refuses_a_size_says_so(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 38 * 38, 5))
    with pytest.raises(ExportError, match="small itself does not run at 48x48: mat1 and mat2"):
        attempt(fill_(model).eval(), tmp_path, sizes="40,48")
    outcome = attempt(fill_(model).eval(), tmp_path, sizes="40")
    assert outcome.axes == ("batch",) and "runs at none of" in outcome.fixed[ALL]


# what is left behind


def test_failure_leaves_earlier_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(monkeypatch)
    export(small(), "program", tmp_path, sizes="40", name="small")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    stage(monkeypatch, damage=lambda ys: [y * 1.01 for y in ys])
    with pytest.raises(ExportError):
        export(small(), "program", tmp_path, sizes="40", name="small")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_success_removes_what_it_supersedes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(monkeypatch)
    (tmp_path / "notes.txt").write_text("mine")
    export(small(freeze=freeze_size), "program", tmp_path, sizes="40,48", name="small")
    assert {"small_40x40.pt2", "small_48x48.pt2"} <= names(tmp_path)
    export(small(), "program", tmp_path, sizes="40,48", name="small")
    assert names(tmp_path) == {"small.pt2", "manifest.json", "summary.md", "notes.txt"}


def test_two_models_in_one_folder_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(monkeypatch)
    (first,) = export(small(), "program", tmp_path, sizes="40", name="first")
    (second,) = export(small(), "program", tmp_path, sizes="40", name="second")
    assert (first.folder, second.folder) == (tmp_path, tmp_path / "second")
    assert json.loads((tmp_path / "manifest.json").read_text())["model"] == "first"


def test_a_failed_target_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(monkeypatch)
    broken = ProgramTarget(damage=lambda ys: [y * 0 for y in ys])
    broken.name = "broken"
    monkeypatch.setitem(TARGETS, "broken", broken)
    with pytest.raises(ExportError, match="small could not be exported to broken"):
        export(small(), "broken,program", tmp_path, sizes="40", name="small")
    assert names(tmp_path) == {"program"} and "small.pt2" in names(tmp_path / "program")


# what goes in


def test_model_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(monkeypatch)
    model = small().train().requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    export(model, "program", tmp_path, sizes="40")
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
