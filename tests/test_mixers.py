"""Any mixer in any shell, and what every mixer promises on its own."""

from __future__ import annotations

from typing import Any

import mixzoo
import pytest
import timm
import torch
from mixzoo.blocks.block import CrossBlock
from mixzoo.blocks.geometry import as_table, from_windows, num_heads_for, pad_to_windows, resize_table, to_windows
from mixzoo.blocks.mixers import MIXERS
from mixzoo.blocks.mixers.forward_cross import cross_grid
from mixzoo.blocks.mixers.random import resize_mixing
from mixzoo.blocks.stage import CrossStage
from mixzoo.zoo.errors import MixzooError, UnknownNameError
from mixzoo.zoo.fill import calibrate_, fill_
from mixzoo.zoo.registry import FAMILIES
from support import TOLERANCE, image, rel_err
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

EQUAL = TOLERANCE[torch.float64]
FOUR: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64)}
SHELLS: dict[str, dict[str, Any]] = {
    "metaformer": FOUR,
    "van": FOUR,
    "fcaformer": FOUR | {"num_heads": (0, 0, 3, 4)},
    "shvit": {"depths": (1, 2, 1), "dims": (32, 48, 64)},
    "pvt": FOUR,
    "cswin": FOUR,
    "inline": FOUR | {"num_heads": (1, 1, 2, 2)},
    "swin": FOUR,
    "agent": FOUR,
    "soft": FOUR | {"class_token": False},
    "slab": FOUR | {"norm": nn.BatchNorm2d},  # with RepBN, filled weights would saturate everything
    "deit": {"depth": 2, "dim": 48, "class_token": False},
    "ravlt": FOUR | {"heads": (1, 2, 2, 4), "projection": 80},
    "flowformer": FOUR | {"num_heads": 4},
    "mavit": FOUR | {"heads": (1, 2, 2, 4), "projection": 80},
    "biformer": FOUR,
    "nat": FOUR,
    "efficientvit": {"depths": (1, 2, 1), "dims": (32, 48, 64), "num_heads": (2, 2, 2)},
    "l2vit": FOUR,
    "nalaformer": FOUR | {"heads": (1, 2, 2, 4), "projection": 80},
    "favit": FOUR | {"num_heads": (1, 2, 3, 4)},
    "ffnet": {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128)},
    "affnet": {"depths": (0, 1, 1, 2, 1), "dims": (8, 16, 16, 32, 48)},
}
every_mixer = pytest.mark.parametrize("mixer", MIXERS)
every_shell = pytest.mark.parametrize("shell", SHELLS)


def build(shell: str, mixer: Any) -> Any:
    """A small member of a family with filled weights, float64; its last map is 2 x 2 for images of ``side(shell)``."""
    options = {**SHELLS[shell], "num_classes": 5, "img_size": side(shell), "mixer": mixer}
    model = fill_(mixzoo.create_model(shell, **options).double()).eval()
    return calibrate_(model, (side(shell), side(shell)), batch=4)


def side(shell: str) -> int:
    return 128 if len(SHELLS[shell].get("dims", ())) == 3 else 64


def mixers_of(model: nn.Module, mixer: str) -> list[nn.Module]:
    return [m for m in model.modules() if type(m) is MIXERS[mixer]]


def test_every_family_is_a_shell_here() -> None:
    assert set(SHELLS) == set(FAMILIES)


@every_mixer
@every_shell
def test_any_mixer_in_any_shell(shell: str, mixer: str) -> None:
    model = build(shell, mixer)
    mixing = sum(s.depth for s in model.spec.stages if s.mixer)
    found = mixers_of(model, mixer)
    assert len(found) >= mixing
    x = image((2, 3, side(shell), side(shell)))
    with torch.no_grad():
        out = model(x)
        assert out.shape == (2, 5) and bool(out.isfinite().all()) and rel_err(out[:1], out[1:]) > 1e-3
        deployed = mixzoo.deploy(model)
        assert rel_err(deployed(x), out) < EQUAL
        odd = image((2, 3, 47, 65))
        assert rel_err(deployed(odd), model(odd)) < EQUAL
    _trains(model.train(), x, found)


