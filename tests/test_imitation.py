"""Features of a teacher: the distance is what it says, the projection is trained, kept and left out of the result."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import finish, start
from mixzoo.train import Recipe, load_recipe, load_run, train
from mixzoo.train.imitation import Imitator, LastMap, Pooled, distance
from mixzoo.train.logs import STEPS
from mixzoo.train.models import ModelError, build_model, build_teacher
from mixzoo.train.parts import Objective, make_optimizer, parameter_groups
from mixzoo.train.plan import make_plan
from mixzoo.train.prepare import prepare_model
from mixzoo.train.snapshots import FOLDER, saved_steps
from mixzoo.zoo.fill import fill_
from rich.console import Console
from safetensors.torch import load_file
from timm.task.distillation import FeatureDistillationTask
from torch import Tensor, nn

BASE = ("data.size=32", "data.batch=256", "schedule.epochs=2", "schedule.warmup_epochs=0", "saving.tensorboard=false")
KWARGS = "kwargs={depths: [1, 1, 1], dims: [16, 24, 32], partial_dims: [null, 8, 8]}"
DEIT = ("model.name=deit", "model.kwargs={depth: 1, dim: 32}", *BASE, "compute.memory_format=contiguous")
HINTS = ("distillation.kind=feature", "distillation.alpha=1", "regularisation.label_smoothing=0")


def quiet() -> Console:
    return Console(file=io.StringIO())


def rows(folder: Path) -> list[float]:
    return [float(line.split(",")[3]) for line in (folder / STEPS).read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What names a teacher that has learned."""
    folder = tmp_path_factory.mktemp("teacher")
    train("shvit_digits", [f"model.{KWARGS}", *BASE], folder, quiet())
    return ("distillation.teacher=shvit", f"distillation.{KWARGS}", f"distillation.checkpoint={folder}")


def pair(taught: tuple[str, ...], *changes: str) -> tuple[Recipe, nn.Module, nn.Module]:
    """(recipe, student, teacher); the student is a DeiT with maps of 2 x 2, the teacher a SHViT with maps of 1 x 1."""
    recipe = load_recipe("shvit_digits", [*DEIT, *HINTS, *taught, *changes])
    return recipe, fill_(build_model(recipe, 10)), build_teacher(recipe.distillation, recipe, 10)


def test_pooled_features_are_compared_as_in_timms_task(taught: tuple[str, ...]) -> None:
    recipe, student, teacher = pair(taught, "distillation.alpha=0.3")
    objective = Objective(recipe, 10, teacher, student)
    called = objective.called(student)
    assert isinstance(called, Imitator)
    task = FeatureDistillationTask(
        student, teacher, nn.CrossEntropyLoss(), task_loss_weight=0.7, student_feature_dim=32
    )
    projection: Any = nn.Linear(32, 32)
    projection.load_state_dict(called.projection.state_dict())
    task.trainable_module.projection = projection
    images, labels = torch.rand(8, 1, 32, 32), torch.arange(8)
    expected = task(images, labels)
    assert expected["kd_loss"] > 0.01
    assert torch.allclose(objective(called, images, labels, 1, 1), expected["loss"], rtol=1e-5)


def test_a_teacher_from_a_run_gets_images_as_that_run_did(taught: tuple[str, ...]) -> None:
    recipe, student, teacher = pair(taught, "data.mean=[0.5]", "data.std=[0.25]", "distillation.kind=soft")
    seen: list[Tensor] = []
    teacher.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(4, 1, 32, 32)
    Objective(recipe, 10, teacher, student)(student, images, torch.arange(4), 1, 1)
    mean, std = (load_recipe("shvit_digits").data.model_dump()[name][0] for name in ("mean", "std"))
    assert torch.allclose(seen[0], (images * 0.25 + 0.5 - mean) / std, atol=1e-5)


