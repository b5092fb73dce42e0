"""From images to batches: the order of an epoch, its share for each process, augmentation by timm, and the last steps.

Training images are numbered through the epoch, and a batch is the next B of them. Each process takes a part, and
number i comes with number B - 1 - i, so that timm's mixup, which blends exactly these, blends the same pairs on one
device and on many. Each image is augmented with generators set from the seed, the epoch and its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ..zoo.errors import MixzooError
from .images import UNREADABLE, Images
from .randomness import AUGMENT, ERASE, ORDER, key, seed_cpu, seed_erasing
from .schema import AugmentRecipe, DataRecipe

Place = tuple[int, int, int]  # (number of the image, epoch, number in the epoch)


class UnreadableError(MixzooError):
    """More images than the recipe allows cannot be read."""


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W), uint8; labels (B,); where each stands in the run; what could not be read, by number."""

    images: Tensor
    labels: Tensor
    places: list[Place]
    unreadable: dict[int, str]

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.places, self.unreadable)


def train_transform(data: DataRecipe, augment: AugmentRecipe) -> Any:
    """PIL image -> uint8 (C, size, size), changed at random."""
    transform = create_transform(
        data.size,
        is_training=True,
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
        hflip=augment.flip,
        color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]
        auto_augment=augment.auto_augment,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
        use_prefetcher=True,  # leaves normalisation to `Finish`
    )
    steps = list(transform.transforms)
    _let_posterize_keep_nothing(steps)
    if augment.rotate or augment.shift or augment.scale:
        steps.insert(1, _affine(augment))
    if len(data.mean) == 1 and augment.auto_augment:  # timm's operations need colour
        steps = [_to_mode("RGB"), *steps[:-1], _to_mode("L"), steps[-1]]
    return transforms.Compose(steps)


def _let_posterize_keep_nothing(steps: Sequence[Any]) -> None:
    """Make black what timm posterizes to no bits, as at the greatest magnitudes: Pillow refuses that from 13 on."""
    for step in steps:
        for operation in (*getattr(step, "ops", ()), *chain.from_iterable(getattr(step, "policy", ()))):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **unused: Any) -> Image.Image:
    return posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def _affine(augment: AugmentRecipe) -> Any:
    return transforms.RandomAffine(
        augment.rotate,
        (augment.shift, augment.shift),
        (1 - augment.scale, 1 + augment.scale),
        interpolation=InterpolationMode.BILINEAR,
    )


def _to_mode(mode: str) -> Any:
    return transforms.Lambda(_Convert(mode))


@dataclass(frozen=True)
class _Convert:
    mode: str

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.convert(self.mode)


def eval_transform(data: DataRecipe) -> Any:
    """PIL image -> uint8 (C, size, size), as the model is tested and used."""
    return create_transform(
        data.size,
        interpolation=eval_interpolation(data),
        mean=data.mean,
        std=data.std,
        crop_pct=data.crop_pct,
        crop_mode=data.crop_mode,
        use_prefetcher=True,
    )


def eval_interpolation(data: DataRecipe) -> str:
    """That of the recipe, which may leave it to chance in training only."""
    return "bicubic" if data.interpolation == "random" else data.interpolation


class Examples(Dataset):
    """Prepared images of a source, by their places in the run.

    Args:
        images: the source.
        transform: PIL image -> uint8 tensor.
        recipe: of the data.
        seed: of augmentation; None draws nothing, and leaves an unreadable image out. Else the next one replaces it.
    """

    def __init__(self, images: Images, transform: Any, recipe: DataRecipe, seed: int | None) -> None:
        self.images, self.transform, self.seed = images, transform, seed
        self.mode = "L" if len(recipe.mean) == 1 else "RGB"
        self.allowed = int(recipe.corrupt_share * len(images))
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, places: list[Place]) -> Batch:
        found = [item for place in places if (item := self._get(place)) is not None]
        bad = dict(self.unreadable)
        if not found:
            return Batch(torch.empty(0), torch.empty(0, dtype=torch.long), [], bad)
        images, labels, kept = zip(*found, strict=True)
        return Batch(torch.stack(images), torch.tensor(labels), list(kept), bad)

    def _get(self, place: Place) -> tuple[Tensor, int, Place] | None:
        index, epoch, number = place
        read = self._read(index)
        while read is None:
            if self.seed is None:
                return None
            index = (index + 1) % len(self.images)
            read = self._read(index)
        if self.seed is not None:
            seed_cpu(self.seed, AUGMENT, epoch, number)
        return self.transform(read[0]), read[1], place

    def _read(self, index: int) -> tuple[Image.Image, int] | None:
        if index in self.unreadable:
            return None
        try:
            image, label = self.images.read(index)
            return image.convert(self.mode), label
        except UNREADABLE as error:
            self.unreadable[index] = f"{self.images.name(index)}: {error}"
            check_unreadable(self.unreadable, self.allowed, len(self.images))
            return None


