"""From a model or its name to what every target starts from: the original, its deploy form, its weights' source."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks.deploy import deploy_form, fold
from ..zoo.errors import CheckpointError, UnknownModelError
from .errors import ExportError
from .images import normalized, synthetic_image
from .numbers import outputs_of, relative_error
from .shapes import Size
from .steady import fill_steadily_
from .swaps import settle, swapped

TIMM_PREFIX = "timm:"
FILLED = "filled"


@dataclass(frozen=True)
class Prepared:
    """A model that is ready for any target.

    Attributes:
        name: of the model; files are named after it.
        original: the model as trained, in evaluation mode and float32: what every file is compared with.
        inference: its deploy form, which is written.
        in_chans: image channels.
        native: (height, width) that the model was made for, in pixels.
        weights: where its weights are from: 'checkpoint FILE sha256 ...', 'pretrained URL', 'filled' (with what else
            was done, see `fill_steadily_`) or 'as given'.
        mean, std: per channel, of the normalisation that the model was made for.
        preprocess: whether that normalisation is in the graph; the input is then RGB in [0, 1].
        config: what the model says of its weights and of how images are prepared: timm's ``pretrained_cfg``.
        swapped: where activations or norms were swapped, so that the original is not what was trained: how many by
            "old=new", and the relative difference that this made to the outputs. None where none were.
    """

    name: str
    original: nn.Module
    inference: nn.Module
    in_chans: int
    native: Size
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocess: bool
    config: Mapping[str, Any] = field(default_factory=dict)
    swapped: dict[str, Any] | None = None

    @property
    def num_parameters(self) -> int:
        """Learned parameters of the original."""
        return sum(p.numel() for p in self.original.parameters())

    @property
    def form(self) -> str:
        """The deploy form that is written."""
        return deploy_form(self.inference) or "as trained"


class Normalized(nn.Module):
    """``model((x - mean) / std)`` for RGB images in [0, 1], (B, C, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.model((x - self.mean) / self.std)


def prepare(
    model: nn.Module | str,
    name: str | None = None,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    preprocess: bool = False,
    model_options: Mapping[str, Any] | None = None,
    swap: Mapping[str, str] | str | None = None,
) -> Prepared:
    """Everything the targets need to know of ``model``; see `mixzoo.export.export` for the arguments.

    Raises:
        UnknownModelError: no model has that name.
        CheckpointError: weights that cannot be had or do not fit.
        ExportError: arguments that contradict one another, or a model whose sizes are not known.
    """
    source, weights = _with_weights(model, checkpoint, pretrained, dict(model_options or {}))
    cfg = dict(getattr(source, "pretrained_cfg", None) or {})
    channels, height, width = input_size(source, cfg)
    mean, std = _statistics(cfg, channels)
    original = source.eval().float().requires_grad_(False)
    if weights == FILLED:
        images = [normalized(synthetic_image(channels, (height, width), i), mean, std) for i in range(2)]
        done = fill_steadily_(original, images)
        weights += f", {done}" if done else ""
    own = own_name(model) if isinstance(model, str) else _name(source, cfg)
    changed = None
    if swap:
        images = [normalized(synthetic_image(channels, (height, width), i), mean, std) for i in range(2)]
        original, changed = _swapped(original, swap, images)
        own = own_name(own, changed=True)
    inference = fold(original)
    return Prepared(
        name=name or own,
        original=Normalized(original, mean, std).eval() if preprocess else original,
        inference=_marked(Normalized(inference, mean, std).eval(), inference) if preprocess else inference,
        in_chans=channels,
        native=(height, width),
        weights=weights,
        mean=mean,
        std=std,
        preprocess=preprocess,
        config=cfg,
        swapped=changed,
    )


def _swapped(
    trained: nn.Module, swap: Mapping[str, str] | str, images: Sequence[Tensor]
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with its activations or norms swapped, and what that did."""
    model, counts = swapped(trained, swap)
    settle(model, trained, images)
    outputs = [(outputs_of(model, image), outputs_of(trained, image)) for image in images]
    difference = max(relative_error(new, old) for new, old in outputs)
    return model.requires_grad_(False), {"changes": counts, "difference": difference}


def _marked(wrapper: nn.Module, inner: nn.Module) -> nn.Module:
    wrapper.deploy_form = deploy_form(inner)  # type: ignore[assignment]
    return wrapper


# weights


def _with_weights(
    model: nn.Module | str, checkpoint: str | Path | None, pretrained: bool, options: dict[str, Any]
) -> tuple[nn.Module, str]:
    """A private copy of the model with its weights, and what they are; those to be filled are not filled yet."""
    if checkpoint and pretrained:
        raise ExportError("checkpoint and pretrained were both given: leave one out.")
    if isinstance(model, nn.Module):
        if pretrained or options:
            raise ExportError("pretrained and model options go with a name: build the model with them instead.")
        module = copy.deepcopy(model)
        return (module, "as given") if checkpoint is None else _load(module, checkpoint)
    if checkpoint and not model.startswith(TIMM_PREFIX) and _in_zoo(model):
        from ..zoo.registry import create_model

        return create_model(model, checkpoint_path=checkpoint, **options), _checkpoint_label(checkpoint)
    module = build(model, pretrained, options)
    if checkpoint:
        return _load(module, checkpoint)
    if pretrained:
        return module, f"pretrained {_origin(module)}"
    return module, FILLED


def own_name(model: str, changed: bool = False) -> str:
    """What files of a model are named after, by its name; ``changed`` by a swap."""
    return model.removeprefix(TIMM_PREFIX) + ("_swapped" if changed else "")


def known(name: str) -> str:
    """``name``, if the zoo or timm has a model of that name.

    Raises:
        UnknownModelError: neither has it.
    """
    import timm

    if (name.startswith(TIMM_PREFIX) or not _in_zoo(name)) and not timm.is_model(name.removeprefix(TIMM_PREFIX)):
        from ..zoo.registry import VARIANTS

        raise UnknownModelError(name, dict.fromkeys([*VARIANTS, *timm.list_models()]))
    return name


def build(name: str, pretrained: bool = False, options: Mapping[str, Any] | None = None) -> nn.Module:
    """The zoo's model of that name, or else timm's; ``timm:NAME`` is always timm's.

    Raises:
        UnknownModelError: neither has it.
    """
    import timm

    options = dict(options or {})
    theirs = known(name).removeprefix(TIMM_PREFIX)
    if theirs == name and _in_zoo(name):
        from ..zoo.registry import create_model

        return create_model(name, pretrained=pretrained, **options)
    return timm.create_model(theirs, pretrained=pretrained, **options)


def _in_zoo(name: str) -> bool:
    from ..zoo.registry import FAMILIES, get_variant

    if name in FAMILIES:
        return True
    try:
        get_variant(name)
    except UnknownModelError:
        return False
    return True


def _load(module: nn.Module, checkpoint: str | Path) -> tuple[nn.Module, str]:
    from ..zoo.weights import load_checkpoint_file

    tensors = load_checkpoint_file(checkpoint)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint} does not fit {type(module).__name__}: {error}") from error
    return module, _checkpoint_label(checkpoint)


def _checkpoint_label(path: str | Path) -> str:
    return f"checkpoint {Path(path).name} sha256 {sha256(Path(path))}"


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; of a folder, that of the lines "digest  path" of its files in order of paths.

    Paths are relative, with slashes, in the order of their bytes: `LC_ALL=C sort -k2` puts sha256sum's lines so.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        files = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file())
        digest.update("".join(f"{sha256(file)}  {name}\n" for name, file in files).encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of every file in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _origin(module: nn.Module) -> str:
    cfg: Mapping[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    hub = cfg.get("hf_hub_id")
    return str(cfg.get("url") or (f"https://huggingface.co/{hub}" if hub else "from timm"))


# what a model says of itself


def _name(module: nn.Module, cfg: Mapping[str, Any]) -> str:
    return str(cfg.get("architecture") or type(module).__name__.lower())


def input_size(module: nn.Module, cfg: Mapping[str, Any]) -> tuple[int, int, int]:
    """(channels, height, width); the model's own channels count more than those of its weights."""
    channels, height, width = cfg.get("input_size") or (3, 224, 224)
    size = getattr(module, "img_size", None)
    if isinstance(size, tuple | list) and len(size) == 2:
        height, width = size
    return int(getattr(module, "in_chans", None) or _first_channels(module) or channels), int(height), int(width)


def _first_channels(module: nn.Module) -> int | None:
    return next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), None)


def _statistics(cfg: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """mean and std per channel; where the channels are not those of the weights, the average for each."""
    mean = tuple(float(v) for v in cfg.get("mean") or (0.5,) * channels)
    std = tuple(float(v) for v in cfg.get("std") or (0.25,) * channels)
    if len(mean) == channels and len(std) == channels:
        return mean, std
    return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
