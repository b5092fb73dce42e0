"""Backbones for detectors and segmenters: the maps of any model of the zoo or of timm, at the strides that are wanted.

`DenseBackbone` is what the plugins for mmdetection, mmsegmentation (`openmmlab`), torchvision (`detection`) and
segmentation_models_pytorch (`segmentation`) share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.layers import GroupNorm1, LayerNorm2d
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..blocks.pyramid import StrideAdapter, map_sources
from . import weights
from .errors import MixzooError, UnknownModelError, UnknownNameError
from .registry import FAMILIES, VARIANTS, create_model
from .shell import Backbone
from .trained import find_run

WEIGHTS = ("checkpoint", "pretrained", "init_cfg")  # the options that say what a backbone starts from
MAP_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layernorm": LayerNorm2d,  # eps 1e-6
    "layernorm_1e-5": partial(LayerNorm2d, eps=1e-5),
    "groupnorm": GroupNorm1,
    "identity": nn.Identity,
}


class DenseBackbone(nn.Module):
    """Maps of a backbone: images (B, C, H, W) -> a tuple of (B, channels[i], H / strides[i], W / strides[i]).

    Any size will do that the model takes; a height or width that strides do not divide is rounded up.

    Args:
        model: a model or family of the zoo, or a model of timm.
        out_indices: which of the model's maps to take; all by default.
        strides: the strides that the maps shall have; by default those that the model's maps have. A stride for which
            the model has no map is made from the nearest one: finer by transposed convolutions, coarser by pooling.
        map_norm: norm of its own for each map that is taken, where papers have one: 'layernorm', which adds 1e-6 to the
            variance, 'layernorm_1e-5', 'groupnorm' (over channels and positions together), 'identity' for a map without
            one, or a list with one for each map.
        frozen_stages: stages whose parameters are not trained and whose norms and dropout are in eval mode: 0 for the
            stem, n for the stem and n stages; none by default.
        norm_eval: keep every batch norm in eval mode in training.
        with_cp: recompute blocks in the backward pass, for less memory.
        checkpoint: file with weights in any form that `create_model` takes, the official, timm's or mixzoo's.
        pretrained: load the published weights.
        options: those of the model (drop_path_rate, img_size, mixer, ...).

    Attributes:
        channels: of each map.
        strides: of each map, in pixels.
        native_strides: of all maps that the model has, taken or not.

    Raises:
        UnknownModelError: neither mixzoo nor timm has the model.
        MixzooError: the model cannot give the maps that are asked for.
        CheckpointError: weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        model: str,
        out_indices: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        *,
        map_norm: str | Sequence[str] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        checkpoint: str | Path | None = None,
        pretrained: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.model_name = model
        extractor = _extractor(model, out_indices, checkpoint, pretrained, options)
        self.body = cast(nn.Module, extractor.model)
        self.native_strides = _reductions(extractor)
        own, channels = list(extractor.feature_info.reduction()), list(extractor.feature_info.channels())
        used = _used(own, strides)
        self.indices = _pruned(self.body, list(extractor.out_indices), used)
        own, channels = [own[i] for i in used], [channels[i] for i in used]
        self.norms = _map_norms(map_norm, channels)
        self.adapter = _adapter(model, channels, own, strides)
        self.channels, self.strides = self.adapter.channels, self.adapter.strides
        self.norm_eval = norm_eval
        self.frozen = self._freeze(frozen_stages)
        if with_cp:
            self.body.set_grad_checkpointing(True)  # type: ignore[operator]
        self.register_load_state_dict_pre_hook(_rename_foreign)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.body.forward_intermediates(x, indices=self.indices, intermediates_only=True)  # type: ignore[operator]
        return self.adapter([norm(m) for norm, m in zip(self.norms, maps, strict=True)], x.shape[-2:])

    def train(self, mode: bool = True) -> DenseBackbone:
        """Training mode, but for what is frozen and, with ``norm_eval``, batch norms."""
        super().train(mode)
        for module in self._kept_in_eval() if mode else ():
            module.eval()
        return self

    def _kept_in_eval(self) -> Iterator[nn.Module]:
        for name, module in self.body.named_modules():
            names = {f"{name}.{leaf}" for leaf, _ in module.named_parameters()}
            if (self.norm_eval and isinstance(module, _BatchNorm)) or (names and names <= self.frozen):
                yield module

    def _freeze(self, stages: int) -> set[str]:
        """Make the parameters of the stem and of the first ``stages`` untrainable, and return their names."""
        if stages < 0:
            return set()
        groups = group_parameters(self.body, self.body.group_matcher(coarse=True))  # type: ignore[operator]
        groups = {index: names for index, names in groups.items() if names}
        if stages >= len(groups):
            raise MixzooError(
                f"frozen_stages={stages} is more than {self.model_name} has: it takes -1 to {len(groups) - 1}."
            )
        frozen = {name for index in range(stages + 1) for name in groups[index]}
        for name in frozen:
            self.body.get_parameter(name).requires_grad_(False)
        return frozen


def probe(model: str, build: Callable[..., Any] | None = None, **options: Any) -> Any:
    """A `DenseBackbone` without weights, on the meta device where that can be, to ask for its channels and strides.

    Args:
        model: as in `DenseBackbone`.
        build: what to build it with instead.
        options: of which those that name weights are left out.
    """
    options = {k: v for k, v in options.items() if k not in WEIGHTS}
    make = partial(build or DenseBackbone, model=model, **options)
    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, NotImplementedError):  # some of timm's compute with what they build
        return make()


