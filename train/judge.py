"""`mixzoo eval`: a model or a run on labelled images of any source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import resolve_model_data_config
from torch import nn

from ..zoo.loading import load_model
from ..zoo.pictures import folder_name
from ..zoo.trained import RECORD, find_run
from .checkpoint import load_run
from .data import Examples, Finish, eval_batches, eval_transform, make_loader
from .evaluate import Scores, evaluate
from .images import Images, RenumberedImages
from .models import create as create_model
from .models import is_ours
from .processes import Processes
from .recipe import RecipeError
from .schema import READERS, TORCHVISION, ComputeRecipe, DataRecipe
from .sources import DataError, check_labels, open_split


@dataclass(frozen=True)
class Wanted:
    """What to judge with.

    Attributes:
        data: a source as in recipes, or a folder with a folder of images for each class; of a run, its own if "".
        root: folder of the source.
        split: of the source; its own if "".
        size: pixels per side; the model's own if 0.
        batch: images a call.
        workers: processes that read images.
    """

    data: str = ""
    root: Path | None = None
    split: str = ""
    size: int = 0
    batch: int = 64
    workers: int = 0


def judge(model: str, wanted: Wanted, checkpoint: Path | None = None, pretrained: bool = False) -> Scores:
    """Scores of a model by its name with weights, or of the run in a folder.

    Raises:
        DataError: the images cannot be had, or have other classes than the model.
        NoWeightsError: a name without weights.
    """
    run = next((run for p in (model, checkpoint) if p and ((run := find_run(p)) / RECORD).is_file()), None)
    if run is not None:
        trained = load_run(run)
        return _judge(trained.model, _of_run(trained.recipe.data, wanted), list(trained.record["classes"]))
    if not wanted.data:
        raise RecipeError("Say what to judge with: --data with a folder or a source, such as --data images/val.")
    built = _load(model, checkpoint, pretrained)
    return _judge(built, _of_model(built, wanted), None)


def _load(name: str, checkpoint: Path | None, pretrained: bool) -> nn.Module:
    if is_ours(name) or not (checkpoint or pretrained):
        return load_model(name, checkpoint, pretrained)
    return create_model(name, {}, pretrained, str(checkpoint) if checkpoint else None).eval()


def _of_run(data: DataRecipe, wanted: Wanted) -> DataRecipe:
    changes = {"batch": wanted.batch, "workers": wanted.workers, **_source(wanted)}
    if wanted.size:
        changes["size"] = wanted.size
    return DataRecipe.model_validate({**data.model_dump(), **changes})


def _of_model(model: nn.Module, wanted: Wanted) -> DataRecipe:
    """Images prepared as the model's weights expect."""
    config: Any = resolve_model_data_config(model)
    known = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    own = {key: config[key] for key in known if config.get(key) is not None}
    size = wanted.size or config["input_size"][-1]
    rest = {"size": size, "batch": wanted.batch, "workers": wanted.workers}
    return DataRecipe.model_validate({**own, **rest, **_source(wanted)})


def _source(wanted: Wanted) -> dict[str, Any]:
    """What `wanted` says of where images come from."""
    found: dict[str, Any] = {}
    if wanted.data in ("digits", "folder", *TORCHVISION) or wanted.data.startswith(READERS):
        found["source"] = wanted.data
    elif wanted.data:
        folder = Path(wanted.data)
        found |= {"source": "folder", "root": str(folder.parent), "test": folder.name}
    if wanted.root is not None:
        found["root"] = str(wanted.root)
    return {**found, "test": wanted.split} if wanted.split else found


def _judge(model: nn.Module, data: DataRecipe, classes: list[str] | None) -> Scores:
    images, names = open_split(data, data.test)
    count: Any = len(classes) if classes else model.num_classes
    if names:
        images = _in_order(images, names, classes, count)
    check_labels(images, range(count), f"{data.source} ({data.test})")  # type: ignore[arg-type]
    processes = Processes(ComputeRecipe())
    places = eval_batches(len(images), data.batch, processes.rank, processes.count)
    examples = Examples(images, eval_transform(data), data, None)
    loader = make_loader(examples, places, data.workers, processes.device.type == "cuda")
    return evaluate(model.to(processes.device).eval(), loader, Finish(data, processes.device), processes)


def _in_order(images: Images, names: Sequence[str], classes: list[str] | None, count: int) -> Images:
    """The images with the model's numbers of their classes, which may be in another order, as folders are."""
    own, found = ([folder_name(name) for name in group] for group in (classes or names, names))
    if len(names) != count or set(found) != set(own):
        what = "of other names" if len(names) == count else f"{len(names)}"
        raise DataError(f"The model has {count} classes, but the images have {what}: give images of the same classes.")
    return images if found == own else RenumberedImages(images, [own.index(name) for name in found])
