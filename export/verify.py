"""The one verification that every target goes through: does the written file do what the model does?

A file passes a case, which is an input shape, when

- on every image of the batch its outputs are within the tolerance of those that the original model, in the form it was
  trained in, gives for that image alone: ``max|a - b| / max|b|``, and all are finite;
- on other images its outputs are far from those (the negative control). A comparison that other images pass as well
  could not have failed, and proves nothing.

An image on which the original itself loses the tolerance to float32 rounding, which float64 shows, proves nothing
either: it is replaced, and the report says so.

How far is far depends on the precision (`BOUNDS`). float32 rounds to 6e-8, and 1e-4 is what some hundred operators make
of it. float16 rounds to 5e-4; the roundings of some hundred operators, which mostly cancel, make 1e-2 of it, and other
images must differ by ten times the error: what they make is seldom a hundred times 1e-2. Eight bits have no tolerance:
here a file need only be nearer to the model than an answer of zeros, and other images, the least alike of a few, must
make half as much again of a difference. That shows that the file runs and sees its input at this shape; whether it is
good enough is for `mixzoo.export.judge` to say.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ..blocks.deploy import deploy
from .errors import DiffersError, ExportError, UnprovableError, VerificationError
from .images import normalized, synthetic_image
from .numbers import Outputs, least_difference, outputs_of, relative_error
from .prepare import Prepared
from .protocol import Runner
from .shapes import Case, Size

__all__ = [
    "BOUNDS",
    "Bounds",
    "Check",
    "Reference",
    "relative_error",
    "synthetic_image",
    "verify",
]


@dataclass(frozen=True)
class Bounds:
    """What a file of some precision is held to.

    Attributes:
        tolerance: greatest relative error.
        control: least relative difference that another image must make.
        margin: ... and how many times the error it must be.
        exact: whether the tolerance says what is wrong, so that a control that fails is a fault of the model.
    """

    tolerance: float
    control: float
    margin: float
    exact: bool = True


BOUNDS = {"fp32": Bounds(1e-4, 1e-3, 100.0), "fp16": Bounds(1e-2, 1e-2, 10.0), "int8": Bounds(1.0, 1e-2, 1.5, False)}
_POOL = 8  # real images that a negative control is picked from
_SPARE_IMAGES = 4  # replacements that may be tried for an unstable image


@dataclass(frozen=True)
class Check:
    """What was seen at one input shape; errors are relative to the greatest absolute value of the original's output.

    Attributes:
        case: the shape.
        error: the greatest error of any output on any image.
        control: the least difference that other images made.
        top1: share of images whose greatest logit is the same; None where there are no logits.
        batch_error: greatest difference between an image's outputs in the batch and on its own, both from the file;
            None where the file cannot take one image.
        replaced: images that proved nothing, since the original is unstable there, and were replaced.
    """

    case: Case
    error: float
    control: float
    top1: float | None = None
    batch_error: float | None = None
    replaced: int = 0


class Reference:
    """The original model, and images to compare with: always the same ones for a size.

    Args:
        prepared: the model.
        real: images of a size as the model takes them, (1, C, H, W) each, instead of synthetic ones: eight bits have
            room for what a model was calibrated with, and for nothing else.
    """

    def __init__(self, prepared: Prepared, real: Callable[[Size], Sequence[Tensor]] | None = None) -> None:
        self.prepared = prepared
        self.real = real
        self._outputs: dict[tuple[Size, int], Outputs] = {}
        self._double: nn.Module | None = None

    @cached_property
    def deployed(self) -> nn.Module:
        """PyTorch's own deploy form, what a file's speed is compared with."""
        return deploy(self.prepared.original)

    def deployed_on(self, device: str) -> nn.Module:
        """The same on another device."""
        return self.deployed if device == "cpu" else copy.deepcopy(self.deployed).to(device)

    def image(self, size: Size, index: int) -> Tensor:
        """Image ``index`` of a size as the model takes it, float32 (1, C, H, W)."""
        p = self.prepared
        if self.real:
            images = self.real(size)
            return images[index % len(images)]
        image = synthetic_image(p.in_chans, size, index)
        return image if p.preprocess else normalized(image, p.mean, p.std)

    def outputs(self, size: Size, index: int) -> Outputs:
        """What the model gives for that image alone, in float32."""
        if (size, index) not in self._outputs:
            self._outputs[size, index] = outputs_of(self.prepared.original, self.image(size, index))
        return self._outputs[size, index]

    def unlike(self, size: Size, images: Sequence[int]) -> list[int]:
        """Another image for each of ``images``: of real ones, which may be of one class, the least like it of a few."""
        if not self.real:
            return [max(images) + 1 + i for i in range(len(images))]
        pool = range(min(_POOL, len(self.real(size))))
        return [max(pool, key=lambda j: least_difference(self.outputs(size, j), self.outputs(size, i))) for i in images]

    def refuses(self, size: Size) -> str | None:
        """Why the model itself does not run at ``size``; None where it does."""
        try:
            self.outputs(size, 0)
        except ExportError:
            raise
        except Exception as error:  # whatever a model raises
            return str(error).split("\n", 1)[0] or type(error).__name__
        return None

    def stable(self, size: Size, index: int, tolerance: float) -> bool:
        """Whether float32 rounding inside the original moves its outputs by less than a tenth of ``tolerance``."""
        if self._double is None:
            self._double = copy.deepcopy(self.prepared.original).double()
        exact = outputs_of(self._double, self.image(size, index).double())
        return relative_error(self.outputs(size, index), exact) < tolerance / 10


def verify(
    reference: Reference, runner: Runner, cases: Sequence[Case], precision: str = "fp32", takes_one: bool = True
) -> list[Check]:
    """Run a written file at every case, and before them with one image if it takes that: its plans have to grow then.

    Args:
        reference: what it is compared with.
        runner: the file in its runtime.
        cases: the shapes.
        precision: key of `BOUNDS`.
        takes_one: whether the file takes a batch of one image as well, whatever the case.

    Raises:
        VerificationError: it does not run at a case, or differs.
        UnprovableError: the model's outputs are such that no file of it could be told from a wrong one.
    """
    if takes_one and cases[0].batch > 1:
        _run(reference, runner, cases[0]._replace(batch=1), [0])
    return [_check(reference, runner, case, BOUNDS[precision], takes_one) for case in cases]


def _check(reference: Reference, runner: Runner, case: Case, bounds: Bounds, takes_one: bool) -> Check:
    images, got, replaced = _agreement(reference, runner, case, bounds.tolerance)
    wanted = [reference.outputs(case.size, i) for i in images]
    error = max(relative_error(a, b) for a, b in zip(got, wanted, strict=True))
    others = _run(reference, runner, case, reference.unlike(case.size, images))
    control = min(least_difference(a, b) for a, b in zip(others, wanted, strict=True))
    if control < bounds.margin * error and not bounds.exact:
        raise DiffersError(
            f"with {case} the file differs from the model by {error:.2f}; another image makes {control:.2f} only"
        )
    if not control >= max(bounds.control, bounds.margin * error):
        raise UnprovableError(
            f"nothing is proved by {case}: another image changes the outputs by {control:.1e} only, so that a file "
            f"with an error of {error:.1e} cannot be told from a wrong one. Give the model trained weights: checkpoint."
        )
    alone = takes_one and case.batch > 1
    return Check(
        case,
        error,
        control,
        top1=_top1(got, wanted),
        batch_error=_batch_error(reference, runner, case, images, got) if alone else None,
        replaced=replaced,
    )


def _agreement(
    reference: Reference, runner: Runner, case: Case, tolerance: float
) -> tuple[list[int], list[Outputs], int]:
    """Images on which the file agrees with the model, the file's outputs, and how many images were unstable."""
    images = list(range(case.batch))
    for replaced in range(_SPARE_IMAGES + 1):
        got = _run(reference, runner, case, images)
        errors = [relative_error(a, reference.outputs(case.size, i)) for a, i in zip(got, images, strict=True)]
        worst = int(np.argmax(errors))
        if errors[worst] <= tolerance:
            return images, got, replaced
        if reference.stable(case.size, images[worst], tolerance):
            raise DiffersError(_differs(case, errors[worst], tolerance))
        images[worst] = max(images) + 1
    raise UnprovableError(
        f"{case} cannot be verified: float32 rounding alone moves the model's own outputs by more than "
        f"{tolerance / 10:.0e} on {_SPARE_IMAGES + 1} images. Give the model trained weights: checkpoint."
    )


