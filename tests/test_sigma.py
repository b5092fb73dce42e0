"""sigmaReparam: the equation, what it covers, how it is trained, resumed, averaged, and folded away."""

from __future__ import annotations

import copy
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import TINY
from mixzoo.train import RecipeError, load_recipe, load_run, train
from mixzoo.train.logs import STEPS
from mixzoo.train.models import build_model
from mixzoo.train.parts import parameter_groups
from mixzoo.train.prepare import prepare_model
from mixzoo.train.sigma import follow, plain_state, reparametrise
from mixzoo.train.snapshots import FOLDER, latest_snapshot, saved_steps
from mixzoo.zoo.fill import fill_
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

DEIT = (
    *TINY,
    "compute.memory_format=contiguous",
    "saving.tensorboard=false",
    "saving.every_epochs=1",
    "saving.every_steps=2",
    "regularisation.sigma_reparam=true",
)
MUCH = (*DEIT, "ema.decay=0.9", "optim.clip_grad=1.0", "optim.weight_decay=0.1", "augment.mixup=0.8")


def quiet() -> Console:
    return Console(file=io.StringIO())


def norm(weight: Tensor) -> Tensor:
    """The spectral norm of a weight (out, ...)."""
    return torch.linalg.matrix_norm(weight.detach().flatten(1), ord=2)


def layers(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if parametrize.is_parametrized(m, "weight")}


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 1), nn.Conv2d(3, 5, 4, stride=4)], ids=str)
def test_the_spectral_norm_is_gamma(layer: Any) -> None:
    layer = copy.deepcopy(layer).double()
    weight = 5 * layer.weight.detach()
    layer.weight.data.copy_(weight)
    reparametrise(layer, keep=False)
    made = layer.parametrizations.weight
    assert norm(weight) != pytest.approx(1, rel=0.05) and float(norm(layer.weight)) == pytest.approx(1, rel=1e-12)
    with torch.no_grad():
        made[0].gamma.fill_(2.5)
    assert torch.allclose(layer.weight, 2.5 * weight / norm(weight), rtol=1e-12)
    kept = nn.Sequential(nn.Linear(6, 4)).double()
    begun = kept[0].weight.detach().clone()  # type: ignore[union-attr, operator]
    reparametrise(kept, keep=True)
    assert torch.allclose(kept[0].weight, begun, rtol=1e-12)  # type: ignore[arg-type]


def test_the_gradient_is_that_of_the_equation() -> None:
    layer: Any = nn.Linear(6, 4, bias=False).double()
    weight, x = layer.weight.detach().clone().requires_grad_(), torch.rand(3, 6, dtype=torch.float64)
    reparametrise(layer, keep=False)
    layer(x).square().sum().backward()
    gamma = torch.ones((), dtype=torch.float64, requires_grad=True)
    w = gamma * weight / torch.linalg.matrix_norm(weight, ord=2)
    (x @ w.T).square().sum().backward()
    made = layer.parametrizations.weight
    assert torch.allclose(made.original.grad, weight.grad, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]
    assert made[0].gamma.grad == pytest.approx(gamma.grad, rel=1e-12) and abs(gamma.grad) > 1e-3  # type: ignore[arg-type]


def test_the_vectors_follow_a_weight_that_moves() -> None:
    layer: Any = nn.Linear(32, 24).double()
    reparametrise(layer, keep=False)
    made = layer.parametrizations.weight
    with torch.no_grad():
        made.original.normal_()
    first = abs(norm(layer.weight) - 1)
    for _ in range(400):
        follow(layer)
    assert first > 1 and float(norm(layer.weight)) == pytest.approx(1, rel=1e-6)
    assert float(made[0].u.norm()) == pytest.approx(1, rel=1e-12)


def test_layers_that_are_linear_are_covered_and_no_others() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 2, stride=2),
        nn.Conv2d(4, 4, 3, stride=3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 1, groups=4),
        nn.Linear(4, 4),
        nn.LayerNorm(4),
    )
    nn.init.zeros_(model[6].weight)  # type: ignore[arg-type]
    reparametrise(model, keep=False)
    assert set(layers(model)) == {"0", "1", "2"}
    with pytest.raises(RecipeError, match=r"'regularisation\.sigma_reparam' is set, but the model has no linear layer"):
        reparametrise(nn.Sequential(nn.Conv2d(4, 4, 3)), keep=False)