def check_unreadable(unreadable: dict[int, str], allowed: int, total: int) -> None:
    """Raise UnreadableError where there are more than ``allowed`` of ``total``."""
    if len(unreadable) > allowed:
        names = "; ".join(list(unreadable.values())[:5])
        raise UnreadableError(
            f"{len(unreadable)} of {total} images cannot be read, and data.corrupt_share allows {allowed} ({names}): "
            "replace them, or raise data.corrupt_share to skip them."
        )


class TrainBatches:
    """The places of each batch that one process reads, from any step of any epoch on.

    Args:
        count: images of the source.
        recipe: batch size and repeats.
        seed: of the order.
        rank, processes: which of how many processes this is.
        parts: how many batches a process makes of its share, for gradient accumulation.
    """

    def __init__(
        self, count: int, recipe: DataRecipe, seed: int, rank: int = 0, processes: int = 1, parts: int = 1
    ) -> None:
        self.count, self.recipe, self.seed = count, recipe, seed
        self.shards = [part * processes + rank for part in range(parts)]
        self.total = processes * parts
        self.epoch, self.start = 1, 0

    @property
    def steps(self) -> int:
        """Steps of an epoch; an incomplete last batch is left out."""
        return self.count // self.recipe.batch

    def seek(self, epoch: int, step: int) -> None:
        """Go on with step ``step`` (from 0) of ``epoch``."""
        self.epoch, self.start = epoch, step

    def __len__(self) -> int:
        return (self.steps - self.start) * len(self.shards)

    def __iter__(self) -> Iterator[list[Place]]:
        order = epoch_order(self.count, self.seed, self.epoch, self.recipe.repeats).tolist()
        size = self.recipe.batch
        for step in range(self.start, self.steps):
            for shard in self.shards:
                numbers = [step * size + i for i in shard_of_batch(size, shard, self.total)]
                yield [(order[n], self.epoch, n) for n in numbers]


def epoch_order(count: int, seed: int, epoch: int, repeats: int = 1) -> Tensor:
    """Numbers of the images of an epoch: ``count`` of them, each ``repeats`` times in a row where it occurs."""
    generator = torch.Generator().manual_seed(key(seed, ORDER, epoch))
    return torch.randperm(count, generator=generator).repeat_interleave(repeats)[:count]


def shard_of_batch(size: int, shard: int, total: int) -> list[int]:
    """Which of a batch's ``size`` images part ``shard`` of ``total`` has: a stretch and, if it can, its mirror."""
    if size % (2 * total):
        width = size // total
        return list(range(shard * width, (shard + 1) * width))
    width = size // (2 * total)
    stretch = list(range(shard * width, (shard + 1) * width))
    return stretch + [size - 1 - i for i in reversed(stretch)]


def make_loader(examples: Examples, batches: Sequence[list[Place]] | TrainBatches, workers: int, pin: bool) -> Any:
    """A loader of `Batch`es; with workers they stay from epoch to epoch."""
    return DataLoader(
        examples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        persistent_workers=workers > 0,
        pin_memory=pin,
        generator=torch.Generator(),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def eval_batches(count: int, size: int, rank: int = 0, processes: int = 1) -> list[list[Place]]:
    """All images once, every ``processes``-th for each process, in batches of ``size``."""
    numbers = range(rank, count, processes)
    return [[(n, 0, n) for n in numbers[start : start + size]] for start in range(0, len(numbers), size)]


class Finish:
    """The last steps, on the device: uint8 (B, C, H, W) -> normalised float32, and erased rectangles in training.

    Args:
        data: mean and std.
        device: where to.
        augment: random erasing; none if None.
        seed: of erasing.
        channels_last: memory format of what comes out.
    """

    def __init__(
        self,
        data: DataRecipe,
        device: torch.device,
        augment: AugmentRecipe | None = None,
        seed: int = 0,
        channels_last: bool = False,
    ) -> None:
        self.mean, self.std = (255 * torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (data.mean, data.std))
        self.device, self.seed = device, seed
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.erasing = None
        if augment is not None and augment.random_erasing:
            mode, count = augment.random_erasing_mode, augment.random_erasing_count
            self.erasing = RandomErasing(augment.random_erasing, mode=mode, max_count=count, device=str(device))

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images = batch.images.to(self.device, non_blocking=True)
        images = images.to(torch.float32, memory_format=self.format).sub_(self.mean).div_(self.std)
        if self.erasing is not None:
            for image, (_, epoch, number) in zip(images, batch.places, strict=True):
                seed_erasing(self.seed, ERASE, epoch, number)
                self.erasing(image)
        return images, batch.labels.to(self.device, non_blocking=True)
