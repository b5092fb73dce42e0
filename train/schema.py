"""What a recipe may hold: one frozen class for each section. What is null or absent is off, unless it says more."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .nearest import nearest

TORCHVISION = ("fashion_mnist", "mnist", "cifar10", "cifar100")
READERS = ("wds/", "hfds/", "tfds/", "torch/")
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of every part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecipe(Section):
    """The backbone; classes and input channels come from the data."""

    name: str = Field(description="in the zoo, else in timm; 'timm/...' is always timm's")
    kwargs: dict[str, Any] = Field(default={}, description="passed to create_model as they are")
    pretrained: bool = Field(default=False, description="start from the published weights; another head starts anew")
    checkpoint: str | None = Field(default=None, description="a file or a run to start from, in place of those")

    @model_validator(mode="after")
    def _one_start(self) -> ModelRecipe:
        if self.pretrained and self.checkpoint:
            raise ValueError("pretrained and checkpoint cannot both be set: a run starts from one of them")
        return self


class DataRecipe(Section):
    """Which images, at what size, in which batches."""

    source: str = Field(description="digits, folder, a data set of torchvision, or a reader of timm with its prefix")
    root: str | None = Field(default=None, description="folder of the images; a cache folder if null")
    train: str = Field(default="train", description="name of the split that is trained on")
    test: str = Field(default="validation", description="name of the split that is tested on")
    size: int = Field(ge=32, description="pixels per side that the model gets")
    batch: int = Field(default=64, ge=2, description="images per step over all devices; an incomplete last is left out")
    repeats: int = Field(default=1, ge=1, description="repeated augmentation: times that an image is in its batch")
    interpolation: Literal["bilinear", "bicubic", "random"] = Field(
        default="bicubic", description="random: in training"
    )
    mean: tuple[float, ...] = Field(description="per channel, of pixels in [0, 1]; one channel means grey")
    std: tuple[float, ...] = Field(description="per channel, of pixels in [0, 1]")
    crop_pct: float = Field(default=1.0, gt=0, le=1, description="share of the test image that the crop keeps")
    crop_mode: Literal["center", "squash", "border"] = Field(default="center", description="timm's, of test images")
    workers: int = Field(default=0, ge=0, description="processes that read images; 0 reads in the training process")
    corrupt_share: Share = Field(default=0.0, description="share of the images that may be unreadable")

    @field_validator("source")
    @classmethod
    def _known_source(cls, name: str) -> str:
        known = ("digits", "folder", *TORCHVISION)
        if name in known or any(name.startswith(prefix) and name != prefix for prefix in READERS):
            return name
        raise ValueError(
            f"no such source, the nearest is {nearest(name, known)!r}; there are {', '.join(known)}, and names that "
            f"begin with {', '.join(READERS)}"
        )

    @model_validator(mode="after")
    def _statistics_agree(self) -> DataRecipe:
        if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
            raise ValueError("mean and std need one value per channel, and std must be positive")
        if len(self.mean) not in (1, 3):
            raise ValueError(f"images have 1 or 3 channels, but mean has {len(self.mean)} values")
        return self


class AugmentRecipe(Section):
    """Random changes, drawn for each training image; 0 switches one off. They are timm's, under timm's names."""

    rotate: float = Field(default=0.0, ge=0, le=180, description="greatest angle, degrees")
    shift: float = Field(default=0.0, ge=0, lt=1, description="greatest shift, share of the side")
    scale: float = Field(default=0.0, ge=0, lt=1, description="greatest change of size, share")
    flip: Share = Field(default=0.0, description="how often left and right change places")
    crop_scale: tuple[float, float] = Field(default=(1.0, 1.0), description="least and greatest area of a random crop")
    crop_ratio: tuple[float, float] = Field(default=(1.0, 1.0), description="least and greatest width / height of it")
    auto_augment: str | None = Field(default=None, description="such as rand-m9-mstd0.5-inc1")
    color_jitter: float = Field(default=0.0, ge=0, description="left out where auto_augment is set, as in timm")
    random_erasing: Share = Field(default=0.0, description="how often a rectangle is erased")
    random_erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    random_erasing_count: int = Field(default=1, ge=1, description="greatest number of rectangles")
    mixup: float = Field(default=0.0, ge=0, description="alpha of the blend of two images")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of the patch from another image")
    mix_prob: Share = Field(default=1.0, description="how often a batch is mixed at all")
    switch_prob: Share = Field(default=0.5, description="how often by cutmix where both are on")
    off_epoch: int | None = Field(default=None, ge=1, description="the first epoch without mixup and cutmix")

    @model_validator(mode="after")
    def _ranges_rise(self) -> AugmentRecipe:
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be two positive numbers, the lesser first")
        return self


class OptimRecipe(Section):
    """timm's optimizer by name; norms, biases and what the model names are not decayed."""

    optimizer: str = "adamw"
    lr: float = Field(gt=0, description="at the peak")
    lr_batch: int | None = Field(default=None, ge=1, description="batch that lr is for: scaled in proportion to others")
    weight_decay: float = Field(default=0.0, ge=0)
    no_decay: tuple[str, ...] = Field(default=(), description="globs of more parameters that are not decayed")
    layer_decay: float | None = Field(
        default=None, gt=0, le=1, description="factor of the rate from block to block down"
    )
    clip_grad: float | None = Field(default=None, gt=0)
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    kwargs: dict[str, Any] = Field(default={}, description="passed to the optimizer as they are (eps, betas, ...)")

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        from timm.optim import list_optimizers

        known = [str(name) for name in list_optimizers()]
        if name not in known:
            raise ValueError(f"timm has no optimizer {name!r}, the nearest is {nearest(name, known)!r}")
        return name

    @model_validator(mode="after")
    def _known_options(self) -> OptimRecipe:
        from timm.optim import get_optimizer_class

        parameters = inspect.signature(get_optimizer_class(self.optimizer, bind_defaults=False)).parameters
        known = [k for k in parameters if k not in ("params", "lr", "weight_decay")]
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            for key in self.kwargs:
                if key not in known:
                    raise ValueError(
                        f"{self.optimizer!r} has no option {key!r}, the nearest is {nearest(key, known)!r}"
                    )
        return self