def test_maps_are_compared_at_the_smaller_size(taught: tuple[str, ...]) -> None:
    recipe, student, teacher = pair(taught, "distillation.features=map")
    objective = Objective(recipe, 10, teacher, student)
    called = objective.called(student)
    assert isinstance(called, Imitator) and isinstance(called.projection, nn.Conv2d)
    images = torch.rand(4, 1, 32, 32)
    ours, theirs = (LastMap(m.eval())(images)[1] for m in (student, teacher))
    assert ours.shape == (4, 32, 2, 2) and theirs.shape == (4, 32, 1, 1)
    weight, bias = called.projection.weight[:, :, 0, 0], called.projection.bias
    expected = ((ours.mean((2, 3)) @ weight.T + bias - theirs[:, :, 0, 0]) ** 2).mean()
    assert expected > 0.01
    assert torch.allclose(objective(called, images, torch.arange(4), 1, 1), expected, rtol=1e-5)


def test_maps_of_one_size_are_compared_place_by_place() -> None:
    ours, theirs = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    assert torch.allclose(distance(ours, theirs), ((ours - theirs) ** 2).mean())


@pytest.mark.parametrize("features", ["pooled", "map"])
def test_the_gradient_reaches_the_projection_and_the_student(taught: tuple[str, ...], features: str) -> None:
    recipe, student, teacher = pair(taught, f"distillation.features={features}")
    objective = Objective(recipe, 10, teacher, student)
    called = objective.called(student)
    objective(called, torch.rand(4, 1, 32, 32), torch.arange(4), 1, 1).backward()
    without = {name for name, p in called.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {"student.head.fc.weight", "student.head.fc.bias"}  # labels count nothing here
    assert all(p.grad is None for p in teacher.parameters())


def test_the_projection_has_groups_of_its_own(taught: tuple[str, ...]) -> None:
    recipe, student, teacher = pair(taught, "optim.weight_decay=0.1", "optim.layer_decay=0.5")
    called = Objective(recipe, 10, teacher, student).called(student)
    assert isinstance(called, Imitator)
    *groups, bias, weight = parameter_groups(called, recipe)
    assert len(groups) == len(parameter_groups(student, recipe))
    assert weight["params"] == [called.projection.weight] and weight["weight_decay"] == 0.1
    assert bias["params"] == [called.projection.bias] and bias["weight_decay"] == 0.0
    optimizer = make_optimizer(called, recipe)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(called.parameters()))
    assert make_plan(recipe).groups[-1].first == "projection.weight"


