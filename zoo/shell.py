"""The shell: stem, stages, norm and head of any `BackboneSpec`, with the whole timm contract, written once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from timm.layers import Format
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..blocks.block import BlockSite, MixerChoice, build_block, parts_of
from ..blocks.deploy import deploy_form
from ..blocks.geometry import Size, conv_out_size, total_stride
from ..blocks.head import ClassifierHead
from ..blocks.mixers.random import MatrixMixer
from ..blocks.nested import Widths, built_narrow, nested_ffns
from ..blocks.stage import CrossStage, Stage, TokenStage
from ..blocks.tables import GridModule
from . import weights
from .errors import DeployFormError, MixzooError
from .spec import BackboneSpec, Mixers, StageSpec


class Backbone(nn.Module):
    """An image backbone: (B, in_chans, H, W) -> logits (B, num_classes), for any H and W from 32 up.

    Args:
        spec: what to build.
        num_classes: classifier outputs; 0 for none.
        in_chans: image channels.
        global_pool: pooling before the classifier, or '' for none; by default the spec's.
        img_size: image size that position tables are made for; other sizes work and resize the tables.
        mixer: token mixer to use instead of the spec's: a name, a factory, or a list with one per stage.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; earlier blocks drop linearly less.
        ffn_width: share of the FFNs' hidden channels in the spec that the model has, or a list of shares with one per
            stage or one per block.

    Raises:
        MixzooError: ``mixer`` or ``ffn_width`` does not fit the model.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str | None = None,
        img_size: int | Size | None = None,
        mixer: Mixers = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        ffn_width: Widths | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec = spec.with_mixers(mixer).with_ffn_width(ffn_width)
        size = spec.img_size if img_size is None else img_size
        self.img_size: Size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.num_classes, self.in_chans = num_classes, in_chans
        self.stem = spec.stem(in_chans, spec.stem_dim or spec.stages[0].dim)
        self._build_stages(drop_path_rate)
        if ffn_width is not None:
            _need_ffns(self)
        dim = spec.stages[-1].dim
        self.norm = spec.norm(dim)
        self.num_features = spec.num_features or dim
        self.num_prefix_tokens = spec.stages[-1].prefix
        self.necks = self._build_necks()
        self.head = self._build_head(spec.head.pool if global_pool is None else global_pool, drop_rate)
        self.head_hidden_size = self.head.hidden_size
        self.head_optional = False  # whether a checkpoint without a classifier is whole
        self.apply(spec.init)

    def _build_stages(self, drop_path_rate: float) -> None:
        total = sum(s.depth for s in self.spec.stages)
        rates = [drop_path_rate * i / max(1, total - 1) for i in range(total)]
        grid, dim = conv_out_size(self.stem, self.img_size), self.spec.stem_dim or self.spec.stages[0].dim
        self.stages = nn.Sequential()
        self.feature_info: list[dict[str, Any]] = []
        reduction = total_stride(self.stem)
        for index, stage in enumerate(self.spec.stages):
            downsample = stage.downsample(dim, stage.dim) if stage.downsample else nn.Identity()
            grid, dim = conv_out_size(downsample, grid), stage.dim
            reduction *= total_stride(downsample)
            first = sum(s.depth for s in self.spec.stages[:index])
            self.stages.append(_build_stage(stage, downsample, grid, rates[first : first + stage.depth]))
            width = self.spec.necks[1][index] if self.spec.necks else dim
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"stages.{index}"})
        if self.spec.isotropic:
            blocks = range(self.spec.stages[0].depth)
            self.feature_info = [self.feature_info[0] | {"module": f"stages.0.blocks.{index}"} for index in blocks]

    def _build_head(self, global_pool: str, drop_rate: float) -> ClassifierHead:
        head, prefix = self.spec.head, self.num_prefix_tokens
        return ClassifierHead(
            self.num_features, self.num_classes, global_pool, head.norm, head.hidden, drop_rate, head.distilled, prefix
        )

    def _build_necks(self) -> nn.ModuleList | None:
        if self.spec.necks is None:
            return None
        make, widths = self.spec.necks
        return nn.ModuleList(make(s.dim, w) for s, w in zip(self.spec.stages, widths, strict=True))

    # what the model computes

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> the last map (B, num_features, H', W').

        A model with class tokens gives them and the positions of the map: (B, prefix + H' * W', num_features).
        """
        return self._normed(self.stages(self.stem(x)))

    def _normed(self, x: Tensor) -> Tensor:
        """What the last stage gives, after the norm; packed maps as tokens (B, prefix + N, C)."""
        x = self.norm(x)
        return x.flatten(2).transpose(1, 2) if self.num_prefix_tokens else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The last map -> logits, or with ``pre_logits`` the vector that enters the classifier."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Tensor | list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps after chosen stages, and what `forward_features` gives. One stage: the maps after chosen blocks.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages or blocks to take: a list, or an int n for the last n; all by default.
            norm: whether the last map goes through the backbone's norm.
            stop_early: whether to skip what comes after the last one taken.
            output_fmt: 'NCHW' or 'NHWC' for the maps.
            intermediates_only: return only the list of maps.

        Raises:
            ValueError: an unknown ``output_fmt``.
        """
        layout = Format(output_fmt)
        if layout not in (Format.NCHW, Format.NHWC):
            raise ValueError(f"output_fmt {output_fmt!r} is neither 'NCHW' nor 'NHWC'")
        taken, last = feature_take_indices(self._num_levels, indices)
        x, levels = self._levels(self.stem(x), last + 1 if stop_early else self._num_levels)
        maps = [self._feature(level, index, norm, layout) for index, level in enumerate(levels) if index in taken]
        if intermediates_only:
            return maps
        return (self._normed(x) if len(levels) == len(self.feature_info) else x), maps

    @property
    def _num_levels(self) -> int:
        """How many maps there are to take; a pruned model has fewer than its `feature_info`."""
        stages = self._stages
        return len(cast(Stage, stages[0]).blocks) if self.spec.isotropic else len(stages)

    @property
    def _stages(self) -> list[nn.Module]:
        """The stages; `deploy` leaves an only one without the sequence that it was in."""
        return list(self.stages) if isinstance(self.stages, nn.Sequential) else [self.stages]

    def _levels(self, x: Tensor, count: int) -> tuple[Tensor, list[Tensor]]:
        """What the stem gives -> what the last of the first ``count`` stages or blocks gives, and their maps."""
        if self.spec.isotropic:
            return cast(Stage, self._stages[0]).with_maps(x, count)
        levels: list[Tensor] = []
        for stage in self._stages[:count]:
            if isinstance(stage, TokenStage):
                x, maps = stage.with_maps(x)
                levels.append(maps[-1])
            else:
                x = stage(x)
                levels.append(x)
        return x, levels

    def _feature(self, x: Tensor, index: int, norm: bool, layout: Format) -> Tensor:
        if self.necks is not None:
            x = self.necks[index](x)
        elif norm and index == len(self.feature_info) - 1:
            x = self.norm(x)
        return x if layout == Format.NCHW else x.permute(0, 2, 3, 1)

    # what timm asks of a model

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what `forward_intermediates` does not need for ``indices``, and return them as a list."""
        taken, last = feature_take_indices(self._num_levels, indices)
        if self.spec.isotropic:
            first = cast(Stage, self.stages[0])
            first.blocks = cast(nn.Sequential, first.blocks[: last + 1])
        else:
            self.stages = cast(nn.Sequential, self.stages[: last + 1])
        final = self.spec.stages[0 if self.spec.isotropic else last]
        if prune_norm or last < len(self.feature_info) - 1:
            self.norm = nn.Identity()
            self.num_features = final.dim
        self.num_prefix_tokens = prefix = final.prefix
        if self.necks is not None:
            self.necks = nn.ModuleList(m if i in taken else nn.Identity() for i, m in enumerate(self.necks))
        if prune_head:
            self.num_classes = 0
            drop = self.head.drop.p
            self.head = ClassifierHead(self.num_features, 0, "", drop_rate=drop, prefix=prefix).train(self.training)
            self.head_hidden_size = self.head.hidden_size
        return taken

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        head = self.head
        return (head.fc, head.fc_dist) if head.distilled and head.fc_dist is not None else head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0 classes: none), and the pooling where one is named."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, like=next(self.parameters()))

    def set_input_size(self, img_size: int | Size) -> None:
        """Make the position tables for another image size, resizing what they hold.

        Raises:
            DeployFormError: the model is in deploy form, whose tables are fixed.
        """
        if deploy_form(self):
            raise DeployFormError("The tables of a deploy form are fixed: call set_input_size before mixzoo.deploy.")
        size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        like = next(self.parameters())
        with factory(like.device, like.dtype):
            other = weights.rebuilt(self, img_size=size)
        state = self.state_dict()
        state.update(
            (f"{n}.weight", m.weight_for(cast(MatrixMixer, other.get_submodule(n)).grid)) for n, m in self._matrices()
        )
        nn.Module.load_state_dict(other, state, strict=False)  # a pruned model has less than a whole one
        for name, module in [m for m in self.named_modules() if isinstance(m[1], (GridModule, MatrixMixer))]:
            moved = other.get_submodule(name).train(module.training)
            for leaf, parameter in module.named_parameters():
                moved.get_parameter(leaf).requires_grad_(parameter.requires_grad)
            self.set_submodule(name, moved)
        self.img_size = size

    def _matrices(self) -> Iterator[tuple[str, MatrixMixer]]:
        return ((name, module) for name, module in self.named_modules() if isinstance(module, MatrixMixer))

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether a distilled model in training returns (logits, logits for the teacher) instead of their mean."""
        self.head.distilled_training = enable

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in training: recompute each block in the backward pass."""
        for stage in cast(Iterable[Stage], self.stages):
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that the papers train without weight decay."""
        found: set[str] = set()
        for prefix, module in self.named_modules():
            found.update(f"{prefix}.{name}" for name in getattr(module, "undecayed", ()))
        return found

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning-rate decay: by stage if ``coarse``, else by block."""
        blocks = [(r"^stages\.(\d+)", None)] if coarse else _FINE_GROUPS
        return {"stem": r"^stem", "blocks": blocks}

    # checkpoints

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load tensors named as in mixzoo, in the official code, or in timm; see `mixzoo.zoo.weights`."""
        return super().load_state_dict(weights.to_own_keys(self, state_dict), strict=strict, assign=assign)

    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a checkpoint file, adapted to this model's classes and image channels."""
        weights.load(self, checkpoint_path)