# building


def _extractor(
    name: str, out_indices: Sequence[int] | None, checkpoint: Any, pretrained: bool, options: dict[str, Any]
) -> Any:
    """timm's getter of intermediate maps around the model."""
    taken: dict[str, Any] = {} if out_indices is None else {"out_indices": list(out_indices)}
    create = create_model if name in FAMILIES or in_zoo(name) else _create_timms
    source = None if checkpoint is None else weights_file(checkpoint)
    try:
        return create(name, pretrained, source, features_only=True, **taken, **options)
    except (AssertionError, IndexError) as error:
        if not taken:
            raise
        own = _reductions(create(name, False, None, features_only=True, **options))
        raise MixzooError(
            f"{name} has no maps out_indices={tuple(out_indices or ())}: it has {len(own)}, at strides "
            f"{', '.join(map(str, own))}. Leave out_indices out and say "
            "strides=(4, 8, 16, 32) for maps that it does not have."
        ) from error


def _reductions(extractor: Any) -> tuple[int, ...]:
    """Strides of all maps of the model, taken or not."""
    return tuple(int(level["reduction"]) for level in extractor.feature_info.info)


def in_zoo(name: str) -> bool:
    """Whether mixzoo has a model called ``name``."""
    return name.split(".", 1)[0].removeprefix("mz_") in VARIANTS


def _create_timms(name: str, pretrained: bool, checkpoint: Path | None, **options: Any) -> nn.Module:
    base = name.split(".", 1)[0]
    if not timm.is_model(base):
        raise UnknownModelError(name, {*VARIANTS, *FAMILIES, *timm.list_models()})
    try:
        model = timm.create_model(name, pretrained, checkpoint_path=checkpoint or "", feature_cls="getter", **options)
    except (AttributeError, TypeError) as error:
        raise MixzooError(f"timm's {name} cannot be built as a backbone ({error}): check the options.") from error
    if not hasattr(model.model, "forward_intermediates"):
        raise MixzooError(f"timm's {name} gives no intermediate maps (forward_intermediates): take another model.")
    return model


def weights_file(checkpoint: str | Path) -> Path:
    """The file of weights that ``checkpoint`` is, or that the run of this folder or name left."""
    path = find_run(checkpoint)
    return path / "model.safetensors" if path.is_dir() else path


def _used(own: list[int], strides: Sequence[int] | None) -> list[int]:
    """Which of the maps at strides ``own`` the ones at ``strides`` are made from."""
    return sorted(set(map_sources(own, list(strides or own))))


def _pruned(body: nn.Module, indices: list[int], used: list[int]) -> list[int]:
    """Take what only the other maps need out of ``body``; returns the indices of those that are used."""
    kept = [indices[i] for i in used]
    return kept if kept == indices else list(body.prune_intermediate_layers(kept, prune_norm=True))  # type: ignore[operator]


def _adapter(name: str, channels: list[int], own: list[int], strides: Sequence[int] | None) -> StrideAdapter:
    try:
        return StrideAdapter(channels, own, list(strides or own))
    except ValueError as error:
        raise MixzooError(f"{name} cannot give maps at other strides ({error}): ask for others.") from error


def _map_norms(names: str | Sequence[str] | None, channels: Sequence[int]) -> nn.ModuleList:
    listed = [names or "identity"] * len(channels) if names is None or isinstance(names, str) else list(names)
    if len(listed) != len(channels):
        raise MixzooError(
            f"map_norm has {len(listed)} entries and the backbone {len(channels)} maps: give one for each."
        )
    for name in listed:
        if name not in MAP_NORMS:
            raise UnknownNameError("map_norm", name, MAP_NORMS, f"There are {', '.join(MAP_NORMS)}.")
    return nn.ModuleList(MAP_NORMS[name](dim) for name, dim in zip(listed, channels, strict=True))


def _rename_foreign(module: DenseBackbone, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give the tensors of a backbone in an official detector's or segmenter's checkpoint, or in timm's, our names."""
    own = module.state_dict(prefix=prefix).keys()
    foreign = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) and k not in own}
    if not foreign or not isinstance(module.body, Backbone):
        return
    for name in foreign:
        del state[prefix + name]
    norms = [name for name in foreign if _MAP_NORM.match(name)] if _has_own(module.norms) else []
    levels = sorted({_level(name) for name in norms})
    for name in norms:
        state[f"{prefix}norms.{levels.index(_level(name))}.{name.rsplit('.', 1)[-1]}"] = foreign.pop(name)
    renamed = weights.to_own_keys(module.body, foreign)
    state.update({prefix + (f"body.{k}" if f"{prefix}body.{k}" in own else k): v for k, v in renamed.items()})


# as the authors of PoolFormer, Swin and NAT call the norms of the maps, by index of the layer, and those of BiFormer
_MAP_NORM = re.compile(r"(?:norm|extra_norms\.)(\d+)\.(?:weight|bias)$")


def _level(name: str) -> int:
    return int(cast(re.Match[str], _MAP_NORM.match(name))[1])


def _has_own(norms: nn.ModuleList) -> bool:
    return any(True for _ in norms.parameters())
