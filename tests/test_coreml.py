"""Core ML's evaluator against PyTorch where their operators differ, and what its package is checked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mixzoo
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export_doubles import small
from mixzoo.export import ExportError
from mixzoo.export.capture import Capture
from mixzoo.export.constants import fold_constants
from mixzoo.export.prepare import sha256, size_of
from mixzoo.export.runtimes.coreml_arguments import Arguments
from mixzoo.export.runtimes.coreml_eval import MilEvaluator, MilProgram, variable_type
from mixzoo.export.runtimes.coreml_ops import OPERATORS
from mixzoo.export.target import TARGETS
from mixzoo.zoo.files import atomic_dir
from mixzoo.zoo.fill import fill_
from torch import Tensor, nn

TARGET = TARGETS["coreml"]
needs_coremltools = pytest.mark.skipif(bool(TARGET.unavailable()), reason=str(TARGET.unavailable()))


class Variable:
    def __init__(self, name: str) -> None:
        self.name = name


class Operation:
    """An operation of a program, with its inputs' names."""

    def __init__(self, given: dict[str, Any]) -> None:
        lists = {name: value for name, value in given.items() if isinstance(value, tuple)}
        self.inputs: dict[str, Any] = {name: Variable(name) for name in given}
        self.inputs |= {name: [Variable(f"{name}{i}") for i in range(len(v))] for name, v in lists.items()}


def evaluate(name: str, **given: Any) -> Any:
    """What operator ``name`` makes of its inputs: tensors, plain values or tuples of tensors."""
    values = {f"{key}{i}": v for key, value in given.items() if isinstance(value, tuple) for i, v in enumerate(value)}
    values |= {
        k: v if isinstance(v, str | Tensor) else torch.tensor(v) for k, v in given.items() if not isinstance(v, tuple)
    }
    return OPERATORS[name](Arguments(Operation(given), values))


