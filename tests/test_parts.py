"""What a recipe makes of timm's parts: groups, rates, losses, teachers, averages, parts of a batch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from mixzoo.train import RecipeError, load_recipe, load_run, train
from mixzoo.train.diagnose import first_not_finite
from mixzoo.train.logs import STEPS
from mixzoo.train.models import ModelError, build_model, build_teacher, freeze_below_head
from mixzoo.train.parts import Objective, current_lr, lr_factor, make_optimizer, make_scheduler, parameter_groups
from mixzoo.train.plan import make_plan, show_plan
from mixzoo.train.prepare import check_batch, set_training_mode
from mixzoo.train.processes import Processes
from mixzoo.train.randomness import borrowed_generators
from mixzoo.zoo.errors import MixzooError, UnknownModelError
from mixzoo.zoo.fill import fill_
from rich.console import Console
from torch import Tensor, nn

TINY = (
    "model.kwargs={depths: [1, 1, 1], dims: [16, 24, 32], partial_dims: [null, 8, 8]}",
    "data.size=32",
    "data.batch=256",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
)
DEIT = ("model.name=deit", "model.kwargs={depth: 2, dim: 64}", *TINY[1:], "compute.memory_format=contiguous")


def quiet() -> Console:
    return Console(file=io.StringIO())


def losses(folder: Path) -> list[float]:
    return [float(line.split(",")[3]) for line in (folder / STEPS).read_text().splitlines()[1:]]


# groups and rates


def test_norms_biases_and_named_parameters_are_not_decayed() -> None:
    recipe = load_recipe("shvit_digits", [*DEIT, "optim.no_decay=['head.*']"])
    model = build_model(recipe, 10)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in parameter_groups(model, recipe)}
    assert set(groups) == {0.0, 0.05} and sum(map(len, groups.values())) == len(names)
    assert {"head.fc.weight", "head.fc.bias", "norm.weight"} <= groups[0.0]
    assert all(p.ndim > 1 for n, p in model.named_parameters() if n in groups[0.05])
    with pytest.raises(RecipeError, match=r"no parameter of the model is called 'heads\.\*'"):
        parameter_groups(model, load_recipe("shvit_digits", [*DEIT, "optim.no_decay=['heads.*']"]))


def test_the_rate_decays_from_the_head_to_the_stem() -> None:
    recipe = load_recipe("shvit_digits", [*DEIT, "optim.layer_decay=0.5"])
    model = build_model(recipe, 10)
    names = {id(p): n for n, p in model.named_parameters()}
    scales = {names[id(p)]: g["lr_scale"] for g in parameter_groups(model, recipe) for p in g["params"]}
    first, second = (next(v for k, v in scales.items() if f"blocks.{i}." in k) for i in range(2))
    assert scales["head.fc.weight"] == 1.0 and second == 2 * first
    assert min(scales.values()) == next(v for k, v in scales.items() if k.startswith("stem"))


@pytest.mark.parametrize(
    ("changes", "peak", "end"),
    [
        ((), 3e-3, 1e-5),
        (("optim.lr_batch=128",), 6e-3, 1e-5),
        (("optim.lr_batch=128", "schedule.scale_ends=true"), 6e-3, 2e-5),
        (("schedule.schedule=constant",), 3e-3, 3e-3),
        (("schedule.schedule=poly", "schedule.decay_rate=1"), 3e-3, 1e-5),
    ],
)
@pytest.mark.parametrize("per", ["step", "epoch"])
def test_the_rate_follows_the_batch_and_the_schedule(
    changes: tuple[str, ...], peak: float, end: float, per: str
) -> None:
    recipe = load_recipe("shvit_digits", [*TINY, "schedule.epochs=10", f"schedule.per={per}", *changes])
    optimizer = make_optimizer(nn.Linear(2, 2), recipe)
    scheduler = make_scheduler(optimizer, recipe, 5)
    rates = [current_lr(optimizer)]
    for step in range(1, 51):
        scheduler.step_update(step)
        if step % 5 == 0:
            scheduler.step(step // 5)
        rates.append(current_lr(optimizer))
    assert max(rates) == pytest.approx(peak) and rates[-1] == pytest.approx(end)
    assert len(set(rates)) == (1 if "schedule.schedule=constant" in changes else 51 if per == "step" else 11)
    assert lr_factor(recipe) == (2 if "optim.lr_batch=128" in changes else 1)


@pytest.mark.parametrize(
    ("changes", "processes", "says"),
    [
        (("data.batch=2000",), 1, "only 1347 training images"),
        (("data.batch=100", "compute.accumulate=2"), 3, "make it a multiple of 6"),
        (("data.batch=30", "augment.mixup=0.8"), 2, "even batch, but a part has 15"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(changes: tuple[str, ...], processes: int, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        check_batch(load_recipe("shvit_digits", changes), 1347, processes)


# losses


def test_mixing_is_drawn_from_the_step_and_ends_when_it_must() -> None:
    recipe = load_recipe("shvit_digits", ["augment.mixup=0.8", "augment.cutmix=1.0", "augment.off_epoch=3"])
    objective, images, labels = Objective(recipe, 10), torch.rand(8, 1, 32, 32), torch.arange(8)
    with borrowed_generators():
        mixed = {
            (epoch, step): objective.mixed(images.clone(), labels, epoch, step)
            for epoch, step in [(1, 5), (2, 5), (1, 6), (3, 5)]
        }
    assert torch.equal(mixed[1, 5][0], mixed[2, 5][0]) and not torch.equal(mixed[1, 5][0], mixed[1, 6][0])
    assert torch.equal(mixed[3, 5][0], images) and not torch.equal(mixed[1, 5][0], images)
    assert mixed[1, 5][1].shape == (8, 10) and torch.allclose(mixed[1, 5][1].sum(1), torch.ones(8))


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_binary_cross_entropy_is_another_loss(mixup: float) -> None:
    model, images, labels = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.rand(8, 1, 8, 8), torch.arange(8)
    found = []
    for bce in ("true", "false"):
        recipe = load_recipe("shvit_digits", [f"regularisation.bce={bce}", f"augment.mixup={mixup}"])
        with borrowed_generators():
            found.append(Objective(recipe, 10)(model, images.clone(), labels, 1, 1).item())
    assert found[0] != pytest.approx(found[1], rel=0.1)


class Fixed(nn.Module):
    """Gives the same logits for all images."""

    def __init__(self, *outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.ParameterList(outputs)
        self.pretrained_cfg = {"mean": (0.2,), "std": (0.1,)}
        self.seen: Any = None

    def forward(self, x: Tensor) -> Any:
        self.seen = x
        return self.outputs[0] if len(self.outputs) == 1 else tuple(self.outputs)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_teacher_is_a_share_of_the_loss_and_gets_images_of_its_own(kind: str) -> None:
    said, student, labels = torch.randn(4, 10), torch.randn(4, 10), torch.arange(4)
    changes = [f"distillation.kind={kind}", "distillation.alpha=0.3", "distillation.tau=2"]
    recipe = load_recipe("shvit_digits", [*changes, "regularisation.label_smoothing=0"])
    teacher, images = Fixed(said), torch.rand(4, 1, 8, 8)
    loss = Objective(recipe, 10, teacher)(Fixed(student), images, labels, 1, 1)
    if kind == "hard":
        distance = nn.functional.cross_entropy(student, said.argmax(1))
    else:
        log_p, log_q = (said / 2).log_softmax(1), (student / 2).log_softmax(1)
        distance = 4 * (log_p.exp() * (log_p - log_q)).sum(1).mean()
    expected = 0.7 * nn.functional.cross_entropy(student, labels) + 0.3 * distance
    assert torch.allclose(loss, expected)
    assert torch.allclose(teacher.seen * 0.1 + 0.2, images * recipe.data.std[0] + recipe.data.mean[0], atol=1e-6)


def test_a_second_head_imitates_the_teacher() -> None:
    recipe = load_recipe("shvit_digits", ["distillation.alpha=1.0"])
    student, said, labels = Fixed(torch.zeros(4, 10), torch.randn(4, 10)), torch.randn(4, 10), torch.arange(4)
    loss = Objective(recipe, 10, Fixed(said))(student, torch.rand(4, 1, 8, 8), labels, 1, 1)
    assert torch.allclose(loss, nn.functional.cross_entropy(student.outputs[1], said.argmax(1)))


def test_several_sizes_are_averaged_and_their_features_agree() -> None:
    settings = ["resolutions.sizes=[32, 64]", "resolutions.consistency=0.5", "regularisation.label_smoothing=0"]
    recipe = load_recipe("shvit_digits", [*settings, *DEIT[:2], "compute.memory_format=contiguous"])
    model = fill_(build_model(recipe, 10)).eval()
    images, labels = torch.rand(4, 1, 64, 64), torch.arange(4)
    loss = Objective(recipe, 10, model=model)(model, images, labels, 1, 1)
    small = nn.functional.interpolate(images, (32, 32), mode="bicubic", antialias=True)
    features: Any = [model.forward_head(model.forward_features(x), pre_logits=True) for x in (images, small)]  # type: ignore[operator]
    larger = nn.functional.layer_norm(features[0], features[0].shape[-1:]).detach()
    losses = sum(nn.functional.cross_entropy(model(x), labels) for x in (images, small))
    assert torch.allclose(loss, (losses + 0.5 * nn.functional.smooth_l1_loss(features[1], larger)) / 2, rtol=1e-5)
    with pytest.raises(RecipeError, match=r"the largest of resolutions\.sizes must be data\.size"):
        load_recipe("shvit_digits", ["resolutions.sizes=[96, 64]"])


def test_a_model_learns_at_several_sizes(tmp_path: Path) -> None:
    result = train("shvit_digits", [*DEIT, "resolutions.sizes=[48, 32]", "data.size=48"], tmp_path, quiet())
    assert result.epochs[1].loss < result.epochs[0].loss


def test_what_is_first_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 4))
    precision: Any = torch.autocast("cpu", enabled=False)
    assert "loss alone" in first_not_finite(model, torch.rand(2, 4), precision)
    model[1][1].forward = lambda x: x / 0 - x / 0  # type: ignore[method-assign, operator, union-attr, index]
    assert "is '1.1' (Linear)" in first_not_finite(model, torch.rand(2, 4), precision)
    assert "images themselves" in first_not_finite(model, torch.tensor([[float("inf")] * 4]), precision)
    nn.init.constant_(model[0].weight, float("nan"))  # type: ignore[arg-type]
    assert "weights '0.weight'" in first_not_finite(model, torch.rand(2, 4), precision)


# models


def test_models_are_ours_or_timms() -> None:
    small = ["data.size=32", "model.kwargs={}"]
    ours = build_model(load_recipe("shvit_digits", ["model.name=van_b0", *small]), 7)
    theirs = build_model(load_recipe("shvit_digits", ["model.name=timm/resnet18", *small]), 7)
    assert type(ours).__module__.startswith("mixzoo.") and type(theirs).__module__.startswith("timm.")
    for model in (ours, theirs):
        assert model(torch.rand(2, 1, 32, 32)).shape == (2, 7)
        assert model.pretrained_cfg["mean"] == (0.312,)  # type: ignore[index]
    with pytest.raises(UnknownModelError, match="'resnet18'"):
        build_model(load_recipe("shvit_digits", ["model.name=resnet181", *small]), 7)
    with pytest.raises(ModelError, match="the data has 7 classes"):
        build_model(load_recipe("shvit_digits", ["model.name=van_b0", "model.kwargs={num_classes: 8}"]), 7)
    with pytest.raises(MixzooError, match="depth"):
        build_model(load_recipe("shvit_digits", ["model.name=timm/resnet18", "model.kwargs={depth: 1}"]), 7)


def test_a_probe_trains_the_head_and_nothing_else(tmp_path: Path) -> None:
    first = train("shvit_digits", [*TINY, "schedule.epochs=1"], tmp_path / "first", quiet())
    changes = [*TINY, "schedule.epochs=1", "tuning.train=head", f"model.checkpoint={tmp_path / 'first'}", "seed=1"]
    second = train("shvit_digits", changes, tmp_path / "second", quiet())
    before, after = first.model.state_dict(), second.model.state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == ["head.fc.weight", "head.fc.bias"]


def test_a_frozen_model_keeps_its_norms_in_eval_mode() -> None:
    recipe = load_recipe("shvit_digits", [*TINY, "tuning.train=head"])
    model = build_model(recipe, 10)
    freeze_below_head(model)
    set_training_mode(model, recipe)
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.num_features < 32)
    assert model.head.fc.training  # type: ignore[union-attr]


def test_a_teacher_must_know_the_classes(tmp_path: Path) -> None:
    train("shvit_digits", [*TINY, "schedule.epochs=1"], tmp_path, quiet())
    changes = ["distillation.teacher=shvit", f"distillation.checkpoint={tmp_path}"]
    recipe = load_recipe("shvit_digits", [*TINY, *changes, f"distillation.kwargs={TINY[0].partition('=')[2]}"])
    teacher = build_teacher(recipe.distillation, recipe, 10)
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(teacher(images), load_run(tmp_path).model(images))
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(ModelError, match="knows 10 classes, but the data has 12"):
        build_teacher(recipe.distillation, recipe, 12)


def test_progressive_norms_end_when_the_recipe_says() -> None:
    recipe = load_recipe("shvit_digits", ["model.name=deit_t_prepbn", "model.kwargs={}", "schedule.prepbn_steps=77"])
    with pytest.raises(ModelError, match="no progressive norms"):
        build_model(recipe, 10)
    model = build_model(
        load_recipe("shvit_digits", ["model.name=pvt_t_prepbn", "model.kwargs={}", *["schedule.prepbn_steps=77"]]), 10
    )
    counters = [m for n, m in model.named_buffers() if n.endswith(("total_step", "iter"))]
    assert counters and all(int(c) == 77 for c in counters)


# the loop


@pytest.mark.parametrize(
    "change", ["compute.accumulate=4", "data.workers=2", "compute.checkpointing=true"], ids=lambda c: c.split("=")[0]
)
def test_how_a_step_is_computed_does_not_change_it(tmp_path: Path, change: str) -> None:
    settings = [*DEIT, "schedule.epochs=1", "augment.mixup=0.8", "augment.random_erasing=0.5", "optim.lr=1e-3"]
    for name, changes in {"a": [], "b": [change]}.items():
        train("shvit_digits", [*settings, *changes], tmp_path / name, quiet())
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-4)


def test_an_average_of_the_weights_is_the_result(tmp_path: Path) -> None:
    result = train("shvit_digits", [*TINY, "ema.decay=0.5"], tmp_path / "a", quiet())
    plain = train("shvit_digits", TINY, tmp_path / "b", quiet())
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert result.epochs[-1].raw_accuracy == plain.epochs[-1].accuracy and plain.epochs[-1].raw_accuracy is None
    pairs = zip(result.model.parameters(), plain.model.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_lower_precision_trains_and_half_precision_is_refused_on_a_processor(tmp_path: Path) -> None:
    result = train("shvit_digits", [*TINY, "schedule.epochs=1", "compute.precision=bf16"], tmp_path, quiet())
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match=r"'compute\.precision' is 'fp16'"):
            Processes(load_recipe("shvit_digits", ["compute.precision=fp16"]).compute)


def test_norms_are_joined_only_where_there_are_several_processes_with_gpus() -> None:
    processes = Processes(load_recipe("shvit_digits").compute)
    model = nn.Sequential(nn.BatchNorm2d(3))
    assert processes.joined_norms(model) is model
    processes.count, processes.device = 2, torch.device("cuda")
    assert isinstance(processes.joined_norms(model)[0], nn.SyncBatchNorm)  # type: ignore[index]
    processes.device = torch.device("cpu")
    with pytest.raises(RecipeError, match=r"'compute\.sync_bn' needs GPUs"):
        processes.joined_norms(model)


# plans


def test_a_plan_counts_what_would_be_trained() -> None:
    recipe = load_recipe("shvit_digits", [*TINY, "optim.layer_decay=0.8", "compute.accumulate=2"])
    plan = make_plan(recipe)
    total = sum(p.numel() for p in build_model(recipe, 10).parameters())
    assert sum(g.numbers for g in plan.groups) == total and len(plan.groups) > 4
    assert (plan.steps, plan.part, plan.images, plan.note) == (5, 128, 1347, "")
    assert plan.memory_mib > 4 * 4 * total / 2**20 and plan.step_seconds > 0 and plan.read_seconds
    screen = io.StringIO()
    Console(file=screen, width=150).print(show_plan(plan))
    assert all(text in screen.getvalue() for text in ("layer_decay: 0.8", "Parameter groups", "10 in 2 epochs"))


def test_a_plan_without_images_assumes_those_of_imagenet() -> None:
    changes = [*TINY, "data.source=folder", "data.root=nowhere", "data.mean=[0.5]"]
    plan = make_plan(load_recipe("shvit_digits", changes))
    assert plan.images == 1_281_167 and "ImageNet-1k are assumed" in plan.note and plan.read_seconds is None
