"""What a recipe would do here, without doing it: groups of parameters, steps, and what a few of them cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from rich.console import Group, RenderableType
from torch import nn

from ..bench.memory import peak_tensor_memory
from ..zoo.tables import new_table
from ..zoo.timing import torch_threads
from .data import Examples, train_transform
from .images import Data
from .models import build_model, build_teacher
from .parts import Objective, lr_factor, make_optimizer, parameter_groups
from .prepare import check_batch, prepare_model, set_training_mode
from .processes import Processes, UnfitError
from .randomness import borrowed_generators
from .schema import Recipe
from .sources import DataError, load_data

ASSUMED = (1_281_167, 1000)  # images and classes of ImageNet-1k, where the images are not at hand
SMALL = 96  # pixels: up to here overheads count, and steps of more images tell more
TIMED_STEPS = 3
_MIB = 2**20


@dataclass(frozen=True)
class GroupFacts:
    """One group of parameters: how many tensors and numbers, its weight decay and the factor of its learning rate."""

    tensors: int
    numbers: int
    weight_decay: float
    lr_scale: float
    first: str


@dataclass(frozen=True)
class Plan:
    """A run that was not made.

    Attributes:
        recipe: as it would run.
        groups: of parameters.
        images: in the training split; ``note`` says where that is assumed.
        steps: of an epoch.
        processes, device: what would compute.
        lr: at the peak.
        step_seconds: of one step, from steps of fewer images.
        memory_mib: that tensors take at the peak of a step, from steps of fewer images.
        read_seconds: to read and augment one image in one process; None where there are none.
        unfit: why this machine cannot run the recipe as it is, so that steps were measured without that.
    """

    recipe: Recipe
    groups: tuple[GroupFacts, ...]
    images: int
    classes: int
    note: str
    steps: int
    processes: int
    device: str
    lr: float
    step_seconds: float
    memory_mib: float
    read_seconds: float | None
    unfit: str = ""

    @property
    def part(self) -> int:
        """Images that a device computes at a time."""
        return self.recipe.data.batch // (self.processes * self.recipe.compute.accumulate)

    @property
    def hours(self) -> float:
        return self.step_seconds * self.steps * self.recipe.schedule.total_epochs / 3600


def make_plan(recipe: Recipe) -> Plan:
    """Build the model, measure a few steps on random images, and count.

    What this machine cannot compute with is left out of the steps that are measured: the run may be for another one.

    Raises:
        RecipeError: the batch cannot be made or shared.
        MixzooError: the model cannot be built.
    """
    processes, unfit = _processes(recipe)
    data, note = _data(recipe)
    images, classes = (len(data.train), len(data.classes)) if data else ASSUMED
    check_batch(recipe, images, processes.count)
    with borrowed_generators(), torch_threads(recipe.compute.threads or torch.get_num_threads()):
        torch.manual_seed(recipe.seed)
        model = build_model(recipe, classes, start=False)
        compute = recipe.model_copy(update={"compute": processes.compute})
        prepare_model(model, compute, processes.device)
        step = _Step(recipe, model, classes, processes)
        part = recipe.data.batch // (processes.count * recipe.compute.accumulate)
        return Plan(
            recipe,
            tuple(_facts(group, _names(step.model)) for group in parameter_groups(step.model, recipe)),
            images,
            classes,
            note,
            images // recipe.data.batch,
            processes.count,
            str(processes.device),
            recipe.optim.lr * lr_factor(recipe),
            step.seconds(part) * recipe.compute.accumulate,
            step.memory(part) / _MIB,
            _reading(recipe, data),
            unfit,
        )


def _processes(recipe: Recipe) -> tuple[Processes, str]:
    """What computes here, and why that is not all that the recipe wants; empty where it is."""
    compute = recipe.compute
    reasons: list[str] = []
    while True:
        try:
            return Processes(compute), " ".join(reasons)
        except UnfitError as error:
            reasons.append(str(error))
            compute = error.instead


def _data(recipe: Recipe) -> tuple[Data | None, str]:
    try:
        return load_data(recipe.data), ""
    except DataError as error:
        return None, f"The images are not at hand: those of ImageNet-1k are assumed. {error}"


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _facts(group: dict[str, Any], names: dict[int, str]) -> GroupFacts:
    parameters = group["params"]
    numbers = sum(p.numel() for p in parameters)
    return GroupFacts(
        len(parameters), numbers, group["weight_decay"], group.get("lr_scale", 1.0), names[id(parameters[0])]
    )


class _Step:
    """Training steps on random images, of any number of them."""

    def __init__(self, recipe: Recipe, model: nn.Module, classes: int, processes: Processes) -> None:
        self.recipe, self.classes, self.processes = recipe, classes, processes
        teacher = build_teacher(recipe.distillation, recipe, classes) if recipe.distillation.teacher else None
        teacher = teacher.to(processes.device) if teacher is not None else None
        self.objective = Objective(recipe, classes, teacher, model)
        self.model = self.objective.called(model)
        self.optimizer = make_optimizer(self.model, recipe)
        set_training_mode(model, recipe)

    def __call__(self, count: int) -> None:
        size, device = self.recipe.data.size, self.processes.device
        images = torch.randn(count, len(self.recipe.data.mean), size, size, device=device)
        labels = torch.arange(count, device=device) % self.classes
        self.optimizer.zero_grad()
        with self.processes.autocast():
            loss = self.objective(self.model, images, labels, 1, 0)
        loss.backward()
        self.optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, part: int) -> float:
        """Of a step of ``part`` images, in proportion from one of at most 16 on a processor."""
        count = part if self.processes.device.type == "cuda" else min(part, 16)
        self(count)
        start = time.perf_counter()
        for _ in range(TIMED_STEPS):
            self(count)
        return (time.perf_counter() - start) / TIMED_STEPS * part / count

    def memory(self, part: int) -> float:
        """Bytes at the peak of a step of ``part`` images, with weights; on a processor from two smaller steps."""
        if self.processes.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self(part)
            return float(torch.cuda.max_memory_allocated())
        count = 16 if self.recipe.data.size <= SMALL else 4
        few, more = (peak_tensor_memory(lambda n=n: self(n)) for n in (count, 2 * count))  # type: ignore[misc]
        states = (t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor))
        weights = [*self.model.parameters(), *self.model.buffers()] * (2 if self.recipe.ema.decay else 1)
        gradients = [p for p in self.model.parameters() if p.requires_grad]
        fixed = sum(t.numel() * t.element_size() for t in (*weights, *gradients, *states))
        return fixed + few + (more - few) / count * (part - count)


def _reading(recipe: Recipe, data: Data | None) -> float | None:
    """Seconds that one training image takes in one process."""
    if data is None:
        return None
    examples = Examples(data.train, train_transform(recipe.data, recipe.augment), recipe.data, recipe.seed)
    places = [(index, 1, index) for index in range(min(16, len(data.train)))]
    start = time.perf_counter()
    examples.__getitems__(places)
    return (time.perf_counter() - start) / len(places)


def show_plan(plan: Plan) -> RenderableType:
    """The plan for a terminal."""
    recipe = plan.recipe
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)
    return Group(text, _table(plan), *_lines(plan))


def _table(plan: Plan) -> RenderableType:
    table = new_table((), ("tensors", "parameters", "weight decay", "rate x"), ("first of them",), "Parameter groups")
    for group in plan.groups:
        cells = (group.tensors, group.numbers, f"{group.weight_decay:g}", f"{group.lr_scale:.3g}", group.first)
        table.add_row(*map(str, cells))
    return table


def _widths(recipe: Recipe) -> list[str]:
    widths = recipe.elastic.widths
    told = ", ".join(f"{width:g}" for width in widths)
    return [f"Widths   one of {told} in each step; memory and time are those of the full one"] if widths else []


def _lines(plan: Plan) -> list[str]:
    recipe, epochs = plan.recipe, plan.recipe.schedule.total_epochs
    accumulate = recipe.compute.accumulate
    rate = recipe.data.batch / plan.step_seconds
    lines = [
        plan.note,
        f"This machine cannot run it as it is; memory and time are without that. {plan.unfit}" if plan.unfit else "",
        f"Data     {plan.images:,} images of {plan.classes} classes; {plan.steps:,} steps an epoch, "
        f"{plan.steps * epochs:,} in {epochs} epochs",
        f"Devices  {plan.processes} x {plan.device}; each computes {plan.part} images of a batch of {recipe.data.batch}"
        + (f", {accumulate} times" if accumulate > 1 else ""),
        f"Rate     {plan.lr:.3g} at the peak",
        *_widths(recipe),
        f"Memory   about {plan.memory_mib:,.0f} MiB of tensors on each device"
        + (", were weights and their states not split" if recipe.compute.sharding else ""),
        f"Time     about {plan.step_seconds:.3g} s a step ({rate:,.0f} images/s), {plan.hours:,.1f} hours in all, "
        "without tests",
    ]
    if plan.read_seconds is not None:
        workers = max(1, recipe.data.workers) * plan.processes
        lines.append(
            f"Reading  {1e3 * plan.read_seconds:.1f} ms an image in one process: {workers / plan.read_seconds:,.0f} "
            f"images/s with data.workers={recipe.data.workers}"
        )
    return [line for line in lines if line]
