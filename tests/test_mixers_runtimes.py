"""Every mixer as a file for ncnn and Core ML, some for LiteRT, between two convolutions as in a model, and run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mixzoo.blocks.deploy import fold
from mixzoo.blocks.mixers import MIXERS
from mixzoo.export import get_target
from mixzoo.export.capture import Capture
from mixzoo.export.errors import ExportError
from mixzoo.export.runtimes.ncnn_parts import PARTS
from mixzoo.zoo.fill import fill_
from support import TOLERANCE, image, rel_err
from torch import Tensor, nn
from torch.nn import functional as F

GRID = (14, 15)
IN_LITERT = ("cascaded_group", "factorised", "neighborhood", "soft")  # what was rewritten for it


def exported(mixer: str, target: str, folder: Path) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The module, an image, and what the file makes of it and of another one."""
    layers = (nn.Conv2d(8, 48, 1), MIXERS[mixer](48, GRID), nn.Conv2d(48, 8, 1))
    module = fold(fill_(nn.Sequential(*layers)).eval()).requires_grad_(False)
    x, runtime = image((1, 8, *GRID)).float(), get_target(target)
    path = folder / f"mixer{runtime.suffix}"
    runtime.export(Capture(module, x, ()), path, {})
    run = runtime.load(path, threads=1)
    return module, x, *(torch.from_numpy(run(t.numpy())) for t in (x, x.flip(1)))