def _trains(model: nn.Module, x: Tensor, mixers: list[nn.Module]) -> None:
    """A small step lowers the loss by what the gradient says, and every learned mixer takes part."""
    target = torch.tensor([1, 3])
    loss = nn.functional.cross_entropy(model(x), target)
    loss.backward()
    gradients = [[p.grad for p in mixer.parameters()] for mixer in mixers]
    assert all(g is not None and bool(g.isfinite().all()) for found in gradients for g in found)
    assert all(any(g.abs().max() > 0 for g in found) for found in gradients if found)
    norm = sum(p.grad.square().sum().item() for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=1e-5 / norm).step()  # to first order, the loss drops by 1e-5
    drop = loss.item() - nn.functional.cross_entropy(model(x), target).item()
    assert 0.5e-5 < drop < 2e-5


@every_shell
def test_the_mixer_changes_the_output(shell: str) -> None:
    x = image((1, 3, side(shell), side(shell)))
    with torch.no_grad():
        assert rel_err(build(shell, "pool")(x), build(shell, "identity")(x)) > 1e-3


@every_shell
def test_cross_tokens_pass_through_a_foreign_shell(shell: str) -> None:
    model = build(shell, "forward_cross")
    stages = [s for s in model.stages if any(isinstance(b, CrossBlock) for b in s.blocks)]
    assert all(isinstance(s, CrossStage) for s in stages) and len(stages) == sum(
        1 for s in model.spec.stages if s.mixer
    )
    first, second = next(s for s in stages if len(s.blocks) == 2).blocks
    assert first.mix.embed is not None and second.mix.embed is None
    x = image((1, 3, side(shell), side(shell)))
    with torch.no_grad():
        before = model(x)
        first.mix.embed.weight.mul_(-1)
        assert rel_err(model(x), before) > 1e-9


def test_a_crossing_stage_becomes_a_plain_one() -> None:
    model = build("fcaformer", "pool")
    assert not any(isinstance(m, CrossBlock | CrossStage) for m in model.modules())
    windowed = mixzoo.create_model("fcaformer_l1_dense", mixer="attention", num_classes=3).eval()
    assert not any(isinstance(m, CrossStage) for m in windowed.modules())
    assert windowed(torch.randn(1, 3, 33, 47)).shape == (1, 3)


def test_a_mixer_for_each_stage() -> None:
    model = build("van", ["pool", None, "attention", "random"])
    kinds = [{type(m).__name__ for m in stage.modules()} for stage in model.stages]
    for wanted, found in zip(("PoolMixer", "LargeKernelAttention", "Attention", "RandomMixer"), kinds, strict=True):
        assert wanted in found
        assert not found & ({cls.__name__ for cls in MIXERS.values()} - {wanted})
    custom = mixzoo.create_model("metaformer", **FOUR, mixers=["pool", "sepconv", "attention", "forward_cross"])
    assert custom(torch.randn(1, 3, 64, 96)).shape == (1, 1000)


def test_a_mixer_of_your_own() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    model = mixzoo.create_model("shvit", **SHELLS["shvit"], mixer=lambda dim, grid: Doubled())
    assert sum(isinstance(m, Doubled) for m in model.modules()) == 3
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("name", ("mz_poolformer_s12", "van_b0", "mz_shvit_s1", "fcaformer_l1"))
def test_timm_takes_mixers_too(name: str) -> None:
    model = timm.create_model(name, mixer="large_kernel", num_classes=4).eval()
    assert mixers_of(model, "large_kernel") and model(torch.randn(1, 3, 64, 64)).shape == (1, 4)
    maps = timm.create_model(name, mixer="large_kernel", features_only=True).eval()(torch.randn(1, 3, 64, 64))
    assert len(maps) == len(model.stages)


def test_wrong_mixers_are_refused() -> None:
    with pytest.raises(MixzooError, match="4, one per stage; got 2"):
        mixzoo.create_model("van_b0", mixer=["pool", "pool"])
    with pytest.raises(UnknownNameError, match="large_kernel"):
        mixzoo.create_model("van_b0", mixer="large_kernal")
    with pytest.raises(MixzooError):
        mixzoo.create_model("metaformer", **FOUR, mixers=["pool", "pool"])


# on their own


class Ranks(TorchDispatchMode):
    """Records the greatest number of axes of any tensor that an operator returns."""

    greatest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.greatest = max(self.greatest, tensor.ndim)
        return out


