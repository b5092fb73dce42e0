"""`mixzoo extract`: a model of fewer hidden channels out of a run that trained nested widths (arXiv:2310.07707).

What comes out is the run of an ordinary model: weights and a record that everything else reads. At one of the trained
widths it computes what the large model computes at that width, and how good it is was measured in training. Mixtures of
trained widths over stages or blocks (Mix'n'Match in the paper) were never trained as such, and are good all the same.
Batch norms have no statistics for a mixture: they are taken from training images.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..bench.macs import count_macs
from ..blocks.elastic import use_statistics
from ..blocks.nested import Widths, narrow_model, nested_blocks, spread
from ..zoo.errors import MixzooError
from ..zoo.trained import RECORD, find_run
from .checkpoint import Trained, load_run, load_statistics, save_run
from .data import Examples, Finish, epoch_order, eval_transform
from .models import WEIGHTS
from .schema import DataRecipe, ElasticRecipe, Recipe
from .sources import open_split

SEEN = 2048  # training images that statistics of a mixture are taken from
_KEPT = ("classes", "in_chans", "train_images", "test_images")


class ExtractError(MixzooError, ValueError):
    """A model that cannot be cut out of a run."""


@dataclass(frozen=True)
class Extracted:
    """A model that was cut out.

    Attributes:
        model: in eval mode.
        folder: where it is.
        ffn_width: as `create_model` takes it: one for all, one per stage, or one per block.
        params: learned numbers.
        macs: multiply-accumulates of one image at the recipe's size.
        bytes: of the file of weights.
        accuracy: share of the test images that are right, where it was measured in training.
    """

    model: nn.Module
    folder: Path
    ffn_width: float | tuple[float, ...]
    params: int
    macs: int
    bytes: int
    accuracy: float | None

    def record(self) -> dict[str, Any]:
        """The figures, for JSON."""
        facts = {name: getattr(self, name) for name in ("ffn_width", "params", "macs", "bytes", "accuracy")}
        return {**facts, "folder": str(self.folder)}

    def sentence(self) -> str:
        """The figures in words."""
        told = f"`mixzoo eval {self.folder}` measures its accuracy"
        if self.accuracy is not None:
            told = f"{self.accuracy:.2%} of the test images were right after training"
        return (
            f"{self.params / 1e6:.3f} M parameters, {self.macs / 1e9:.4f} G multiply-accumulates, "
            f"{self.bytes / 1e6:.2f} MB; {told}; the model is in {self.folder}"
        )


def extract(run: str | Path, width: Widths, out: str | Path, root: str | Path | None = None) -> Extracted:
    """Cut a model out of the run in ``run`` and leave it in ``out``, as a run is left.

    Args:
        run: a finished run whose recipe has ``elastic.widths``.
        width: trained widths: one for all blocks, one per stage or one per block. Of timm's models every FFN counts as
            a block, and all of them as one stage.
        out: the folder, made if it is not there.
        root: folder of the training images, where it is not that of the recipe. They are read for batch norms only.

    Raises:
        ExtractError: a run without widths, one that was not trained, or a folder that holds another run.
        CheckpointError: ``run`` holds no whole run.
        DataError: images are needed, and cannot be had.
    """
    run, out = find_run(run), Path(out)
    trained = load_run(run)
    widths = _checked(trained, width, run)
    _check_out(out, run)
    model = narrow_model(copy.deepcopy(trained.model), widths)
    _set_statistics(model, trained, widths, run, None if root is None else Path(root))
    kept = widths[0] if len(set(widths)) == 1 else widths
    recipe, accuracy = _recipe(trained.recipe, kept), _accuracy(trained.record, kept)
    facts = {
        **{name: trained.record[name] for name in _KEPT},
        "test_accuracy": accuracy,
        "extracted": {"from": trained.record["weights"]["sha256"], "ffn_width": kept},
    }
    save_run(out, model.state_dict(), recipe, facts)
    return _measured(load_run(out), out, kept, accuracy)


def _checked(trained: Trained, width: Widths, run: Path) -> tuple[float, ...]:
    """The widths as they were given, each of them trained, and as many as the model takes."""
    known = trained.recipe.elastic.widths
    if not known:
        raise ExtractError(
            f"The run in {run} trained one width: train with elastic.widths, such as elastic.widths=[0.25,0.5,1.0]."
        )
    widths = tuple(float(w) for w in width) if isinstance(width, Sequence) else (float(width),)
    if unknown := [w for w in widths if w not in known]:
        raise ExtractError(f"The width {unknown[0]:g} was not trained: choose of {', '.join(f'{w:g}' for w in known)}.")
    try:
        spread(widths, [len(stage) for stage in nested_blocks(trained.model)])
    except ValueError as error:
        raise ExtractError(f"These widths do not fit {trained.recipe.model.name} ({error}).") from error
    return widths


def _check_out(out: Path, run: Path) -> None:
    """Raise ExtractError where something else than an earlier extraction is in ``out``."""
    try:
        free = not (out / RECORD).exists() or "extracted" in json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        free = False
    if not free or out.resolve() == run.resolve():
        raise ExtractError(f"{out} holds a run that was trained: give another --out.")


def _recipe(recipe: Recipe, width: float | tuple[float, ...]) -> Recipe:
    """The recipe of the model that was cut out."""
    kwargs = {**recipe.model.kwargs, "ffn_width": list(width) if isinstance(width, tuple) else width}
    model = recipe.model.model_copy(update={"kwargs": kwargs})
    return recipe.model_copy(update={"model": model, "elastic": ElasticRecipe()})


def _accuracy(record: dict[str, Any], width: float | tuple[float, ...]) -> float | None:
    """What was measured after the last epoch of training."""
    found = {row["width"]: row["accuracy"] for row in record.get("nested", ())}
    return None if isinstance(width, tuple) else found.get(width)


def _measured(cut: Trained, folder: Path, width: float | tuple[float, ...], accuracy: float | None) -> Extracted:
    size, in_chans = cut.recipe.data.size, cut.record["in_chans"]
    return Extracted(
        cut.model,
        folder,
        width,
        sum(p.numel() for p in cut.model.parameters()),
        count_macs(cut.model, 1, in_chans, size, size),
        (folder / WEIGHTS).stat().st_size,
        accuracy,
    )


# statistics of batch norms


def _set_statistics(
    model: nn.Module, trained: Trained, widths: tuple[float, ...], run: Path, root: Path | None
) -> None:
    narrow = load_statistics(run, trained.record)
    if not narrow or set(widths) == {1.0}:
        return
    if len(set(widths)) == 1:
        use_statistics(model, narrow, trained.recipe.elastic.widths.index(widths[0]))
        return
    data = trained.recipe.data
    data = data if root is None else data.model_copy(update={"root": str(root)})
    estimate_statistics(model, data, trained.recipe.seed)


@torch.no_grad()
def estimate_statistics(model: nn.Module, recipe: DataRecipe, seed: int) -> None:
    """Give the batch norms of ``model`` the statistics of training images, as they are prepared for tests.

    Raises:
        DataError: the images cannot be had.
    """
    images, _ = open_split(recipe, recipe.train)
    norms = [m for m in model.eval().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average over all batches
        norm.train()
    examples, finish = Examples(images, eval_transform(recipe), recipe, None), Finish(recipe, torch.device("cpu"))
    order = epoch_order(len(images), seed, 0)[:SEEN].tolist()
    for start in range(0, len(order), recipe.batch):
        batch = examples.__getitems__([(number, 0, number) for number in order[start : start + recipe.batch]])
        if len(batch.places) > 1:
            model(finish(batch)[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
