"""Eight bits in a file for several sizes: ranges from all of them, and float for layers whose ranges move."""

from __future__ import annotations

from pathlib import Path

import mixzoo
import pytest
import torch
from mixzoo.export.capture import Capture
from mixzoo.export.precision import Precision
from mixzoo.export.ranges import moved
from mixzoo.export.sensitivity import layers, rank_layers
from mixzoo.export.target import TARGETS
from mixzoo.train.pixels import digits, write_images
from precision_doubles import SIDE, Reader, trained
from torch import Tensor, nn


class Summing(Reader):
    """The same, with one more layer that is given, and gives, the greatest feature times the number of positions.

    What it gives is divided by that number again, so that logits do not depend on the size, but ranges do.
    """

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = reader.first, reader.second, reader.third, reader.head
        self.widen = nn.Linear(32, 32, bias=False)
        with torch.no_grad():
            self.widen.weight.copy_(torch.eye(32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x).relu()).relu()).relu()
        area = x.new_ones(1, 1, x.shape[2], x.shape[3]).sum((2, 3))
        return self.head(self.widen(x.flatten(2).amax(2) * area) / area)


def images(*sides: int) -> list[Tensor]:
    """Eight random images of each size."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 1, side, side, generator=generator) for side in sides for _ in range(8)]


@pytest.fixture(scope="module")
def summing() -> Summing:
    return Summing(trained()).eval()


@pytest.mark.slow
@pytest.mark.skipif(bool(TARGETS["onnx"].unavailable()), reason=str(TARGETS["onnx"].unavailable()))
@pytest.mark.parametrize(("times", "kept"), [(4, []), (32, ["widen"])])
def test_a_file_knows_the_ranges_of_every_size(times: int, kept: list[str], summing: Summing, tmp_path: Path) -> None:
    data = digits()
    calibration = write_images(data.train, data.classes, tmp_path / "some", 32)
    (report,) = mixzoo.export(
        *(summing, "onnx", tmp_path / "out"), precision="int8", sizes=(SIDE, times * SIDE), calibration=calibration
    )
    assert report.dynamic_axes == ("batch", "height", "width"), report.manifest["fixed_because"]
    (item,) = report.manifest["artifacts"]
    found = {check["height"]: check["error"] for check in item["checks"]}
    assert all(error < 0.3 for error in found.values()), found
    assert {times * SIDE, 33} < set(found)
    assert item["judged"]["kept_in_float"] == kept


def test_images_of_every_size_make_batches_of_their_own() -> None:
    capture = Capture(nn.Identity(), torch.zeros(3, 1, 8, 8), ("height", "width"))
    capture = capture.at(Precision("int8", tuple(images(8, 12))))
    assert [tuple(batch.shape) for batch in capture.calibration()] == [(3, 1, 8, 8)] * 3 + [(3, 1, 12, 12)] * 3


def test_a_layer_whose_range_moves_is_named_and_goes_back_first(summing: Summing) -> None:
    found = layers(summing)
    assert moved(summing, found, images(SIDE)) is None and moved(trained(), layers(trained()), images(16, 64)) is None
    reason = moved(summing, found, images(SIDE, 4 * SIDE)) or ""
    assert reason.startswith("ranges depend on the size: what widen is given goes from 0 to ") and "at 64x64" in reason
    assert rank_layers(summing, images(SIDE, 4 * SIDE))[0] == "widen" != rank_layers(summing, images(SIDE))[0]


@pytest.mark.slow
@pytest.mark.skipif(bool(TARGETS["openvino"].unavailable()), reason=str(TARGETS["openvino"].unavailable()))
def test_openvino_answers_single_images_with_an_open_batch(tmp_path: Path) -> None:
    """A range per channel, as NNCF has it before a depthwise convolution, is lost there after a single position."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 32, 8, 8), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16))
    net = net.eval().requires_grad_(False)
    target, path = TARGETS["openvino"], tmp_path / "net.xml"
    some = torch.cat(images(8))
    precision = Precision("int8", tuple(some.split(1)))
    target.export(Capture(net, some[:2], ("batch",)).at(precision), path, {})
    runner = target.load(path, 1)
    for batch in (some[:1], some[:3]):
        wanted = net(batch)
        (got,) = runner.outputs(batch.numpy())
        assert (torch.from_numpy(got) - wanted).abs().max() < 0.1 * wanted.abs().max()