def _differs(case: Case, error: float, tolerance: float) -> str:
    if np.isinf(error):
        return f"with {case} the file's outputs hold NaN or infinity, or have another shape than the model's"
    return f"with {case} the file differs from the model by {error:.1e} (relative; at most {tolerance:.0e} passes)"


def _run(reference: Reference, runner: Runner, case: Case, images: list[int]) -> list[Outputs]:
    """The file's outputs for a batch of images, image by image."""
    batch = torch.cat([reference.image(case.size, i) for i in images]).numpy()
    try:
        outputs = runner.outputs(batch)
    except Exception as error:  # each runtime has its own
        reason = str(error).split("\n", 1)[0][:200]
        raise VerificationError(f"with {case} the file does not run: {reason}") from error
    if any(len(y) != len(batch) for y in outputs):
        raise VerificationError(f"with {case} the file gives outputs of shapes {[y.shape for y in outputs]}")
    return [[y[i : i + 1] for y in outputs] for i in range(len(batch))]


def _batch_error(reference: Reference, runner: Runner, case: Case, images: list[int], batched: list[Outputs]) -> float:
    alone = [_run(reference, runner, case._replace(batch=1), [i])[0] for i in images]
    return max(relative_error(a, b) for a, b in zip(batched, alone, strict=True))


def _top1(got: list[Outputs], wanted: list[Outputs]) -> float | None:
    if wanted[0][0].ndim != 2 or wanted[0][0].shape[1] < 2:
        return None
    return float(np.mean([a[0].argmax() == b[0].argmax() for a, b in zip(got, wanted, strict=True)]))
