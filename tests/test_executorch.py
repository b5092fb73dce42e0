"""What ExecuTorch gets wrong unless its graphs are written otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mixzoo.blocks.deploy import fold
from mixzoo.blocks.mixers import MIXERS
from mixzoo.export import get_target
from mixzoo.export.capture import Capture
from mixzoo.export.precision import Precision
from mixzoo.export.runtimes.executorch_orders import in_order
from mixzoo.export.shapes import Axes
from mixzoo.zoo.fill import fill_
from support import TOLERANCE, image, rel_err
from torch import Tensor, nn

TARGET = get_target("executorch")
pytestmark = pytest.mark.skipif(bool(TARGET.unavailable()), reason=str(TARGET.unavailable()))
GRID = (14, 14)


class Turned(nn.Module):
    """Adds a table that lies in memory in another order than that of its axes, and is in no checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(3, 8, 6).permute(0, 2, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


def errors(
    module: nn.Module,
    shape: tuple[int, int, int, int],
    batches: tuple[int, ...],
    folder: Path,
    precision: str = "fp32",
) -> list[float]:
    """Of the file, whose batch is open if there are several, at one batch after the other."""
    module = fold(module.eval()).requires_grad_(False)
    axes: Axes = ("batch",) if len(batches) > 1 else ()
    example = image(shape if axes else (batches[0], *shape[1:])).float()
    capture = Capture(module, example, axes, {"batch": max(batches)}).at(Precision(precision))
    TARGET.export(capture, folder / "file.pte", {})
    run = TARGET.load(folder / "file.pte", threads=1)
    images = [image((batch, *shape[1:]), seed=batch).float() for batch in batches]
    return [rel_err(torch.from_numpy(run.outputs(x.numpy())[0]), module(x)) for x in images]


@pytest.mark.slow
def test_a_batch_can_grow_from_one_image(tmp_path: Path) -> None:
    """Masks and biases are added up in an XNNPACK part of their own, whose result was gone after the first image."""
    mixer = fill_(MIXERS["cosine_window"](48, GRID))
    assert max(errors(mixer, (2, 48, *GRID), (1, 3, 1, 2), tmp_path)) < 10 * TOLERANCE[torch.float32]


def test_layers_of_any_name_and_buffers_of_any_layout(tmp_path: Path) -> None:
    """XNNPACK's converter loses weights whose names begin with a digit, and buffers that it would have to copy."""
    layers = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.GELU(), fill_(nn.BatchNorm2d(3)), Turned())
    assert max(errors(layers, (2, 3, 6, 8), (1, 3), tmp_path)) < 10 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("groups", [1, 4])
def test_group_norm_of_maps_that_lie_channels_last(groups: int, tmp_path: Path) -> None:
    """Between pooling and convolution; its sums of one number after the other are some 1e-5 off."""
    layers = [fill_(nn.Conv2d(3, 64, 1)), nn.AvgPool2d(3, 1, 1), fill_(nn.GroupNorm(groups, 64)), nn.AvgPool2d(3, 1, 1)]
    last = [fill_(nn.GroupNorm(groups, 64)), fill_(nn.Conv2d(64, 8, 1))]
    assert max(errors(nn.Sequential(*layers, *last), (2, 3, 64, 48), (1, 3), tmp_path)) < 1e-4


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_each_gelu_is_its_own(approximate: str, tmp_path: Path) -> None:
    """XNNPACK's is always the exact one, which differs from that by tanh by more than the whole error of a model."""
    layers = nn.Sequential(fill_(nn.Conv2d(3, 16, 1)), nn.GELU(approximate))
    assert max(errors(layers, (1, 3, 16, 16), (1,), tmp_path)) < 2e-6


