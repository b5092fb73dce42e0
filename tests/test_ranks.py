"""Tensors of many axes in runtimes that have few: windows and heads as other code writes them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mixzoo.export import get_target
from mixzoo.export.capture import Capture
from mixzoo.export.rewriting import Rewriting
from mixzoo.export.runtimes.ncnn_parts import PARTS, RANKS
from mixzoo.export.runtimes.rank_blocks import Blocks
from mixzoo.zoo.fill import fill_
from support import TOLERANCE, image, rel_err
from torch import Tensor, nn

SIDES, WIDTH = (8, 12), 6


def test_blocks_are_moved_and_cut_as_torch_does_it_in_few_axes() -> None:
    choice = random.Random(0)
    for _ in range(500):
        rank = choice.randint(1, 7)
        sizes = tuple(choice.choice((1, 2, 3, 4)) for _ in range(rank))
        order = tuple(choice.sample(range(rank), rank))
        base = torch.arange(math.prod(sizes))
        blocks, expected = Blocks(base, sizes, order), base.reshape(sizes).permute(order)
        assert blocks.shape == expected.shape
        axis = choice.randrange(rank)
        at = choice.randrange(expected.shape[axis])
        for got, wanted in (
            (blocks, expected),
            (blocks.chosen(axis, at, 1), expected.narrow(axis, at, 1)),
            (blocks.chosen(axis, at, 1).without(axis), expected.select(axis, at)),
        ):
            flat = got.flat()
            assert flat.ndim <= RANKS.most and torch.equal(flat.reshape(wanted.shape), wanted)


def windows(x: Tensor) -> Tensor:
    """(B, C, H, W) to windows of 4 x 4 and back, by six axes, with the rows of a window in another order between."""
    b, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1).view(b, h // 4, 4, w // 4, 4, c)
    x = x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, 4, c).flip(1)
    x = x.view(-1, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(-1, h, w, c)
    return x.permute(0, 3, 1, 2)


def heads(x: Tensor) -> Tensor:
    """q, k and v of windows by five axes, and a mask for each window that is added with one axis more."""
    b, c, h, w = x.shape
    x = x.unflatten(2, (h // 4, 4)).unflatten(4, (w // 4, 4)).permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(0, 1)
    x = x.flatten(1, 2)  # (windows, 16, C)
    q, k, v = x.reshape(-1, 16, 3, 2, c // 6).permute(2, 0, 3, 1, 4).unbind(0)
    logits = (q @ k.transpose(-2, -1)).view(1, -1, 2, 16, 16)
    mask = torch.arange(6.0).reshape(6, 1, 1) * torch.eye(16)
    logits = logits + mask.unsqueeze(1).unsqueeze(0)
    out = (logits.view(-1, 2, 16, 16).softmax(-1) @ v).transpose(1, 2).reshape(b, h * w, -1)
    return out.transpose(1, 2).unflatten(2, (h, w))


def parts(x: Tensor) -> Tensor:
    """Choices from five axes by numbers, slices and select."""
    b, c, h, w = x.shape
    blocks = x.reshape(b, 3, c // 3, h // 4, 4, w).permute(1, 0, 4, 2, 3, 5)
    first, last = blocks[0], blocks.select(0, 2)[:, 1:3]
    return first[:, 0].reshape(b, c // 3, -1, w) + last[:, :1].reshape(b, c // 3, -1, w)


def strongest(x: Tensor) -> Tensor:
    """The greatest along an axis of six, as timm's Hiera pools its queries, and rows repeated."""
    b, c, h, w = x.shape
    blocks = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 1, 3, 5, 2, 4).contiguous()
    pooled = blocks.view(b, c, 2, 2, 4, h // 4, w // 4).amax(dim=3).reshape(b, c, 8, -1)
    summed = blocks.view(b, c, 8, 2, h // 4, w // 4).sum(3).flatten(3)
    several = blocks.mean((1, 3), keepdim=True).sum((2, 3)).reshape(b, 1, 1, -1)
    return (pooled + summed + several).repeat_interleave(2, dim=2)


def biased(x: Tensor) -> Tensor:
    """A sum of six axes, of rows and of columns of keys, as attention with decomposed positions has it."""
    b, c, h, w = x.shape
    logits = x.reshape(b, 2, c // 2, h // 2, 2, w)
    rows = torch.arange(2.0 * (c // 2) * (h // 2) * 2).reshape(1, 2, c // 2, h // 2, 2, 1)
    logits = logits + rows
    logits += torch.arange(float(w))
    return (logits * 0.1).reshape(b, c, h, w)


def spread(x: Tensor) -> Tensor:
    """Rows and columns that are repeated along axes of five, as timm's BoTNet has its positions."""
    b, c, h, w = x.shape
    rows = x.mean(3).reshape(b, c // 2, 2, 1, h).unsqueeze(3).expand(-1, -1, -1, w // 2, 2, -1)
    wide = x.mean((2, 3)).reshape(c, 1, 1).expand(b, 2, 2, c, h // 4, w).reshape(b, c, h, w)
    return rows.permute(0, 1, 2, 5, 3, 4).reshape(b, c, h, w) + x + wide


def interleaved(x: Tensor) -> Tensor:
    """Blocks that are split and joined along other axes, as in timm's BAT, and axes in a listed order."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // 4, 4, w)
    x = torch.cat(torch.split(x, [1, 2, 1], dim=3)[::-1], dim=3)
    x = torch.cat([*x.split(2, dim=3), x[:, :, :, 1:3]], dim=1)  # (B, 3C, H / 4, 2, W)
    return x.permute(0, 1, 3, 2, 4)[:, :, :, [1, 0]].reshape(b, -1, h // 4, w)


def averaged(x: Tensor) -> Tensor:
    """The mean of two maps that are stacked along a first axis, as timm's CrossViT has it of its answers."""
    return torch.mean(torch.stack([x, x.flip(1) * 2], dim=0), dim=0)


def scaled(x: Tensor) -> Tensor:
    """Standard deviations of groups of channels, as timm's EvoNorm has them, of rows, and of everything."""
    b, c, h, w = x.shape
    groups = x.reshape(b, 2, c // 2, h, w)
    spread = groups.var(dim=(2, 3, 4), unbiased=False, keepdim=True).add(1e-5).sqrt().expand(groups.shape)
    rows = torch.std(x, 3, keepdim=True) + x.var((-2, -1), correction=0)[..., None, None]
    return x / spread.reshape(b, c, h, w) + rows + groups.std(2).reshape(b, 2, h, w).mean(1, keepdim=True)


def grouped(x: Tensor) -> Tensor:
    """Attention in blocks of a map with q, k and v of six axes, as timm's Nested Transformer has it."""
    b, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1).reshape(b, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(b, -1, 16, c)
    q, k, v = x.reshape(b, -1, 16, 3, 2, c // 6).permute(3, 0, 4, 1, 2, 5).unbind(0)  # (B, heads, blocks, 16, D)
    x = F.scaled_dot_product_attention(q, k, v).permute(0, 2, 3, 4, 1).reshape(b, -1, 16, c // 3)
    x = x.reshape(b, h // 4, w // 4, 4, 4, c // 3).transpose(2, 3).reshape(b, h, w, c // 3)
    return x.permute(0, 3, 1, 2)


class Projected(nn.Module):
    """A linear layer of windows that are not joined, as timm's Twins has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = fill_(nn.Linear(WIDTH, 8))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        blocks = self.layer(x.permute(0, 2, 3, 1).reshape(b, h // 4, 4, w // 4, 4, c).transpose(2, 3))
        return blocks.transpose(2, 3).reshape(b, h, w, 8).permute(0, 3, 1, 2)


FORMS: list[Callable[[Tensor], Tensor]] = [
    windows,
    heads,
    parts,
    strongest,
    biased,
    averaged,
    interleaved,
    spread,
    scaled,
    grouped,
    Projected().requires_grad_(False),
]


class Called(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    "given",
    [((), {}), ((False,), {}), ((1, True), {}), (((0, -1), False, True), {}), ((None,), {"correction": 2})],
    ids=str,
)
def test_variances_are_means_of_squares(given: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    args, options = given
    x = image((3, 4, 5)).double()
    assert rel_err(RANKS.variance(x, *args, **options), torch.var(x, *args, **options)) < 1e-12
    assert rel_err(RANKS.deviation(x, *args, **options), x.std(*args, **options)) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_nothing_that_is_read_has_more_axes(form: Callable[[Tensor], Tensor]) -> None:
    x = image((1, WIDTH, *SIDES)).float()
    module = Called(form).eval()
    with torch.no_grad(), Rewriting(PARTS):
        traced = torch.jit.trace(module, x, check_trace=False)
    assert rel_err(traced(x), form(x)) < 1e-6
    graph = traced.inlined_graph
    torch._C._jit_pass_dce(graph)
    ranks = {
        node.kind(): out.type().dim() for node in graph.nodes() for out in node.outputs() if out.isCompleteTensor()
    }
    assert ranks and max(ranks.values()) <= RANKS.most, ranks


PACKAGES = {"ncnn": ("ncnn", "pnnx"), "coreml": ("coremltools",)}


@pytest.mark.parametrize("target", PACKAGES)
@pytest.mark.parametrize("form", FORMS)
def test_a_file_agrees(form: Callable[[Tensor], Tensor], target: str, tmp_path: Path) -> None:
    for package in PACKAGES[target]:
        pytest.importorskip(package)
    x, runtime = image((1, 4, *SIDES)).float(), get_target(target)
    with torch.no_grad():
        width = form(torch.zeros(1, WIDTH, *SIDES)).shape[1]
    whole = nn.Sequential(nn.Conv2d(4, WIDTH, 1), Called(form), nn.Conv2d(width, 5, 1))
    whole = fill_(whole).eval().requires_grad_(False)
    path = tmp_path / f"ranks{runtime.suffix}"
    runtime.export(Capture(whole, x, ()), path, {})
    (got,) = runtime.load(path).outputs(x.numpy())
    assert rel_err(torch.from_numpy(got), whole(x)) < 10 * TOLERANCE[torch.float32]
    assert rel_err(torch.from_numpy(got), whole(x.flip(1))) > 1e-3
    assert all(type(m) is nn.Linear for m in whole.modules() if isinstance(m, nn.Linear))  # as it was