@contextmanager
def factory(device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Tensors made in this block are on ``device`` and of ``dtype``, where those are given."""
    default = torch.get_default_dtype()
    with torch.device(device) if device is not None else nullcontext():
        try:
            torch.set_default_dtype(dtype or default)
            yield
        finally:
            torch.set_default_dtype(default)


_FINE_GROUPS = [
    (r"^stages\.(\d+)\.(?:downsample|position)", (0,)),
    (r"^stages\.(\d+)\.blocks\.(\d+)", None),
    (r"^stages\.(\d+)\.norm", (99998,)),
    (r"^norm", (99999,)),
]


def _need_ffns(model: nn.Module) -> None:
    try:
        nested_ffns(model)
    except ValueError as error:
        raise MixzooError(f"The model has no ffn_width ({error}): leave it out.") from error


def _build_stage(spec: StageSpec, downsample: nn.Module, grid: Size, rates: list[float]) -> Stage:
    mixer = MixerChoice(spec.mixer, spec.foreign)
    site_grid = (spec.window, spec.window) if spec.window else grid
    sites = (BlockSite(spec.dim, site_grid, i, spec.depth, rate, spec.prefix) for i, rate in enumerate(rates))
    blocks: list[nn.Module] = [build_block(parts_of(spec.block, site.index), mixer, site) for site in sites]
    if spec.ffn_widths:
        blocks = [built_narrow(block, width) for block, width in zip(blocks, spec.ffn_widths, strict=True)]
    position = spec.position(spec.dim, grid) if spec.position else nn.Identity()
    make = CrossStage if mixer.crosses and spec.make is Stage else spec.make
    return make(downsample, blocks, spec.norm(spec.dim), position)