class TalkingHeads(nn.Module):
    """Attention between rows, whose heads are mixed by convolutions before and after softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = fill_(nn.Conv2d(4, 4, 1)), fill_(nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits = 0.1 * self.before(x @ x.transpose(2, 3)) + 1
        return self.after(logits.softmax(dim=-1)) @ x


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batches", [(1,), (1, 3)])
def test_softmax_after_a_convolution_is_over_its_axis(batches: tuple[int, ...], precision: str, tmp_path: Path) -> None:
    """XNNPACK keeps what a convolution gives with channels last, and takes softmax over them."""
    found = errors(TalkingHeads(), (2, 4, 9, 7), batches, tmp_path, precision)
    assert max(found) < {"fp32": 2e-6, "fp16": 5e-3}[precision]


def test_softmax_of_plain_attention_stays_as_it_is() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (F.avg_pool2d(x, 2).flatten(2) @ x.flatten(2).transpose(1, 2)[:, :9]).unsqueeze(1).softmax(-1)

    program = torch.export.export(Attention(), (torch.randn(1, 4, 6, 6),)).run_decompositions()
    wanted = str(program.graph)
    assert str(in_order(program).graph) == wanted


class Shifted(nn.Module):
    """Attention over rows that were rolled: without a mask, or with one that lets nothing be seen by some."""

    def __init__(self, mask: bool) -> None:
        super().__init__()
        self.qkv, self.mask = fill_(nn.Linear(8, 24)), mask

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.roll(x, (-1, 2), (2, 3)).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(rows).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = None
        if self.mask:
            seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril(-1)
        return F.scaled_dot_product_attention(q, k, v, seen)[:, -1] @ v[:, 0].transpose(-2, -1)


@pytest.mark.parametrize("batches", [(1,), (1, 3)])
def test_attention_is_accelerated(batches: tuple[int, ...], tmp_path: Path) -> None:
    """No copies, gathered rows or tests of rows in plain kernels; of an open batch, slices and views are."""
    assert max(errors(Shifted(False), (2, 8, 6, 9), batches, tmp_path)) < 2e-6
    delegated = TARGET.describe(tmp_path / "file.pte").delegated
    assert delegated is not None
    plain = {"aten::slice_copy", "aten::sym_size", "executorch_prim::et_view", "executorch_prim::mul"}
    assert delegated.rest.keys() <= (plain if len(batches) > 1 else set()), delegated


def test_rows_that_see_nothing_are_nought(tmp_path: Path) -> None:
    assert max(errors(Shifted(True), (2, 8, 6, 9), (1, 3), tmp_path)) < 2e-6


class Halved(nn.Module):
    """Channels that are split, one part convolved, and joined again, as SHViT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.part, self.after = (fill_(nn.Conv2d(a, b, 1)) for a, b in ((3, 16), (4, 4), (16, 8)))

    def forward(self, x: Tensor) -> Tensor:
        first, rest = self.before(x).split([4, 12], dim=1)
        return self.after(torch.cat([self.part(first), rest], dim=1)).relu()


def test_splits_in_eight_bits_are_loaded(tmp_path: Path) -> None:
    """Written as slices, whose input and output have other scales, XNNPACK would refuse the file."""
    module, images = Halved().eval().requires_grad_(False), tuple(image((1, 3, 8, 8), seed=i).float() for i in range(4))
    capture = Capture(module, images[0], ()).at(Precision("int8", images))
    TARGET.export(capture, tmp_path / "file.pte", {})
    run = TARGET.load(tmp_path / "file.pte", threads=1)
    assert rel_err(torch.from_numpy(run.outputs(images[0].numpy())[0]), module(images[0])) < 0.05


def test_passes_that_leave_out_work_give_the_same_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from contextlib import nullcontext

    from mixzoo.export.runtimes import executorch
    from torch.fx import GraphModule

    module = fold(fill_(MIXERS["window"](16, GRID)).eval()).requires_grad_(False)
    capture = Capture(module, image((1, 16, *GRID)).float(), (), {}).at(Precision())
    before = GraphModule.recompile
    TARGET.export(capture, tmp_path / "light.pte", {})
    assert GraphModule.recompile is before
    monkeypatch.setattr(executorch, "light_passes", nullcontext)
    TARGET.export(capture, tmp_path / "plain.pte", {})
    assert (tmp_path / "light.pte").read_bytes() == (tmp_path / "plain.pte").read_bytes()


def test_graphs_become_code_where_they_are_called() -> None:
    from mixzoo.export.runtimes.executorch_passes import light_passes

    graph = torch.fx.symbolic_trace(nn.Sequential(nn.ReLU()))
    with light_passes():
        (node,) = graph.graph.find_nodes(op="call_module", target="0")
        with graph.graph.inserting_after(node):
            doubled = graph.graph.call_function(torch.add, (node, node))
        node.replace_all_uses_with(doubled, lambda user: user is not doubled)
        graph.recompile()
        assert graph(torch.tensor([1.0, -1.0])).tolist() == [2.0, 0.0]
    assert "add" in graph.code