class ScheduleRecipe(Section):
    """timm's learning-rate schedule by name."""

    schedule: Literal["cosine", "constant", "step", "poly"] = "cosine"
    epochs: int = Field(ge=1, description="of the schedule, the warm-up among them unless warmup_prefix")
    warmup_epochs: int = Field(default=0, ge=0)
    warmup_prefix: bool = Field(default=False, description="whether the warm-up comes before the epochs")
    warmup_lr: float = Field(default=1e-6, ge=0)
    min_lr: float = Field(default=0.0, ge=0)
    cooldown_epochs: int = Field(default=0, ge=0, description="more epochs, at min_lr")
    decay_epochs: float = Field(default=30, gt=0, description="of step: how long a step is")
    decay_rate: float = Field(default=0.1, gt=0, description="of step: its factor; of poly: the power, 1 is a line")
    per: Literal["step", "epoch"] = Field(default="step", description="how often the rate changes")
    scale_ends: bool = Field(default=False, description="whether warmup_lr and min_lr follow optim.lr_batch too")
    prepbn_steps: int | None = Field(
        default=None, ge=1, description="steps until SLAB's LayerNorms are gone; else its own"
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> ScheduleRecipe:
        if self.warmup_epochs >= self.epochs and self.warmup_epochs and not self.warmup_prefix:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be fewer than epochs ({self.epochs})")
        return self

    @property
    def total_epochs(self) -> int:
        """All epochs of the run."""
        return self.epochs + self.cooldown_epochs + (self.warmup_epochs if self.warmup_prefix else 0)


class RegularisationRecipe(Section):
    """What keeps the model from memorising, apart from augmentation and weight decay."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    bce: bool = Field(default=False, description="binary cross-entropy of each class in place of the softmax's")
    drop_path: float | None = Field(default=None, ge=0, lt=1, description="of the last block; the model's own if null")
    dropout: float | None = Field(default=None, ge=0, lt=1, description="before the head; the model's own if null")
    sigma_reparam: bool = Field(
        default=False, description="linear layers with a learned spectral norm (arXiv:2303.06296)"
    )


class EmaRecipe(Section):
    """A moving average of the weights; where there is one, it is the result."""

    decay: float | None = Field(default=None, gt=0, lt=1, description="for each step")
    warmup: bool = Field(default=False, description="timm's slow start of the decay")


class DistillationRecipe(Section):
    """A teacher beside the labels."""

    teacher: str | None = Field(default=None, description="a model's name, in the zoo, else in timm")
    kwargs: dict[str, Any] = Field(default={}, description="passed to create_model as they are")
    pretrained: bool = Field(default=False, description="the teacher's published weights")
    checkpoint: str | None = Field(default=None, description="a file or a run with the teacher's weights")
    kind: Literal["hard", "soft", "feature"] = Field(
        default="hard", description="its first choice, its probabilities, or its features (FitNets)"
    )
    features: Literal["pooled", "map"] = Field(
        default="pooled", description="of feature: what enters the classifier, or the last map"
    )
    alpha: Share = Field(default=0.5, description="share of the teacher in the loss")
    tau: float = Field(default=1.0, gt=0, description="temperature of soft")

    @model_validator(mode="after")
    def _teacher_knows(self) -> DistillationRecipe:
        if self.teacher and self.pretrained == bool(self.checkpoint):
            raise ValueError("a teacher needs weights: set one of pretrained and checkpoint")
        return self


class ResolutionsRecipe(Section):
    """Several sizes in each step (ResFormer)."""

    sizes: tuple[int, ...] = Field(default=(), description="at which each step is made; data.size alone if empty")
    consistency: float = Field(default=1.0, ge=0, description="how much the agreement of their features counts")


class ElasticRecipe(Section):
    """Nested FFNs (MatFormer): each step trains one width, drawn at random; `mixzoo extract` cuts a model out."""

    widths: tuple[float, ...] = Field(
        default=(), description="shares of the FFNs' hidden channels, rising, the last of them 1; off if empty"
    )
    probabilities: tuple[float, ...] = Field(default=(), description="how often each is drawn; equally if empty")

    @model_validator(mode="after")
    def _widths_rise_to_one(self) -> ElasticRecipe:
        widths, chances = self.widths, self.probabilities
        rising = all(low < high for low, high in zip((0.0, *widths), widths, strict=False))
        if widths and not (rising and widths[-1] == 1 and len(widths) > 1):
            raise ValueError("widths must be two shares or more above 0, rising, the last of them 1")
        if chances and (len(chances) != len(widths) or min(chances) <= 0 or abs(sum(chances) - 1) > 1e-6):
            raise ValueError("probabilities must be one positive number for each of widths, with a sum of 1")
        return self


class TuningRecipe(Section):
    """How much of the model is trained."""

    train: Literal["all", "head"] = Field(default="all", description="head: a linear probe, with fixed norms below it")


class ComputeRecipe(Section):
    """How the arithmetic is done; results differ in their last bits between settings."""

    threads: int | None = Field(default=None, ge=1, description="of torch; what torch chooses if null")
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    precision: Literal["no", "bf16", "fp16"] = Field(default="no", description="of autocast")
    accumulate: int = Field(default=1, ge=1, description="parts that a device computes its share of a batch in")
    checkpointing: bool = Field(default=False, description="recompute blocks in the backward pass, for memory")
    compile: bool = Field(default=False, description="by torch.compile")
    sharding: Literal["fsdp"] | None = Field(
        default=None, description="weights, gradients and the optimizer's state split over the processes, for memory"
    )
    sync_bn: bool = Field(default=False, description="batch norms over all devices, as on one")

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        """YAML reads a plain ``no`` as false."""
        return "no" if value is False else value


class SavingRecipe(Section):
    """When what a run can be resumed from is written."""

    every_epochs: int | None = Field(default=1, ge=1)
    every_steps: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=1, description="how many of the last ones stay")
    monitor: Literal["accuracy", "loss"] | None = Field(default="accuracy", description="of the best, which stays too")
    tensorboard: bool = Field(default=True, description="write for TensorBoard too, where it is installed")


class Recipe(Section):
    """A whole training run. ``seed`` fixes initial weights, image order and augmentation."""

    model: ModelRecipe
    data: DataRecipe
    augment: AugmentRecipe = AugmentRecipe()
    optim: OptimRecipe
    schedule: ScheduleRecipe
    regularisation: RegularisationRecipe = RegularisationRecipe()
    ema: EmaRecipe = EmaRecipe()
    distillation: DistillationRecipe = DistillationRecipe()
    resolutions: ResolutionsRecipe = ResolutionsRecipe()
    elastic: ElasticRecipe = ElasticRecipe()
    tuning: TuningRecipe = TuningRecipe()
    compute: ComputeRecipe = ComputeRecipe()
    saving: SavingRecipe = SavingRecipe()
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _largest_is_loaded(self) -> Recipe:
        if self.resolutions.sizes and max(self.resolutions.sizes) != self.data.size:
            raise ValueError(f"the largest of resolutions.sizes must be data.size ({self.data.size})")
        return self

    @model_validator(mode="after")
    def _widths_are_trained(self) -> Recipe:
        others = {
            "tuning.train=head": self.tuning.train == "head",
            "compute.sync_bn": self.compute.sync_bn,
            "regularisation.sigma_reparam": self.regularisation.sigma_reparam,
            "model.kwargs.ffn_width": "ffn_width" in self.model.kwargs,
        }
        for other in (name for name, given in others.items() if given and self.elastic.widths):
            raise ValueError(f"elastic.widths and {other} do not go together: leave one of them out")
        return self


def valid_keys() -> list[str]:
    """Every dotted key that a recipe may hold, in the order of declaration."""
    return list(_dotted(Recipe))


def keys_of(section: str) -> list[str]:
    """The dotted keys of one section."""
    return [k for k in valid_keys() if k.startswith(f"{section}.")]


def _dotted(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _dotted(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
