"""What a backbone is, as data: stages, heads, published variants and their weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ..blocks.block import Alternate, Factory, Parts
from ..blocks.downsample import DownsampleFactory
from ..blocks.geometry import Size
from ..blocks.init import keep_defaults
from ..blocks.mixers import MIXERS, Alternating, Blockwise, Mixer, MixerFactory
from ..blocks.nested import Widths, spread
from ..blocks.stage import CrossStage, Stage
from ..blocks.stem import StemFactory
from .errors import MixzooError, UnknownNameError
from .keys import KeyMap

MixerLike = str | MixerFactory | None
Mixers = MixerLike | Sequence[MixerLike]


@dataclass(frozen=True)
class StageSpec:
    """One stage.

    Attributes:
        depth: number of blocks.
        dim: channels.
        block: what each block is made of, or even and odd ones.
        mixer: the token mixer, or None where the blocks mix by other means.
        downsample: what runs before the blocks; None keeps size and width.
        norm: what runs after the blocks.
        make: builds the stage from (downsample, blocks, norm).
        position: factory of a position embedding (dim, grid), added before the blocks; None for none.
        window: side of the windows that the whole stage runs in, or None. Position tables then belong to the window.
        prefix: class tokens that the stage packs in front of its map; only the last stage may. Needs `TokenStage`.
        ffn_widths: share of the FFNs' hidden channels that each block has; all of them where it is empty.
    """

    depth: int
    dim: int
    block: Parts | Alternate
    mixer: MixerFactory | None = None
    downsample: DownsampleFactory | None = None
    norm: Factory = nn.Identity
    make: Callable[..., Stage] = Stage
    position: Callable[[int, Size], nn.Module] | None = None
    window: int | None = None
    prefix: int = 0
    ffn_widths: tuple[float, ...] = ()
    foreign: bool = False  # the mixer was chosen by the user


@dataclass(frozen=True)
class HeadSpec:
    """The classification head; see `ClassifierHead`. ``pool`` is the pooling where none is asked for."""

    norm: Factory | None = None
    hidden: Factory | None = None
    distilled: bool = False
    pool: str = "avg"


@dataclass(frozen=True)
class BackboneSpec:
    """A whole backbone.

    Attributes:
        stem: (in_chans, dim) -> module.
        stages: the stages, in order.
        norm: norm of the last map, before pooling.
        stem_dim: channels of the stem, where they are not those of the first stage.
        num_features: channels after ``norm``, where it is a layer that changes them.
        head: the classifier.
        img_size: side of the square images that size-bound tables are made for, by default.
        init: initial weights, applied to every module.
        necks: per-stage adapters of the feature maps (dim, out_dim) with their widths, for dense prediction only.
        first_conv: name of the convolution that sees the image.
        weights_key: entry of the official files that holds the weights, preferred over others.
        keys: names of other checkpoints' tensors, by the form's name ("official", "timm").
        merged: the same model with the tensors of the authors' own deploy form, where they have one.
    """

    stem: StemFactory
    stages: tuple[StageSpec, ...]
    norm: Factory = nn.Identity
    stem_dim: int | None = None
    num_features: int | None = None
    head: HeadSpec = HeadSpec()
    img_size: int = 224
    init: Callable[[nn.Module], None] = keep_defaults
    necks: tuple[DownsampleFactory, tuple[int, ...]] | None = None
    first_conv: str = "stem.conv"
    weights_key: str | None = None
    keys: Mapping[str, KeyMap] = field(default_factory=dict)
    merged: BackboneSpec | None = None

    @property
    def isotropic(self) -> bool:
        """Whether there is one stage only; feature maps are then taken after its blocks."""
        return len(self.stages) == 1

    def with_mixers(self, mixers: Mixers) -> BackboneSpec:
        """The spec with other token mixers: one for every stage that mixes, or a list with one per stage.

        In a list, None keeps a stage's own mixer.

        Raises:
            MixzooError: the list does not have one entry per stage.
            UnknownNameError: no mixer has that name.
        """
        if isinstance(mixers, str) or callable(mixers):
            mixers = [mixers if stage.mixer else None for stage in self.stages]
        if mixers is None:
            return self
        if len(mixers) != len(self.stages):
            raise MixzooError(
                f"mixer= takes one name for the whole backbone or {len(self.stages)}, one per stage; got {len(mixers)}"
            )
        stages = (s if m is None else swap_mixer(s, m) for s, m in zip(self.stages, mixers, strict=True))
        return replace(self, stages=tuple(stages))

    def with_mixer_options(self, options: Sequence[Mapping[str, Any] | None] | None) -> BackboneSpec:
        """The spec whose own mixers have other options, with the same weights: one entry per stage, None for no change.

        Detectors and segmenters take larger grids, windows further apart or more regions than classifiers. Of a stage
        with two mixers those change that have such options.

        Raises:
            MixzooError: the list does not have one entry per stage.
            UnknownNameError: a stage's mixer has no such option.
        """
        if options is None:
            return self
        if len(options) != len(self.stages):
            raise MixzooError(f"mixer_options= takes {len(self.stages)} entries, one per stage; got {len(options)}")
        pairs = zip(self.stages, options, strict=True)
        return replace(self, stages=tuple(_with_options(s, o) if o else s for s, o in pairs))

    def with_ffn_width(self, widths: Widths | None) -> BackboneSpec:
        """The spec with FFNs of fewer hidden channels: shares of them, one for all, one per stage or one per block.

        Raises:
            MixzooError: another count, or a share that is none.
        """
        if widths is None:
            return self
        try:
            shares = spread(widths, [stage.depth for stage in self.stages])
        except (ValueError, TypeError) as error:
            raise MixzooError(f"ffn_width={widths!r} does not fit the model ({error}).") from error
        stages = tuple(replace(s, ffn_widths=w) for s, w in zip(self.stages, shares, strict=True))
        return replace(self, stages=stages, merged=self.merged and self.merged.with_ffn_width(widths))


def resolve_mixer(mixer: str | MixerFactory) -> MixerFactory:
    """A mixer factory from its name.

    Raises:
        UnknownNameError: no mixer has that name; the message has near ones.
    """
    if not isinstance(mixer, str):
        return mixer
    if mixer not in MIXERS:
        raise UnknownNameError("mixer", mixer, MIXERS, f"Mixers: {', '.join(sorted(MIXERS))}.")
    return Mixer(mixer)


def _with_options(stage: StageSpec, options: Mapping[str, Any]) -> StageSpec:
    known = _options_of(stage.mixer)
    for name in options:
        if name not in known:
            raise UnknownNameError("mixer option", name, known, f"This mixer takes {', '.join(known) or 'none'}.")
    return replace(stage, mixer=stage.mixer and _changed(stage.mixer, options))


def _changed(mixer: MixerFactory, options: Mapping[str, Any]) -> MixerFactory:
    """``mixer``, or those of its parts by block, with what they know of ``options``."""
    own = {name: value for name, value in options.items() if name in _options_of(mixer)}
    if isinstance(mixer, Blockwise):
        return Blockwise(_changed(mixer.first, own), _changed(mixer.rest, own), mixer.count)
    if isinstance(mixer, Alternating):
        return Alternating(_changed(mixer.first, own), _changed(mixer.rest, own))
    return Mixer(mixer.name, **{**mixer.options, **own}) if isinstance(mixer, Mixer) and own else mixer


_GIVEN = ("dim", "grid", "num_sources", "index")  # what the stage tells its mixers


def _options_of(mixer: MixerFactory | None) -> list[str]:
    if isinstance(mixer, Blockwise | Alternating):
        return list(dict.fromkeys([*_options_of(mixer.first), *_options_of(mixer.rest)]))
    if not isinstance(mixer, Mixer):
        return []
    return [name for name in inspect.signature(MIXERS[mixer.name]).parameters if name not in _GIVEN]


def swap_mixer(stage: StageSpec, mixer: str | MixerFactory) -> StageSpec:
    """``stage`` with another mixer; a stage whose mixer hands tokens forward becomes a plain one, or the reverse.

    The family's own mixer, asked for by name, keeps the family's options.
    """
    if isinstance(mixer, str) and mixer == getattr(stage.mixer, "name", None):
        return stage
    factory = resolve_mixer(mixer)
    if stage.prefix and not getattr(factory, "takes_prefix", False):
        name = getattr(factory, "name", type(factory).__name__)
        raise MixzooError(
            f"The {name} mixer moves maps and knows no class token, which this model has: choose a mixer such as "
            '"attention", or a layout without class token, such as create_model("deit", class_token=False).'
        )
    crosses = bool(getattr(factory, "crosses", False))
    was_crossing = bool(getattr(stage.mixer, "crosses", False))
    make = stage.make if crosses == was_crossing else (CrossStage if crosses else Stage)
    window = stage.window if crosses == was_crossing else None
    return replace(stage, mixer=factory, foreign=True, make=make, window=window)


@dataclass(frozen=True)
class Weights:
    """Published weights of a variant.

    Attributes:
        tag: timm-style tag, e.g. "in1k" or "in1k_384".
        url: file of the official repository.
        hf_hub_id: the same weights on the Hugging Face hub in timm's form, as an alternative source.
        sha256: of the file behind ``url``, hexadecimal, where known.
        top1: published ImageNet-1k top-1 accuracy, %.
        resolution: side of the images they were evaluated at, pixels.
        num_classes: outputs of the classifier.
        macs_g: multiply-accumulates of one image at ``resolution``, 1e9.
        crop_pct: share of the image kept by the centre crop in evaluation.
    """

    tag: str = ""
    url: str | None = None
    hf_hub_id: str | None = None
    sha256: str | None = None
    top1: float | None = None
    resolution: int = 224
    num_classes: int = 1000
    macs_g: float | None = None
    crop_pct: float = 0.875


@dataclass(frozen=True)
class Variant:
    """A published model: what to build, and what its paper says about it.

    Attributes:
        name: the paper's name.
        family: name of the family file.
        spec: what to build.
        params_m: learned parameters with 1,000 classes, 1e6.
        macs_g: multiply-accumulates of one image at ``resolution``, 1e9, as published.
        top1: ImageNet-1k top-1 accuracy, %, as published.
        resolution: side of the training images, pixels.
        paper: arXiv id.
        licence: of the weights; None where the authors state none.
        weights: published weights, the default first. A first entry without a source only says how to evaluate.
        drop_path: stochastic depth rate of the paper's training.
        mean, std: input normalisation per channel.
        description: one sentence.
    """

    name: str
    family: str
    spec: BackboneSpec
    params_m: float | None = None
    macs_g: float | None = None
    top1: float | None = None
    resolution: int = 224
    paper: str = ""
    licence: str | None = None
    weights: tuple[Weights, ...] = (Weights(),)
    drop_path: float = 0.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    description: str = ""

    @property
    def mixers(self) -> tuple[str, ...]:
        """The token mixer of each stage, by name."""
        return tuple(getattr(s.mixer, "name", "none" if s.mixer is None else "custom") for s in self.spec.stages)

    @property
    def has_weights(self) -> bool:
        return any(w.url or w.hf_hub_id for w in self.weights)