def prepared(*changes: str) -> tuple[nn.Module, nn.Module]:
    """(an ordinary model, the same as a recipe prepares it)."""
    recipe = load_recipe("shvit_digits", [*DEIT, *changes])
    plain, model = fill_(build_model(recipe, 10)), fill_(build_model(recipe, 10))
    prepare_model(model, recipe, torch.device("cpu"))
    return plain.eval(), model.eval()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deit", "depth: 2, dim: 32"),
        ("swin", "depths: [1, 1, 1, 1], dims: [32, 32, 32, 32]"),
        ("shvit", "depths: [1, 1, 1], dims: [16, 24, 32], partial_dims: [null, 8, 8]"),
        ("timm/vit_tiny_patch16_224", "depth: 1"),
    ],
)
def test_folding_gives_the_same_model_with_ordinary_weights(name: str, kwargs: str) -> None:
    plain, model = prepared(f"model.name={name}", f"model.kwargs={{{kwargs}}}")
    images = torch.rand(2, 1, 32, 32)
    before = plain(images)
    nn.Module.load_state_dict(plain, plain_state(model))
    assert not layers(plain) and torch.equal(plain(images), model(images))
    assert not torch.allclose(before, model(images), rtol=0.1)


def test_a_gamma_is_not_decayed_and_weights_are_found_by_their_ordinary_names() -> None:
    recipe = load_recipe("shvit_digits", [*DEIT, "optim.weight_decay=0.1", "optim.no_decay=['head.fc.weight']"])
    model = build_model(recipe, 10)
    prepare_model(model, recipe, torch.device("cpu"))
    names = {id(p): n for n, p in model.named_parameters()}
    decays = {names[id(p)]: g["weight_decay"] for g in parameter_groups(model, recipe) for p in g["params"]}
    of_weights = {n: d for n, d in decays.items() if n.endswith("weight.original")}
    assert [n for n, d in of_weights.items() if not d] == ["head.fc.parametrizations.weight.original"]
    assert len(of_weights) > 8 and not any(d for n, d in decays.items() if n.endswith("gamma"))
    assert len(decays) == len(names)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train("shvit_digits", MUCH, folder, quiet())
    return folder


def test_gamma_is_trained_and_the_result_is_an_ordinary_model(run: Path) -> None:
    snapshot = latest_snapshot(run, pytest.fail)
    assert snapshot is not None
    raw, averaged = snapshot.weights["model"], snapshot.weights["ema"]
    gammas = [v for k, v in raw.items() if k.endswith("gamma")]
    assert len(gammas) > 8 and all(v != 1 for v in gammas)
    result = load_file(run / "model.safetensors")
    assert result.keys() == build_model(load_run(run).recipe, 10).state_dict().keys()
    name = next(k for k in result if k.endswith("fc1.weight")).removesuffix(".weight")
    part = f"{name}.parametrizations.weight."
    assert float(norm(result[f"{name}.weight"])) == pytest.approx(float(averaged[f"{part}0.gamma"]), rel=0.02)
    assert float(averaged[f"{part}0.v"].norm()) == pytest.approx(1, rel=1e-5)
    weight = averaged[f"{part}original"]
    assert float(averaged[f"{part}0.u"] @ weight.flatten(1) @ averaged[f"{part}0.v"]) == pytest.approx(
        float(norm(weight)), rel=0.02
    )


def test_a_run_is_resumed_exactly(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / FOLDER, tmp_path / FOLDER)
    for name in ("log.csv", STEPS):
        shutil.copy(run / name, tmp_path / name)
    shutil.rmtree(saved_steps(tmp_path)[0])
    train("shvit_digits", MUCH, tmp_path, quiet(), resume=True)
    assert (tmp_path / STEPS).read_text() == (run / STEPS).read_text()
    assert (tmp_path / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_run_that_begins_from_weights_begins_as_that_model(run: Path, tmp_path: Path) -> None:
    changes = [*DEIT, f"model.checkpoint={run}", "optim.lr=1e-12", "schedule.min_lr=0", "schedule.epochs=1"]
    result = train("shvit_digits", changes, tmp_path, quiet())
    images = torch.rand(4, 1, 32, 32)
    assert torch.allclose(result.model(images), load_run(run).model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["compute.accumulate=2", "compute.checkpointing=true"])
def test_how_a_step_is_computed_does_not_change_it(change: str, tmp_path: Path) -> None:
    losses = []
    for name, changes in {"a": DEIT, "b": (*DEIT, change)}.items():
        train("shvit_digits", changes, tmp_path / name, quiet())
        losses.append([float(line.split(",")[3]) for line in (tmp_path / name / STEPS).read_text().splitlines()[1:]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_vectors_stay_in_single_precision_under_autocast() -> None:
    _, model = prepared()
    first = next(iter(layers(model).values()))
    with torch.autocast("cpu", torch.bfloat16):
        weight = first.weight
    assert weight.dtype == torch.float32 and torch.equal(weight, first.weight)