class Tokens(nn.Module):
    """Images -> tokens, of which there is no square."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.fc = count, nn.Linear(6, 3)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.count, 6)

    def forward_head(self, x: Tensor) -> Tensor:
        return self.fc(x).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def test_features_of_another_shape_are_refused(taught: tuple[str, ...]) -> None:
    recipe, student, _ = pair(taught)
    with pytest.raises(ModelError, match=r"teacher's features for an image are \(1, 9, 6\), not \(B, C\): set .*=map"):
        Imitator(student, Pooled(Tokens(9)), recipe)
    assert Imitator(student, LastMap(Tokens(9)), recipe).projection.weight.shape == (6, 32)  # type: ignore[union-attr]
    changed, *_ = pair(taught, "distillation.features=map")
    with pytest.raises(ModelError, match=r"teacher's features for an image are \(1, 7, 6\), .*: set .*=pooled"):
        Imitator(student, LastMap(Tokens(7)), changed)


def test_timms_layouts_are_maps() -> None:
    import timm

    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, num_classes=3).eval()
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1, 1, 1), num_classes=3).eval()
    images = torch.rand(2, 3, 64, 64)
    maps = LastMap(vit)(images)[1], LastMap(swin)(images)[1]
    assert [tuple(m.shape) for m in maps] == [(2, 192, 4, 4), (2, 768, 2, 2)]
    assert torch.equal(maps[0][1, :, 1, 2], vit.forward_features(images)[1, 1 + 4 + 2])
    assert torch.equal(maps[1][1, :, 1, 0], swin.forward_features(images)[1, 1, 0])


def test_a_teacher_of_features_may_know_other_classes(taught: tuple[str, ...]) -> None:
    recipe, student, _ = pair(taught)
    teacher = build_teacher(recipe.distillation, recipe, 12)
    assert teacher.num_classes == 10  # type: ignore[comparison-overlap]
    objective = Objective(recipe, 12, teacher, student)
    assert torch.isfinite(objective(objective.called(student), torch.rand(2, 1, 32, 32), torch.arange(2), 1, 1))


def test_a_student_with_two_heads_has_both_for_the_labels(taught: tuple[str, ...]) -> None:
    deit = ("model.name=timm/deit_tiny_distilled_patch16_224", "model.kwargs={depth: 1}", "distillation.alpha=0.5")
    recipe = load_recipe("shvit_digits", [*DEIT, *HINTS, *taught, *deit])
    student, teacher = build_model(recipe, 10), build_teacher(recipe.distillation, recipe, 10)
    prepare_model(student, recipe, torch.device("cpu"))
    objective = Objective(recipe, 10, teacher, student)
    objective(objective.called(student), torch.rand(2, 1, 32, 32), torch.arange(2), 1, 1).backward()
    heads: Any = student.get_classifier()  # type: ignore[operator]
    assert len(heads) == 2 and all(head.weight.grad.any() for head in heads)


@pytest.fixture(scope="module")
def run(taught: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train("shvit_digits", settings(taught), folder, quiet())
    return folder


def settings(taught: tuple[str, ...]) -> list[str]:
    more = ("schedule.epochs=4", "saving.every_steps=2", "ema.decay=0.9", "optim.clip_grad=1.0", "optim.lr=3e-3")
    return [*DEIT, *HINTS, *taught, *more, "distillation.alpha=0.9", "augment.mixup=0.8"]


def test_the_student_comes_nearer_to_the_teacher_and_the_result_is_an_ordinary_model(
    run: Path, taught: tuple[str, ...]
) -> None:
    losses = rows(run)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    recipe, student, teacher = pair(taught, *settings(taught))
    student.load_state_dict(load_file(run / "model.safetensors"), strict=True)
    assert load_run(run).recipe == recipe
    projection = nn.Linear(32, 32)
    projection.load_state_dict(load_file(saved_steps(run)[0] / "projection.safetensors"))
    data = torch.rand(64, 1, 32, 32)
    features = [m.forward_head(m.forward_features(data), pre_logits=True) for m in (student.eval(), teacher)]  # type: ignore[operator]
    assert distance(projection(features[0]), features[1]) < 0.5 * distance(torch.zeros_like(features[1]), features[1])


def test_a_run_with_a_projection_is_resumed_exactly(run: Path, taught: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copytree(run / FOLDER, tmp_path / FOLDER)
    for name in ("log.csv", STEPS):
        shutil.copy(run / name, tmp_path / name)
    shutil.rmtree(saved_steps(tmp_path)[0])
    assert 0 < int(saved_steps(tmp_path)[0].name[5:]) < len(rows(run))
    train("shvit_digits", settings(taught), tmp_path, quiet(), resume=True)
    assert (tmp_path / STEPS).read_text() == (run / STEPS).read_text()
    assert (tmp_path / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    last = "projection.safetensors"
    assert (saved_steps(tmp_path)[0] / last).read_bytes() == (saved_steps(run)[0] / last).read_bytes()


@pytest.mark.slow
def test_two_processes_train_one_projection_and_the_same_spectral_norms(
    taught: tuple[str, ...], tmp_path: Path
) -> None:
    changes = [*DEIT, *HINTS, *taught, "saving.every_epochs=1", "regularisation.sigma_reparam=true"]
    train("shvit_digits", changes, tmp_path / "one", quiet())
    finish(start(tmp_path / "two", changes, 2))
    assert rows(tmp_path / "two") == pytest.approx(rows(tmp_path / "one"), rel=1e-4)
    folders = [saved_steps(tmp_path / name)[0] for name in ("one", "two")]
    one, two = (load_file(folder / "projection.safetensors")["weight"] for folder in folders)
    assert torch.allclose(one, two, rtol=1e-2, atol=1e-4)
    one_model, two_model = (load_file(folder / "model.safetensors") for folder in folders)
    gammas = [name for name in one_model if name.endswith("gamma")]
    assert gammas and all(float(one_model[n]) == pytest.approx(float(two_model[n]), rel=1e-4) for n in gammas)
