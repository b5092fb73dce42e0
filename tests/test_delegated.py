"""The share of a file that XNNPACK takes: nodes and multiply-accumulates, against those counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mixzoo
import pytest
import torch.nn.functional as F
from mixzoo.bench.macs import count_macs
from mixzoo.export.numbers import percent
from mixzoo.export.protocol import Delegated
from mixzoo.export.target import TARGETS
from mixzoo.export.words import summary
from mixzoo.zoo.fill import fill_
from torch import Tensor, nn


def needs(name: str) -> Any:
    reason = TARGETS[name].unavailable()
    return pytest.mark.skipif(bool(reason), reason=str(reason))


class Counted(nn.Module):
    """Every kind of product that a backbone has; ``own`` convolves a map with a filter made of the map itself."""

    def __init__(self, own: bool = False) -> None:
        super().__init__()
        self.own = own
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(12, 4, 2, stride=2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.own:
            x = F.conv2d(x, 0.1 * x.mean((2, 3)).reshape(8, 1, 1, 1).expand(8, 8, 3, 3), padding=1)
        t = self.up(self.grouped(self.depthwise(x))).flatten(2)
        t = t + (t @ t.transpose(1, 2)).softmax(-1) @ t
        y: Tensor = self.fc(t.mean(-1))
        return y


SIZE = (16, 24)
MAP, UP = 8 * 12, 16 * 24  # positions after the stem, and after the transposed convolution
OWN = MAP * 8 * 8 * 9
BY_HAND = {
    "stem": MAP * 8 * 3 * 9,
    "depthwise": MAP * 8 * 9,
    "grouped": MAP * 12 * 4 * 9,
    "up": MAP * 12 * 4 * 4,
    "products": 2 * 4 * 4 * UP,
    "fc": 4 * 5,
}


def exported(model: nn.Module, to: str, out: Path) -> dict[str, Any]:
    (report,) = mixzoo.export(model, to=to, out=out, name="counted", sizes="16x24", dynamic=())
    assert report.error <= 1e-4
    return report.manifest


@needs("executorch")
@pytest.mark.slow
def test_all_of_it(tmp_path: Path) -> None:
    model = fill_(Counted()).eval()
    content = exported(model, "executorch", tmp_path)
    part = content["artifacts"][0]["delegated"]
    assert (part["macs"], part["rest_macs"], part["macs_share"]) == (sum(BY_HAND.values()), 0, 1)
    assert part["macs"] == count_macs(model, 1, 3, *SIZE)
    assert "100% of 0.09986 M MACs" in summary(content) and content["artifacts"][0]["undivided_because"] is None


@needs("litert")
@pytest.mark.slow
def test_a_product_of_two_activations_stays_outside(tmp_path: Path) -> None:
    """Where litert_torch writes it as a layer whose weights are computed, XNNPACK does not take it."""
    content = exported(fill_(Counted()).eval(), "litert", tmp_path)
    part = content["artifacts"][0]["delegated"]
    inside, outside = sum(BY_HAND.values()) - BY_HAND["products"] // 2, BY_HAND["products"] // 2
    assert part["rest"] == {"FULLY_CONNECTED": 1} and (part["macs"], part["rest_macs"]) == (inside, outside)
    assert part["macs_share"] == pytest.approx(inside / (inside + outside), abs=1e-6)
    assert "93% of 0.09986 M MACs" in summary(content)


@needs("executorch")
@pytest.mark.slow
def test_a_filter_that_is_computed_stays_outside(tmp_path: Path) -> None:
    """XNNPACK wants filters that are constant."""
    content = exported(fill_(Counted(own=True)).eval(), "executorch", tmp_path)
    part = content["artifacts"][0]["delegated"]
    assert part["rest"]["aten::convolution"] == 1
    assert (part["macs"], part["rest_macs"]) == (sum(BY_HAND.values()), OWN)
    assert part["macs_share"] == pytest.approx(sum(BY_HAND.values()) / (sum(BY_HAND.values()) + OWN), abs=1e-6)
    assert "64% of 0.1552 M MACs" in summary(content)


@needs("litert")
@pytest.mark.slow
def test_without_xnnpack_everything_is_outside(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
    from mixzoo.export.runtimes.litert_facts import delegated

    exported(fill_(Counted()).eval(), "litert", tmp_path)
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(tmp_path / "counted.tflite"), experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    part = delegated(interpreter)
    assert (part.nodes, part.parts, part.macs, part.rest_macs) == (0, 0, 0, sum(BY_HAND.values()))
    assert part.rest["CONV_2D"] == 2 and part.share == part.macs_share == 0


def test_kernels_outside_of_executorchs_partition_are_counted() -> None:
    executorch_macs = pytest.importorskip("mixzoo.export.runtimes.executorch_macs")

    class Value:
        def __init__(self, *sizes: int, bool_val: bool = False) -> None:
            self.sizes, self.bool_val = sizes, bool_val

    count, flag = executorch_macs.of_kernel, Value(bool_val=True)
    assert count("aten::bmm", [Value(2, 3, 5), Value(2, 5, 7), Value(2, 3, 7)]) == 2 * 3 * 5 * 7
    assert count("aten::addmm", [Value(7), Value(3, 5), Value(5, 7), Value(), Value(), Value(3, 7)]) == 3 * 5 * 7
    up = [Value(1, 6, 4, 4), Value(6, 3, 2, 2), Value(), Value(), Value(), Value(), flag, Value(), Value()]
    assert count("aten::convolution", [*up, Value(1, 3, 8, 8)]) == 6 * 4 * 4 * 3 * 2 * 2
    assert count("aten::mean", [Value(2, 3), Value(2)]) == 0


def test_a_share_is_rounded_down() -> None:
    part = Delegated("XNNPACK", nodes=999, parts=2, rest={"ERF": 1}, macs=0, rest_macs=0)
    assert (percent(part.share), percent(1.0), part.macs_share) == ("99%", "100%", None)


def test_a_runtime_without_a_partition_says_why(tmp_path: Path) -> None:
    assert {name for name, target in TARGETS.items() if not target.undivided} == {"litert", "executorch"}
    if TARGETS["onnx"].unavailable():
        return
    content = exported(fill_(Counted()).eval(), "onnx", tmp_path)
    assert content["artifacts"][0]["delegated"] is None
    assert f"none told: {TARGETS['onnx'].undivided}" in summary(content)