def compare(module: nn.Module, x: Tensor, y: Tensor, other: Tensor) -> None:
    with torch.no_grad():
        expected = module(x)
    assert rel_err(y, expected) < 10 * TOLERANCE[torch.float32]
    assert rel_err(other, expected) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_in_ncnn(mixer: str, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    compare(*exported(mixer, "ncnn", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_in_core_ml(mixer: str, tmp_path: Path) -> None:
    """On its own: what follows in a model can make a wrong mixer look right."""
    pytest.importorskip("coremltools")
    compare(*exported(mixer, "coreml", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("mixer", IN_LITERT)
def test_mixers_in_litert(mixer: str, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    compare(*exported(mixer, "litert", tmp_path))


@pytest.mark.parametrize(
    "index",
    [
        (slice(None), slice(None), slice(None, None, 2)),
        (..., slice(1, None, 2)),
        (slice(0, 1), slice(1, 3), slice(1, 6, 3), slice(3, None, 4)),
        (slice(None), slice(None), slice(4, None, 3), slice(-3, -1)),
    ],
)
def test_slices_with_steps_as_blocks(index: tuple[object, ...]) -> None:
    x = torch.randn(2, 3, 7, 10)
    assert torch.equal(PARTS[Tensor.__getitem__](x, index), x[index])


@pytest.mark.parametrize("exponent", [1, 2, 3.0, 4, -1, -2.0])
def test_whole_powers_of_any_sign_are_products(exponent: float) -> None:
    x = image((2, 3, 4, 5))
    assert bool((x < 0).any()) and rel_err(PARTS[torch.pow](x, exponent), x**exponent) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("k", [1, 4, 9])
def test_the_greatest_are_found_by_comparing_all_with_all(k: int) -> None:
    """Also where values are equal, of which the first is first, or neighbours among float32's numbers."""
    x = torch.randint(-3, 3, (2, 5, 9), generator=torch.Generator().manual_seed(0)).float()
    x[1] = torch.nextafter(x[1], torch.tensor(9.0)) * torch.tensor([1e-30, 1e-3, 1.0, 1e20, 1e38])[:, None]
    values, places = PARTS[torch.topk](x, k, dim=-1)
    wanted = x.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(places.long(), wanted.indices[..., :k]) and torch.equal(values, wanted.values[..., :k])
    with pytest.raises(ExportError, match="the greatest of the last axis"):
        PARTS[torch.topk](x, k, dim=1)


def test_rows_by_their_numbers_are_products() -> None:
    x, rows = torch.randn(7, 3, 2), torch.tensor([[6, 0, 0], [2, 5, 6]])
    assert torch.equal(PARTS[Tensor.__getitem__](x, rows.float()), x[rows])


class Third(nn.Module):
    """Takes one of three parts: pnnx leaves the others as tensors that nothing reads."""

    def forward(self, x: Tensor) -> Tensor:
        return x.chunk(3, dim=1)[1] * 2


class Packed(nn.Module):
    """Attention between channels as in timm's EdgeNeXt: its q, k and v lie along a first axis, pnnx's batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = fill_(nn.LayerNorm(12)), fill_(nn.Linear(12, 36))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.reshape(b, c, h * w).permute(0, 2, 1)
        q, k, v = self.qkv(self.norm(tokens)).reshape(b, h * w, 3, 2, -1).permute(2, 0, 3, 4, 1).unbind(0)
        out = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1) @ v
        return (tokens + out.permute(0, 3, 1, 2).reshape(b, h * w, c)).reshape(b, h, w, c).permute(0, 3, 1, 2)


class Uneven(nn.Module):
    """Parts of 4, 4 and 3 channels: pnnx says that there are three, and ncnn would make others of them."""

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = x[:, :11].chunk(3, dim=1)
        return torch.cat((third, first * second), dim=1)


class Typed(nn.Module):
    """A computed number with the type of a map, as timm's attention of two maps has it."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.linspace(-1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1) - torch.exp((self.factors * self.factors).sum(-1)).type_as(x) * x.relu()


OF_TWELVE = {Packed(): 12, Uneven(): 7, Typed(): 12}  # channels, and how many become of them


@pytest.mark.parametrize("module", OF_TWELVE, ids=lambda module: type(module).__name__)
def test_tensors_come_apart_in_ncnn_as_in_torch(module: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    first, x = fill_(nn.Conv2d(4, 12, 1)), image((1, 4, 6, 7)).float()
    out = nn.Conv2d(OF_TWELVE[module], 5, 1)
    whole, target = nn.Sequential(first, module, fill_(out)).eval().requires_grad_(False), get_target("ncnn")
    target.export(Capture(whole, x, ()), tmp_path / "parts.param", {})
    (got,) = target.load(tmp_path / "parts.param").outputs(x.numpy())
    assert rel_err(torch.from_numpy(got), whole(x)) < 10 * TOLERANCE[torch.float32]


def test_parts_that_nothing_reads_are_no_outputs_of_an_ncnn_file(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    module = fill_(nn.Sequential(nn.Conv2d(4, 6, 1), Third(), nn.Conv2d(2, 5, 1)).eval()).requires_grad_(False)
    x, target = image((1, 4, 6, 7)).float(), get_target("ncnn")
    target.export(Capture(module, x, ()), tmp_path / "third.param", {})
    (out,) = target.load(tmp_path / "third.param").outputs(x.numpy())
    assert rel_err(torch.from_numpy(out), module(x)) < 10 * TOLERANCE[torch.float32]
    assert [t.name for t in target.describe(tmp_path / "third.param").outputs] == ["out0"]


class Shortcuts(nn.Module):
    """A list of maps, the last of which is a sum of scaled ones, as timm's ConvNeXt gives its features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = fill_(nn.Conv2d(3, 4, 3)), fill_(nn.Conv2d(4, 4, 1))
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 4).reshape(4, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.first(x)
        return [x, x + self.second(x) * self.gamma]


def test_what_was_computed_last_is_an_output_of_an_ncnn_file(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    module, x, target = Shortcuts().eval().requires_grad_(False), image((1, 3, 6, 7)).float(), get_target("ncnn")
    target.export(Capture(module, x, ()), tmp_path / "maps.param", {})
    for got, wanted in zip(target.load(tmp_path / "maps.param").outputs(x.numpy()), module(x), strict=True):
        assert rel_err(torch.from_numpy(got), wanted) < 10 * TOLERANCE[torch.float32]
