"""Judging a file of lower precision by real images: does it still answer as the model does?

Errors of eight bits are no rounding errors, and no relative tolerance tells a good file from a bad one. What does:

- accuracy on labelled images, which may drop by so many points against the original model;
- the share of images on which file and model name the same class, which must be well above what they would reach by
  chance: Cohen's kappa, (agreement - chance) / (1 - chance), of at least `KAPPA`. A file that answers at random, or
  always the same, has a kappa of zero (the negative control);
- where there are no labels, the error too: another image must make at least `CONTROL_MARGIN` times the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from .errors import ExportError, UnprovableError, VerificationError
from .folders import ImageSet
from .numbers import Outputs, outputs_of, relative_error
from .prepare import Prepared
from .protocol import Runner
from .shapes import Size

KAPPA = 0.5
CONTROL_MARGIN = 2.0
LEARNT = 0.1  # least kappa of a model with its labels
_BATCH = 16  # images a call, where the file takes any


class DropError(VerificationError):
    """A file of lower precision that loses more than it may."""


@dataclass(frozen=True)
class Judgement:
    """What a file does on real images, beside the original model.

    Attributes:
        images: how many.
        accuracy, original: shares that the file and the model get right; None without labels.
        agreement: share on which both name the same class; None where the outputs are no classes.
        chance: the share that answers as frequent, but independent, would agree on.
        error: median over the images of the relative error.
        control: median of the difference that another image makes.
        elsewhere: what is wrong at another size than that of the images; None where nothing is.
    """

    images: int
    accuracy: float | None
    original: float | None
    agreement: float | None
    chance: float | None
    error: float
    control: float
    elsewhere: str | None = None

    @property
    def drop(self) -> float | None:
        """Points of accuracy lost; negative where the file is better."""
        if self.accuracy is None or self.original is None:
            return None
        return 100 * (self.original - self.accuracy)

    def refusal(self, max_drop: float) -> str | None:
        """Why the file is not good enough; None where it is."""
        if not np.isfinite(self.error):
            return "its outputs hold NaN or infinity, or have another shape than the model's"
        if self.drop is not None and self.drop > max_drop + 1e-9:
            return f"{self.drop:.2f} points of accuracy are lost on {self.images} images; at most {max_drop:g} may be"
        if self.agreement is not None and _kappa(self.agreement, self.chance) < KAPPA:
            return f"it names the model's class on {self.agreement:.0%} of the images; chance gives {self.chance:.0%}"
        if self.drop is None and self.error * CONTROL_MARGIN > self.control:
            return f"its error is {self.error:.2f}, and another image makes a difference of {self.control:.2f} only"
        return self.elsewhere


class Judge:
    """Real images, with what the original model says of them.

    Args:
        prepared: the model.
        images: labelled or not; two at least.
        size: that they are prepared at.

    Raises:
        ImageError: a file that is no image.
        UnprovableError: the model names one class for all of them, so that agreement says nothing; or it gets no more
            of them right than by chance, so that there is no accuracy to lose.
    """

    def __init__(self, prepared: Prepared, images: ImageSet, size: Size) -> None:
        self.images, self.size = images, size
        batches = [outputs_of(prepared.original, batch) for batch in images.batches(size, _BATCH)]
        self.wanted = _joined(batches)
        self.classes = _classes(self.wanted)
        if self.classes is not None and len(set(self.classes.tolist())) < 2:
            raise UnprovableError(
                f"the model names the same class for all {len(images)} images of {images.folder}: give images "
                "of several classes, and the model trained weights (--checkpoint)."
            )

        if images.labels is not None:
            right, chance = _agreement(self.classes, np.array(images.labels))
            if right is not None and _kappa(right, chance) < LEARNT:
                raise UnprovableError(
                    f"the model itself gets {right:.0%} of {images.folder} right, chance {chance:.0%}: there is no "
                    "accuracy to lose. Give it weights trained for these classes: --checkpoint, --pretrained."
                )

    def __call__(self, runner: Runner, batch: int | None) -> Judgement:
        """Run a file on every image, ``batch`` at a time; any number if None.

        Raises:
            VerificationError: it does not run.
        """
        got = _joined([self._run(runner, images, batch) for images in self.images.batches(self.size, batch or _BATCH)])
        classes = _classes(got)
        agreement, chance = _agreement(classes, self.classes)
        count = len(self.images)
        others = [(i + count // 2) % count for i in range(count)]  # folders are sorted: mostly of another class
        return Judgement(
            images=count,
            accuracy=self._right(classes),
            original=self._right(self.classes),
            agreement=agreement,
            chance=chance,
            error=median(_error(got, i, self.wanted, i) for i in range(count)),
            control=median(_error(got, j, self.wanted, i) for i, j in enumerate(others)),
        )

    def _run(self, runner: Runner, images: torch.Tensor, batch: int | None) -> Outputs:
        """Outputs for some images; where the file takes ``batch`` only, the last one fills the places left over."""
        count = len(images)
        if batch is not None and count < batch:
            images = torch.cat([images, images[-1:].expand(batch - count, *images.shape[1:])])
        try:
            return [y[:count] for y in runner.outputs(images.numpy())]
        except Exception as error:  # each runtime has its own
            raise VerificationError(f"the file does not run: {str(error).splitlines()[0][:200]}") from error

    def _right(self, classes: np.ndarray | None) -> float | None:
        if classes is None or self.images.labels is None:
            return None
        return float(np.mean(classes == np.array(self.images.labels)))


def num_classes(outputs: Outputs) -> int:
    """How many classes logits tell apart.

    Raises:
        ExportError: these are no logits.
    """
    if (classes := _classes(outputs)) is None:
        raise ExportError(f"the outputs are no classes, but have shape {outputs[0].shape}: leave --labelled out.")
    return outputs[0].shape[1] if len(classes) else 0


def _joined(batches: list[Outputs]) -> Outputs:
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _classes(outputs: Outputs) -> np.ndarray | None:
    """The class of each image; None where the outputs are no logits."""
    logits = outputs[0]
    return logits.argmax(1) if len(outputs) == 1 and logits.ndim == 2 and logits.shape[1] > 1 else None


def _agreement(got: np.ndarray | None, wanted: np.ndarray | None) -> tuple[float | None, float | None]:
    if got is None or wanted is None:
        return None, None
    count = max(int(got.max()), int(wanted.max())) + 1
    shares = [np.bincount(classes, minlength=count) / len(classes) for classes in (got, wanted)]
    return float(np.mean(got == wanted)), float((shares[0] * shares[1]).sum())


def _kappa(agreement: float, chance: float | None) -> float:
    """How far above chance an agreement is: 0 for chance, 1 for full agreement."""
    chance = chance or 0.0
    return (agreement - chance) / max(1 - chance, 1e-9)


def _error(got: Outputs, i: int, wanted: Outputs, j: int) -> float:
    return relative_error([y[i : i + 1] for y in got], [y[j : j + 1] for y in wanted])
