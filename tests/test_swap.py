"""Other activations and norms in a model: a copy, counted, named in the manifest, and never called the trained one."""

from __future__ import annotations

from pathlib import Path

import mixzoo
import pytest
import torch
from export_doubles import stage
from mixzoo.blocks.norm import GroupNorm1NoBias
from mixzoo.export import SwapError
from mixzoo.export.report import summary
from mixzoo.export.swaps import ACTIVATIONS, NORMS, settle, swapped
from mixzoo.zoo.cli import app
from mixzoo.zoo.errors import UnknownNameError
from mixzoo.zoo.fill import fill_
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from typer.testing import CliRunner


class Net(nn.Module):
    """Convolution, norm, two activations, pooling, classifier."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm or LayerNorm2d(8), nn.GELU())
        self.act = nn.GELU()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(2 * self.body(x)).square().mean((2, 3)))


def net(norm: nn.Module | None = None) -> nn.Module:
    return fill_(Net(norm)).eval()


X = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))


def test_a_copy_is_changed_and_counted() -> None:
    model = net()
    before = model(X)
    changed = swapped(model, "gelu=hardswish,layernorm=groupnorm")
    assert changed.counts == {"gelu=hardswish": 2, "layernorm=groupnorm": 1}
    kinds = [type(m).__name__ for m in changed.model.modules()]
    assert kinds.count("Hardswish") == 2 and "GroupNorm1" in kinds and "LayerNorm2d" not in kinds
    assert torch.equal(model(X), before) and not torch.allclose(changed.model(X), before)
    assert not changed.model.act.training and not changed.model.body[1].training


def test_a_swap_back_and_forth_gives_the_same_model() -> None:
    model = net()
    assert torch.equal(mixzoo.swap(mixzoo.swap(model, {"gelu": "relu6"}), {"relu6": "gelu"})(X), model(X))
    norms = mixzoo.swap(mixzoo.swap(model, {"layernorm": "batchnorm"}), {"batchnorm": "layernorm"})
    assert torch.equal(norms(X), model(X))


def test_a_new_norm_keeps_scale_and_shift_and_settles() -> None:
    model = net(GroupNorm1NoBias(8))
    changed = mixzoo.swap(model, "groupnorm=batchnorm")
    norm = changed.body[1]
    assert torch.equal(norm.weight, model.body[1].weight) and not norm.bias.any() and norm.running_var.eq(1).all()
    settle(changed, model, [X[:1], X[1:]])
    maps = model.body[0](X)
    assert torch.allclose(norm.running_mean, maps.mean((0, 2, 3)), atol=1e-6) and not norm.training


@pytest.mark.parametrize("old", ACTIVATIONS)
def test_every_activation_can_be_had(old: str) -> None:
    changed = mixzoo.swap(net(), {"gelu": old})
    assert type(changed.act) in ACTIVATIONS[old] and changed(X).isfinite().all()


@pytest.mark.parametrize(
    ("swaps", "kind", "message"),
    [
        ("gelu=hardswihs", UnknownNameError, "hardswish"),
        ("gleu=hardswish", UnknownNameError, "gelu"),
        ("silu=relu", SwapError, "no silu among its modules.*gelu, layernorm"),
        ("gelu=batchnorm", SwapError, "one is an activation, the other a norm"),
        ("gelu", SwapError, "no pair"),
        ("gelu=,", SwapError, "no pair"),
    ],
)
def test_what_cannot_be_swapped_is_said(swaps: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        mixzoo.swap(net(), swaps)


def test_names_are_of_one_table_only() -> None:
    assert not set(ACTIVATIONS) & set(NORMS)


def test_an_export_says_that_it_is_not_the_trained_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(monkeypatch)
    options = {"to": "program", "sizes": "24", "dynamic": ()}
    (report,) = mixzoo.export(net(), out=tmp_path / "a", swap="gelu=hardswish,layernorm=batchnorm", **options)
    content = report.manifest
    assert content["model"] == "net_swapped" and content["swapped"]["difference"] > 1e-2 > 100 * report.error
    assert content["swapped"]["changes"] == {"gelu=hardswish": 2, "layernorm=batchnorm": 1}
    assert "gelu=hardswish (2 times)" in summary(content) and "not the trained model" in summary(content)
    (plain,) = mixzoo.export(net(), out=tmp_path / "b", **options)
    assert plain.manifest["swapped"] is None and "swapped" not in summary(plain.manifest)


def test_the_command_takes_swaps() -> None:
    run = CliRunner().invoke(
        app, ["check", "timm:test_convnext", "--target", "coreml", "--sizes", "64", "--swap", "x=y"]
    )
    assert run.exit_code == 2 and "Unknown activation or norm" in run.stderr
