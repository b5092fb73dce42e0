"""Writing a file of lower precision, and judging it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .capture import Capture
from .errors import ExportError
from .folders import ImageSet
from .judge import DropError, Judge, Judgement
from .precision import Precision
from .prepare import Prepared
from .protocol import Runner
from .sensitivity import Fit, layers, put_back, rank_layers
from .shapes import Size

MAX_DROP = 1.0  # points of accuracy


class Quality:
    """What files of lower precision are calibrated with and judged by.

    Args:
        prepared: the model.
        calibration: images for the ranges of activations.
        labelled: images for accuracy.
        max_drop: points of accuracy that may be lost.
    """

    def __init__(
        self,
        prepared: Prepared,
        calibration: ImageSet | None = None,
        labelled: ImageSet | None = None,
        max_drop: float = MAX_DROP,
    ) -> None:
        self.prepared, self.calibration, self.labelled, self.max_drop = prepared, calibration, labelled, max_drop
        self._images: dict[Size, tuple[Tensor, ...]] = {}
        self._judges: dict[Size, Judge] = {}

    def images(self, size: Size) -> tuple[Tensor, ...]:
        """The images to calibrate with, float32 (1, C, H, W) each; none where there is no folder of them."""
        if self.calibration is None:
            return ()
        if size not in self._images:
            self._images[size] = tuple(self.calibration.images(size))
        return self._images[size]

    def judge(self, size: Size) -> Judge | None:
        """What judges files at ``size``: labelled images, or else those to calibrate with; None without either."""
        if (images := self.labelled or self.calibration) is None:
            return None
        if size not in self._judges:
            self._judges[size] = Judge(self.prepared, images, size)
        return self._judges[size]


@dataclass(frozen=True)
class Attempt:
    """How a file is written and run.

    Attributes:
        capture: the model, float32.
        size: that real images are prepared at.
        batch: how many images at a time the file takes; None for any number.
        write: writes the file of a capture, in place of the one before.
        load: the file that was written last, in its runtime.
        say: told what is being done.
    """

    capture: Capture
    size: Size
    batch: int | None
    write: Callable[[Capture], None]
    load: Callable[[], Runner]
    say: Callable[[str], None]


def write_lower(attempt: Attempt, precision: str, quality: Quality) -> Fit | None:
    """Write a file in ``precision`` and judge it by real images, where there are any to judge by.

    Raises:
        DropError: the file is not good enough, whatever stays in float.
    """
    if precision == "int8":
        return _quantise(attempt, quality)
    attempt.write(attempt.capture.at(Precision(precision)))
    if quality.labelled is None or precision == "fp32" or (judge := quality.judge(attempt.size)) is None:
        return None
    judgement = judge(attempt.load(), attempt.batch)
    if reason := judgement.refusal(quality.max_drop):
        raise DropError(f"in {precision} {reason}")
    return Fit((), 0, judgement)


def _quantise(attempt: Attempt, quality: Quality) -> Fit:
    images, module = quality.images(attempt.size), attempt.capture.module
    judge = quality.judge(attempt.size)
    assert judge is not None
    if not (count := len(layers(module))):
        raise ExportError("the model has no layers with weights, which are what eight bits are for")

    def once(keep: frozenset[str]) -> Judgement:
        attempt.say(f"quantising with {len(keep)} of {count} layers in float")
        attempt.write(attempt.capture.at(Precision("int8", images, keep)))
        return judge(attempt.load(), attempt.batch)

    return put_back(count, lambda: rank_layers(module, images), once, quality.max_drop)