@pytest.mark.parametrize("size", ((1, 1), (7, 7), (9, 13), (15, 4)), ids=str)
@every_mixer
def test_mixers_keep_the_shape_of_any_map(mixer: str, size: tuple[int, int]) -> None:
    module = fill_(MIXERS[mixer](48, (7, 7)).double()).eval()
    x = image((2, 48, *size))
    with torch.no_grad(), Ranks() as ranks:
        out = module(x)
    assert out.shape == x.shape and bool(out.isfinite().all()) and ranks.greatest <= 5
    with torch.no_grad():
        assert torch.allclose(module(x[:1]), out[:1], EQUAL, EQUAL)
        assert torch.allclose(module(x.contiguous(memory_format=torch.channels_last)), out, EQUAL, EQUAL)
        assert torch.equal(x, image((2, 48, *size))), "a mixer must not change its input"


def test_pooling_is_the_mean_of_the_neighbours_less_the_centre() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    out = MIXERS["pool"](1)(x)
    assert out[0, 0, 0, 0] == (0 + 1 + 3 + 4) / 4 - 0 and out[0, 0, 1, 1] == 15 / 6 - 4


def test_cross_tokens_of_every_source_matter() -> None:
    module = fill_(MIXERS["forward_cross"](48, (8, 12), num_sources=2).double())
    assert cross_grid((8, 12)) == (2, 3) and cross_grid((9, 13)) == (3, 4)
    for size in ((8, 12), (9, 13)):
        x, maps = image((1, 48, *size)), [image((1, 48, *cross_grid(size)), seed=s) for s in (1, 2)]
        out = module(x, maps)
        assert out.shape == x.shape
        for index in range(2):
            assert rel_err(module(x, [m.flip(1) if i == index else m for i, m in enumerate(maps)]), out) > 1e-6


def test_random_matrices_are_saved_and_never_trained() -> None:
    mixer = MIXERS["random"](8, (3, 4))
    assert not list(mixer.parameters()) and mixer.weight.shape == (12, 12)
    assert torch.allclose(mixer.weight.sum(1), torch.ones(12)) and "weight" in mixer.state_dict()


def test_a_resized_matrix_keeps_its_total_weight() -> None:
    uniform = torch.full((12, 12), 1 / 12)
    assert resize_mixing(uniform, (3, 4), (3, 4)) is uniform
    resized = resize_mixing(uniform, (3, 4), (5, 7))
    assert resized.shape == (35, 35) and torch.allclose(resized.sum(1), torch.ones(35))


# shape arithmetic


def test_windows_come_back() -> None:
    x = image((2, 3, 8, 12))
    windows = to_windows(x, (4, 3))
    assert windows.shape == (2 * 2 * 4, 3, 4, 3)
    assert torch.equal(windows[5], x[0, :, 4:8, 3:6]) and torch.equal(windows[8], x[1, :, :4, :3])
    assert torch.equal(from_windows(windows, (8, 12)), x)
    padded = pad_to_windows(image((1, 1, 5, 7)), (4, 4))
    assert padded.shape == (1, 1, 8, 8) and not padded[:, :, 5:].any() and not padded[:, :, :, 7:].any()
    assert pad_to_windows(x, (4, 3)) is x


def test_tables_are_recognised_by_their_shape() -> None:
    own = torch.zeros(2, 6, 4)
    square = image((2, 7, 7))
    assert torch.equal(as_table(square, own), resize_table(square, (6, 4)))
    assert torch.equal(as_table(square.flatten(1), own), resize_table(square, (6, 4)))
    same = image((2, 24))
    assert torch.equal(as_table(same, own), same.reshape(2, 6, 4))
    narrow = image((1, 4, 1))
    assert torch.equal(as_table(narrow, torch.zeros(1, 2, 1)), resize_table(narrow, (2, 1)))
    for wrong in (torch.zeros(2, 23), torch.zeros(3, 49)):
        with pytest.raises(ValueError, match="does not fit"):
            as_table(wrong, own)


def test_heads_divide_the_width() -> None:
    assert [num_heads_for(d, 32) for d in (64, 320, 48, 7)] == [2, 10, 1, 1]
    assert all(d % num_heads_for(d, 32) == 0 for d in range(1, 200))
