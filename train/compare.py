"""Token mixers side by side: the same shell, data and settings, trained, deployed and measured one after the other.

With several seeds each mixer is trained once for each, and its accuracy is their mean with the standard deviation
beside it: what two mixers differ by says nothing where it is within that. Every run is kept in a folder of its own. A
run that is there already, finished and of the same recipe, is taken as it is, so that a comparison that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ..bench.macs import count_macs
from ..bench.memory import peak_tensor_memory
from ..bench.report import describe
from ..blocks.deploy import deploy
from ..blocks.mixers import MIXERS
from ..zoo.errors import CheckpointError, MixzooError, UnknownNameError
from ..zoo.extras import require
from ..zoo.files import atomic_write
from ..zoo.machine import describe_machine
from ..zoo.registry import FAMILIES, get_variant
from ..zoo.tables import new_table, number
from ..zoo.timing import measure, torch_threads
from ..zoo.trained import RECORD
from .checkpoint import Trained, load_run
from .engine import train
from .recipe import load_recipe, override
from .schema import Recipe
from .snapshots import saved_steps

RECIPE = "mixers_digits"
LINES, PICTURE = "compare.jsonl", "compare.png"
Say = Callable[[str], object]


@dataclass(frozen=True)
class MixerResult:
    """One mixer in the shell. Figures are None where ``reason`` says why there are none.

    Attributes:
        shell, mixer: names.
        accuracy: share of the test images that are right after training, mean over the seeds.
        spread: sample standard deviation of that over the seeds; None with one seed.
        accuracies: that of each seed, in their order.
        loss: mean training loss of the last epoch, mean over the seeds.
        params_m: learned parameters, 1e6.
        macs_g: multiply-accumulates of one image at the recipe's size, 1e9.
        latency_ms: of the deploy form, one image a call, median of interleaved turns.
        peak_mb: MiB of tensors that such a call holds at once beside its weights.
        train_seconds: time of the training, mean over the seeds.
        reason: why the mixer has no figures.
    """

    shell: str
    mixer: str
    accuracy: float | None = None
    spread: float | None = None
    accuracies: tuple[float, ...] = ()
    loss: float | None = None
    params_m: float | None = None
    macs_g: float | None = None
    latency_ms: float | None = None
    peak_mb: float | None = None
    train_seconds: float | None = None
    reason: str | None = None


def compare(
    shell: str | None = None,
    mixers: Sequence[str] = ("all",),
    out: str | Path = "compare",
    overrides: Iterable[str] = (),
    console: Console | None = None,
    recipe: str | Path = RECIPE,
    seeds: Sequence[int] | None = None,
) -> list[MixerResult]:
    """Train ``shell`` with each of ``mixers`` under identical settings, and measure what came out.

    Leaves in ``out``: a folder with each run (the mixer's name, and the seed where there are several),
    ``compare.jsonl`` and ``compare.png``.

    Args:
        shell: a model or a family of the zoo; the recipe's own model if None.
        mixers: names of mixers, or "all".
        out: the folder.
        overrides: ``key=value`` changes of the recipe for all of them, such as "schedule.epochs=20".
        console: where progress goes; standard error if None.
        recipe: name or path of the settings.
        seeds: of the runs of each mixer; the recipe's own if None.

    Raises:
        UnknownModelError, UnknownNameError: no such model, mixer or recipe.
        RecipeError: the recipe cannot be read, or an override is wrong.
        MissingExtraError: a package is not installed.
    """
    require("matplotlib", extra="train")
    names, folder = _expand(mixers), Path(out)
    console = console or Console(stderr=True)
    settings = override(load_recipe(recipe), [*_shell(shell), *overrides])
    shell, chosen = settings.model.name, tuple(dict.fromkeys(seeds or (settings.seed,)))
    results: dict[str, MixerResult] = {}
    trained: dict[str, Trained] = {}
    for index, name in enumerate(names, 1):
        console.print(f"[bold]{name}[/] in {shell} ({index} of {len(names)})")
        results[name] = MixerResult(shell, name)
        try:
            runs = [
                _trained(override(settings, [f"model.kwargs.mixer={name}", f"seed={seed}"]), path, console)
                for seed, path in _folders(folder, name, chosen)
            ]
            results[name], trained[name] = _facts(results[name], runs), runs[0]
        except MixzooError as error:
            results[name] = replace(results[name], reason=str(error))
            console.print(f"  left out: {error}", markup=False)
    for name, (latency, peak) in _speeds(trained, settings).items():
        results[name] = replace(results[name], latency_ms=latency, peak_mb=peak)
    found = list(results.values())
    atomic_write(folder / LINES, json_lines(found, describe_machine()))
    if any(result.latency_ms for result in found):
        atomic_write(folder / PICTURE, _draw(found))
    return found


def _shell(name: str | None) -> list[str]:
    """The override that names the model; a family stands for itself."""
    if name is None:
        return []
    return [f"model.name={name if name in FAMILIES else get_variant(name).name}"]


def _folders(folder: Path, mixer: str, seeds: Sequence[int]) -> list[tuple[int, Path]]:
    """(seed, where its run is kept) of one mixer."""
    return [(seed, folder / (mixer if len(seeds) == 1 else f"{mixer}_seed{seed}")) for seed in seeds]


def _expand(mixers: Sequence[str]) -> list[str]:
    if "all" in mixers:
        return sorted(MIXERS)
    for name in mixers:
        if name not in MIXERS:
            raise UnknownNameError("mixer", name, MIXERS, "`mixzoo list --mixers` shows every mixer; all means all.")
    return list(dict.fromkeys(mixers))


def _trained(recipe: Recipe, folder: Path, console: Console) -> Trained:
    """The finished run of ``recipe`` in ``folder``, from an earlier comparison or now."""
    if (folder / RECORD).is_file():
        try:
            if (run := load_run(folder)).recipe == recipe:
                return run
        except CheckpointError as error:
            console.print(f"  trained again: {error}", markup=False)
    train(recipe, out=folder, console=console, resume=bool(saved_steps(folder)))
    return load_run(folder)


def _facts(result: MixerResult, runs: Sequence[Trained]) -> MixerResult:
    first, accuracies = runs[0], tuple(run.record["test_accuracy"] for run in runs)
    size, in_chans = first.recipe.data.size, first.record["in_chans"]
    return replace(
        result,
        accuracy=statistics.mean(accuracies),
        spread=statistics.stdev(accuracies) if len(runs) > 1 else None,
        accuracies=accuracies,
        loss=statistics.mean(run.record["epochs"][-1]["loss"] for run in runs),
        params_m=round(sum(p.numel() for p in first.model.parameters()) / 1e6, 3),
        macs_g=round(count_macs(first.model, 1, in_chans, size, size) / 1e9, 4),
        train_seconds=round(statistics.mean(run.record["seconds"] for run in runs), 1),
    )


def _speeds(trained: dict[str, Trained], recipe: Recipe) -> dict[str, tuple[float, float]]:
    """mixer -> (median ms, peak MiB) of the deploy forms, all of them interleaved."""
    runs = {
        name: _inference(deploy(run.model), run.record["in_chans"], recipe.data.size) for name, run in trained.items()
    }
    with torch_threads(recipe.compute.threads or torch.get_num_threads()):
        timings = measure(runs, rounds=20) if runs else {}
        return {name: (timing.median, peak_tensor_memory(runs[name]) / 2**20) for name, timing in timings.items()}


def _inference(model: nn.Module, in_chans: int, size: int) -> Callable[[], torch.Tensor]:
    x = torch.randn(1, in_chans, size, size, generator=torch.Generator().manual_seed(0))

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return model(x)

    return run


def json_lines(results: Iterable[MixerResult], machine: dict[str, Any]) -> str:
    """One JSON object a line, every mixer with the machine it was measured on."""
    return "".join(json.dumps({"record": "mixer", **asdict(r), "machine": machine}) + "\n" for r in results)


def table(results: Sequence[MixerResult]) -> Table:
    """Results, best accuracy first; its spread over the seeds where there are several."""
    spread = any(r.spread is not None for r in results)
    accuracy = ("accuracy %", "±") if spread else ("accuracy %",)
    numbers = (*accuracy, "loss", "params M", "MACs G", "deploy ms", "peak MiB", "train s")
    caption = "\n".join(describe(describe_machine()))
    grid = new_table(("mixer",), numbers, ("why not",), title=f"{results[0].shell}, equal settings", caption=caption)
    for r in sorted(results, key=lambda r: -(r.accuracy or 0.0)):
        shares = (r.accuracy, r.spread) if spread else (r.accuracy,)
        grid.add_row(
            r.mixer,
            *(number(None if share is None else 100 * share, ".2f") for share in shares),
            number(r.loss, ".3f"),
            number(r.params_m, ".2f"),
            number(r.macs_g, ".4f"),
            number(r.latency_ms, ".2f"),
            number(r.peak_mb, ".2f"),
            number(r.train_seconds, ".0f"),
            r.reason or "",
        )
    return grid


def _draw(results: Sequence[MixerResult]) -> bytes:
    """Accuracy against latency, a point for each mixer whose area grows with its parameters; PNG."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for index, r in enumerate(results):
        if r.latency_ms is not None and r.accuracy is not None and r.params_m is not None:
            colour = f"C{index}"
            axes.scatter([r.latency_ms], [100 * r.accuracy], s=10 * r.params_m, alpha=0.7, color=colour)
            if r.spread is not None:
                axes.errorbar([r.latency_ms], [100 * r.accuracy], [100 * r.spread], ecolor=colour, elinewidth=1)
            axes.annotate(r.mixer, (r.latency_ms, 100 * r.accuracy), (4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("deploy form, ms an image")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"{results[0].shell} with each token mixer")
    axes.grid(True, linewidth=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