def x(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


WEIGHT = x(6, 2, 3, 3)
IMAGE = x(2, 4, 7, 9)
HALVES = x(2, 3, 4).half()
ROWS = torch.arange(24.0).reshape(2, 3, 4)
CEIL = {"x": IMAGE, "ceil_mode": True, "pad_type": "custom"}
CASES: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
    (
        lambda: evaluate("conv", x=IMAGE, weight=WEIGHT, pad_type="custom", pad=[1, 0, 2, 1], groups=2, strides=[2, 1]),
        lambda: F.conv2d(F.pad(IMAGE, (2, 1, 1, 0)), WEIGHT, stride=(2, 1), groups=2),
    ),
    (
        lambda: evaluate("conv", x=IMAGE, weight=WEIGHT, pad_type="same", groups=2, dilations=[2, 1], bias=x(6)),
        lambda: F.conv2d(IMAGE, WEIGHT, x(6), padding="same", groups=2, dilation=(2, 1)),
    ),
    (lambda: evaluate("conv", x=IMAGE, weight=WEIGHT, groups=2), lambda: F.conv2d(IMAGE, WEIGHT, groups=2)),
    (
        lambda: evaluate("max_pool", x=-IMAGE.abs(), kernel_sizes=[3, 3], pad_type="custom", pad=[1] * 4),
        lambda: F.max_pool2d(-IMAGE.abs(), 3, 1, 1),
    ),
    (
        lambda: evaluate("avg_pool", x=IMAGE, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1] * 4),
        lambda: F.avg_pool2d(IMAGE, 3, 2, 1),
    ),
    (
        lambda: evaluate(
            "avg_pool",
            **{"x": IMAGE, "kernel_sizes": [3, 3], "pad_type": "custom", "pad": [1] * 4},
            exclude_padding_from_average=True,
        ),
        lambda: F.avg_pool2d(IMAGE, 3, 1, 1, count_include_pad=False),
    ),
    (lambda: evaluate("pad", x=IMAGE, pad=[1, 2, 3, 0], constant_val=7.0), lambda: F.pad(IMAGE, (3, 0, 1, 2), value=7)),
    (lambda: evaluate("pad", x=IMAGE, pad=[1, 2, 3, 0], mode="reflect"), lambda: F.pad(IMAGE, (3, 0, 1, 2), "reflect")),
    (
        lambda: evaluate("pad", x=IMAGE, pad=[1, 2, 3, 0], mode="replicate"),
        lambda: F.pad(IMAGE, (3, 0, 1, 2), "replicate"),
    ),
    (
        lambda: evaluate(
            "slice_by_index",
            **{"x": ROWS, "begin": [-1, 1, 3], "end": [0, -1, 1], "stride": [1, 1, 2]},
            **{"begin_mask": [False, False, True], "end_mask": [False, False, True]},
            squeeze_mask=[True, False, False],
        ),
        lambda: ROWS[-1, 1:-1, ::2],
    ),
    (lambda: evaluate("slice_by_size", x=ROWS, begin=[0, 1, -2], size=[-1, 1, 2]), lambda: ROWS[:, 1:2, 2:4]),
    (
        lambda: evaluate("layer_norm", x=ROWS, axes=[-1, 1], gamma=x(3, 4), beta=x(3, 4), epsilon=1e-3),
        lambda: F.layer_norm(ROWS, (3, 4), x(3, 4), x(3, 4), 1e-3),
    ),
    (
        lambda: evaluate("layer_norm", x=IMAGE, axes=[1], gamma=x(4), epsilon=1e-3),
        lambda: F.layer_norm(IMAGE.movedim(1, -1), (4,), x(4), None, 1e-3).movedim(-1, 1),
    ),
    (lambda: evaluate("instance_norm", x=IMAGE, gamma=x(4)), lambda: F.instance_norm(IMAGE, weight=x(4))),
    (
        lambda: evaluate("batch_norm", x=IMAGE, mean=x(4), variance=x(4).abs(), beta=x(4), epsilon=1e-2),
        lambda: F.batch_norm(IMAGE, x(4), x(4).abs(), None, x(4), eps=1e-2),
    ),
    (lambda: evaluate("gelu", x=IMAGE), lambda: F.gelu(IMAGE)),
    (lambda: evaluate("gelu", x=IMAGE, mode="TANH_APPROXIMATION"), lambda: F.gelu(IMAGE, approximate="tanh")),
    (lambda: evaluate("gelu", x=IMAGE, mode="SIGMOID_APPROXIMATION"), lambda: IMAGE * (1.702 * IMAGE).sigmoid()),
    (lambda: evaluate("thresholded_relu", x=IMAGE, alpha=0.3), lambda: F.threshold(IMAGE, 0.3, 0.0)),
    (lambda: evaluate("clamped_relu", x=IMAGE, alpha=0.1, beta=0.5), lambda: F.leaky_relu(IMAGE, 0.1).clamp(max=0.5)),
    (lambda: evaluate("inverse", x=IMAGE.abs(), epsilon=0.5), lambda: 1 / (IMAGE.abs() + 0.5)),
    (lambda: evaluate("mod", x=torch.tensor([-3, 5]), y=torch.tensor([2, 3])), lambda: torch.tensor([1, 2])),
    (lambda: evaluate("gather", x=ROWS, indices=[[2, -3]], axis=1), lambda: ROWS[:, [[2, 0]]]),
    (
        lambda: evaluate("gather", x=ROWS, indices=[[2, -3], [1, 1]], axis=1, batch_dims=1),
        lambda: torch.stack([ROWS[0, [2, 0]], ROWS[1, [1, 1]]]),
    ),
    (lambda: evaluate("reshape", x=ROWS, shape=[0, 2, -1]), lambda: ROWS.reshape(2, 2, 6)),
    (lambda: evaluate("fill_like", ref_tensor=ROWS, value=2), lambda: torch.full((2, 3, 4), 2)),
    (lambda: evaluate("expand_dims", x=ROWS, axes=[0, -1]), lambda: ROWS[None, ..., None]),
    (lambda: evaluate("matmul", x=ROWS, y=ROWS, transpose_y=True), lambda: ROWS @ ROWS.mT),
    (lambda: evaluate("reduce_mean", x=IMAGE, axes=[-1, 2]), lambda: IMAGE.mean((2, 3))),
    (lambda: evaluate("reduce_prod", x=ROWS, axes=[0, 2], keep_dims=True), lambda: ROWS.prod(2, True).prod(0, True)),
    (
        lambda: evaluate("upsample_bilinear", x=IMAGE, scale_factor_height=2.0, scale_factor_width=1.5),
        lambda: F.interpolate(IMAGE, (14, 13), mode="bilinear", align_corners=True),
    ),
    (
        lambda: evaluate("upsample_bilinear", x=IMAGE, scale_factor_height=0.5, align_corners=False),
        lambda: F.interpolate(IMAGE, (3, 9), mode="bilinear", align_corners=False),
    ),
    *(
        (
            lambda mode=mode: evaluate(
                "resize_bilinear", x=IMAGE, target_size_height=10, target_size_width=4, sampling_mode=mode
            ),
            lambda corners=corners: F.interpolate(IMAGE, (10, 4), mode="bilinear", align_corners=corners),
        )
        for mode, corners in (("UNALIGN_CORNERS", False), ("STRICT_ALIGN_CORNERS", True), ("ALIGN_CORNERS", True))
    ),
    (
        lambda: evaluate("resize_bilinear", x=ROWS[None], target_size_height=3, target_size_width=8),
        lambda: torch.stack([(ROWS[..., i // 2] + ROWS[..., min((i + 1) // 2, 3)]) / 2 for i in range(8)], -1)[None],
    ),
    (
        lambda: evaluate("upsample_nearest_neighbor", x=IMAGE, scale_factor_width=2),
        lambda: F.interpolate(IMAGE, (7, 18)),
    ),
    (lambda: evaluate("concat", values=(ROWS, ROWS), axis=-1), lambda: torch.cat([ROWS, ROWS], -1)),
    (lambda: evaluate("split", x=ROWS, axis=2, split_sizes=[1, 3])[1], lambda: ROWS[..., 1:]),
    (lambda: evaluate("split", x=ROWS, axis=2, num_splits=2)[1], lambda: ROWS[..., 2:]),
    (
        lambda: evaluate(
            "quantize", input=ROWS - 9, scale=0.5, zero_point=torch.tensor(3, dtype=torch.int8), output_dtype="int8"
        ),
        lambda: ((ROWS - 9) * 2 + 3).to(torch.int8),
    ),
    (
        lambda: evaluate("quantize", input=ROWS * 20, scale=[1.0, 2.0, 4.0], axis=1, output_dtype="uint8"),
        lambda: (ROWS * 20 / torch.tensor([[1.0], [2.0], [4.0]])).round().clamp(max=255).to(torch.uint8),
    ),
    (
        lambda: evaluate("dequantize", input=ROWS.to(torch.int8), scale=[1.0, 2.0, 4.0], axis=-2),
        lambda: ROWS * torch.tensor([[1.0], [2.0], [4.0]]),
    ),
    (
        lambda: evaluate(
            "constexpr_affine_dequantize",
            **{"quantized_data": ROWS.to(torch.uint8), "zero_point": torch.tensor(5, dtype=torch.uint8)},
            **{"scale": 0.25, "axis": 0},
        ),
        lambda: (ROWS - 5) / 4,
    ),
    (lambda: evaluate("cast", x=ROWS + 0.6, dtype="int32"), lambda: ROWS.to(torch.int32)),
    (lambda: evaluate("matmul", x=HALVES, y=HALVES, transpose_y=True), lambda: HALVES.float() @ HALVES.float().mT),
    *(
        (
            lambda k=k, s=s, pad=pad: evaluate("max_pool", kernel_sizes=[k, k], strides=[s, s], pad=[pad] * 4, **CEIL),
            lambda k=k, s=s, pad=pad: F.max_pool2d(IMAGE, k, s, pad, ceil_mode=True),
        )
        for k, s, pad in ((2, 2, 0), (3, 2, 0), (3, 4, 1), (2, 3, 1), (4, 3, 2))
    ),
    (lambda: evaluate("topk", x=IMAGE, k=2, axis=1, ascending=True)[0], lambda: IMAGE.sort(1).values[:, :2]),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_an_operator_computes_what_its_definition_says(case: int) -> None:
    ours, wanted = (function() for function in CASES[case])
    assert ours.shape == wanted.shape
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("conv", {"x": IMAGE, "weight": WEIGHT, "pad_type": "same", "strides": [2, 2], "groups": 2}, "pad_type same"),
        ("avg_pool", {"x": IMAGE, "kernel_sizes": [2, 2], "strides": [2, 2], "ceil_mode": True}, "beyond the input"),
        ("resize_bilinear", {"x": IMAGE, "sampling_mode": "OFFSET_CORNERS"}, "OFFSET_CORNERS"),
        ("upsample_bilinear", {"x": IMAGE, "align_corners": False, "half_pixel_centers": False}, "both False"),
        ("gelu", {"x": IMAGE, "mode": "OTHER"}, "mode OTHER"),
        ("concat", {"values": (ROWS, ROWS), "axis": 0, "interleave": True}, "interleave"),
        ("real_div", {"x": torch.tensor([3]), "y": torch.tensor([2])}, "integers"),
        ("slice_by_index", {"x": ROWS, "begin": [0] * 3, "end": [1] * 3, "stride": [-1, 1, 1]}, "stride -1"),
    ],
)
def test_a_mode_that_is_not_followed_is_refused(name: str, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotImplementedError, match=reason):
        evaluate(name, **given)


@needs_coremltools
def test_the_file_is_checked_not_what_was_converted(tmp_path: Path) -> None:
    """A damaged weight, an operator without evaluator and one that gives another shape are all found."""
    (report,) = mixzoo.export(small(), to="coreml", out=tmp_path, name="small", sizes="40")
    path = report.path
    content = report.manifest["artifacts"][0]
    assert (content["sha256"], content["bytes"]) == (sha256(path), size_of(path)) and report.error < 1e-5
    assert (
        report.manifest["computed_in"].keys() <= {"fp32", "int32", "bool"}
        and report.manifest["minimum_deployment_target"] == "iOS16"
    )
    text = (tmp_path / "summary.md").read_text()
    assert ("The program read back from every file was run" in text) != report.manifest["in_its_runtime"]
    image = np.random.default_rng(0).standard_normal((1, 3, 40, 40), dtype=np.float32)
    before = TARGET.load(path).outputs(image)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(OPERATORS, "conv")
        with pytest.raises(ExportError, match="conv of the MIL program cannot be evaluated"):
            MilEvaluator(MilProgram(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPERATORS, "conv", lambda a: F.conv2d(a["x"], a["weight"]))
        with pytest.raises(ExportError, match=r"conv .* gives .* as the program says"):
            MilEvaluator(MilProgram(path))(torch.from_numpy(image))
    damage(path)
    assert sha256(path) != content["sha256"]
    after = MilEvaluator(MilProgram(path))(torch.from_numpy(image))[0].numpy()
    assert np.abs(after - before).max() > 0.01 * np.abs(before).max()


def damage(path: Path) -> None:
    """Change the greatest weight in a package's file of weights."""
    (file,) = path.rglob("weight.bin")
    data = np.frombuffer(file.read_bytes(), np.float32).copy()
    at = np.nanargmax(np.where(np.abs(data) < 100, np.abs(data), 0))
    data[at] *= -3
    file.write_bytes(data.tobytes())


@needs_coremltools
def test_a_damaged_package_does_not_reach_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verification reads the package: with a wrong weight in it, the export fails and what was there stays."""
    mixzoo.export(small(), to="coreml", out=tmp_path, name="small", sizes="40")
    digest, write = sha256(tmp_path / "small.mlpackage"), type(TARGET).export

    def spoiled(self: Any, capture: Any, path: Path, options: Any) -> None:
        write(self, capture, path, options)
        damage(path)

    monkeypatch.setattr(type(TARGET), "export", spoiled)
    with pytest.raises(ExportError, match="the file differs from the model"):
        mixzoo.export(small(), to="coreml", out=tmp_path, name="small", sizes="40")
    assert sha256(tmp_path / "small.mlpackage") == digest
    monkeypatch.undo()
    mixzoo.export(small(), to="coreml", out=tmp_path, name="small", sizes="48x40")  # takes the place of the folder
    assert MilProgram(tmp_path / "small.mlpackage").function.inputs["image"].shape == (1, 3, 48, 40)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "small.mlpackage", "summary.md"]


def test_folders_take_each_others_place(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_dir(tmp_path / "out") as folder:
            (folder / "a.package").mkdir()
            (folder / "a.package" / content).write_text(content)
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["a.package", "new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    lines = f"{hashlib.sha256(b'new').hexdigest()}  new\n"
    assert sha256(tmp_path / "out" / "a.package") == hashlib.sha256(lines.encode()).hexdigest()
    assert size_of(tmp_path / "out") == 3


class Indexed(nn.Module):
    """Reads by indices that are clamped, and adds a table that is resized."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(x(1, 3, 4, 4))

    def forward(self, image: Tensor) -> Tensor:
        at = (torch.arange(image.shape[-1]) - 2).clamp(min=0)
        table = F.interpolate(self.table, image.shape[-2:], mode="bicubic")
        return image.index_select(3, at) * 2 + table


def test_what_the_input_does_not_reach_is_computed_once() -> None:
    capture = Capture(Indexed().eval(), x(1, 3, 6, 8), ())
    graph = fold_constants(capture.arithmetic())
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert called == ["aten.index_select.default", "aten.mul.Tensor", "aten.add.Tensor"]
    other = 3 * x(1, 3, 6, 8) + 1
    torch.testing.assert_close(graph(other), capture.module(other))


class InOne(nn.Module):
    """Operators that add a product, with factors that are whole numbers."""

    def forward(self, image: Tensor) -> Tensor:
        rows = image.flatten(0, 1)
        product = torch.baddbmm(rows, rows, rows.mT @ rows, beta=-1, alpha=2)
        return torch.addcmul(product, rows, rows, value=3).unflatten(0, image.shape[:2]) / 100


@needs_coremltools
def test_operators_that_add_a_product(tmp_path: Path) -> None:
    (report,) = mixzoo.export(InOne().eval(), to="coreml", out=tmp_path, name="sums", sizes="8")
    assert report.error < 1e-5 and report.manifest["artifacts"][0]["operators"]["matmul"] == 2


class Inverted(nn.Module):
    """Inverts small numbers, and takes a map apart into one."""

    def forward(self, image: Tensor) -> Tensor:
        (whole,) = image.chunk(1, dim=1)
        return (whole.square() * 1e-3 + 1e-4).reciprocal()


@needs_coremltools
def test_small_numbers_are_inverted_as_they_are(tmp_path: Path) -> None:
    """Core ML's own operator adds 1e-4 to them."""
    (report,) = mixzoo.export(Inverted().eval(), to="coreml", out=tmp_path, name="inverted", sizes="8")
    assert report.error < 1e-6 and "inverse" not in report.manifest["artifacts"][0]["operators"]


class Scaled(nn.Module):
    """Scales and shifts channels sixteen times."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1, 3, 1, 1) + 0.1), nn.Parameter(torch.ones(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        for _ in range(16):
            image = image * self.scale + self.shift
        return image


@needs_coremltools
def test_scales_are_what_they_are(tmp_path: Path) -> None:
    """coremltools makes batch norms of them, each of which divides by the root of 1 + 1e-5: 8e-5 after sixteen."""
    (report,) = mixzoo.export(Scaled().eval(), to="coreml", out=tmp_path, name="scaled", sizes="8")
    assert report.error < 1e-6 and "batch_norm" not in report.manifest["artifacts"][0]["operators"]


class Overflowing(nn.Module):
    """Between two convolutions numbers are beyond float16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = fill_(nn.Conv2d(3, 8, 3)), fill_(nn.Conv2d(8, 6, 3))
        with torch.no_grad():
            self.first.weight *= 1e6
            self.second.weight *= 1e-6

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.second(self.first(image).relu())) * image.mean()


@needs_coremltools
def test_what_overflows_on_the_example_stays_in_float32(tmp_path: Path) -> None:
    model = Overflowing().eval()
    (report,) = mixzoo.export(model, to="coreml", out=tmp_path, name="loud", sizes="16", precision="fp16", dynamic=())
    assert report.error < 5e-3 and report.manifest["computed_in"]["fp16"] > 3
    operations = MilProgram(report.path).operations
    kinds = [variable_type(op.outputs[0]) for op in operations if op.op_type == "conv"]
    assert kinds == ["fp32", "fp32"]


class Bessel(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.special.bessel_j0(image).mean((2, 3))


@needs_coremltools
def test_an_operator_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"coremltools cannot convert the model: .*bessel_j0"):
        mixzoo.export(Bessel().eval(), to="coreml", out=tmp_path, name="bessel", sizes="8")
    assert not list(tmp_path.iterdir())
