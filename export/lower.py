"""Writing a file of lower precision, and judging it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from .capture import Capture
from .errors import DiffersError, ExportError, VerificationError
from .folders import ImageSet
from .judge import DropError, Judge, Judgement
from .precision import Precision
from .prepare import Prepared
from .protocol import Runner
from .ranges import moved
from .sensitivity import Fit, layers, put_back, rank_layers
from .shapes import Case, Size

MAX_DROP = 1.0  # points of accuracy
_SOME = 16  # images
_FLOAT = 0.5  # share of layers that may stay in float to have heights and widths open: fixed ones need fewer


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
        self._images: dict[tuple[Size, int], tuple[Tensor, ...]] = {}
        self._judges: dict[Size, Judge] = {}

    def images(self, size: Size) -> tuple[Tensor, ...]:
        """The images to calibrate with, float32 (1, C, H, W) each; none where there is no folder of them."""
        return self._prepared(size, len(self.calibration)) if self.calibration else ()

    def some(self, size: Size) -> tuple[Tensor, ...]:
        """A few of `images`, of all classes: enough to compare with, and to have ranges by."""
        return self._prepared(size, _SOME)

    def _prepared(self, size: Size, count: int) -> tuple[Tensor, ...]:
        if self.calibration is None:
            return ()
        if (size, count) not in self._images:
            self._images[size, count] = tuple(self.calibration.spread(count).images(size))
        return self._images[size, count]

    def ranges(self, cases: Sequence[Case]) -> tuple[Tensor, ...]:
        """Images of every size of ``cases``, since ranges of activations move with the size of maps.

        All of them at sizes that were asked for, and `some` at those that only prove an axis.
        """
        asked = {case.size for case in cases if case.asked}
        sizes = dict.fromkeys(case.size for case in cases)
        return tuple(image for size in sizes for image in (self.images if size in asked else self.some)(size))

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
        cases: the shapes that the file is run at; it is calibrated at all of them, and judged at the first one's size.
        batch: how many images at a time the file takes; None for any number.
        write: writes the file of a capture, in place of the one before.
        load: the file that was written last, in its runtime.
        verify: compares a file with the model at some of the shapes.
        say: told what is being done.
    """

    capture: Capture
    cases: Sequence[Case]
    batch: int | None
    write: Callable[[Capture], None]
    load: Callable[[], Runner]
    verify: Callable[[Runner, Sequence[Case]], object]
    say: Callable[[str], None]

    @property
    def size(self) -> Size:
        """What real images are judged at."""
        return self.cases[0].size

    @property
    def several(self) -> bool:
        """Whether the file is for several sizes."""
        return any(case.size != self.size for case in self.cases)

    def elsewhere(self, runner: Runner) -> str | None:
        """What is wrong with the file at other sizes than `size`; None where nothing is.

        Raises:
            VerificationError: something is wrong at that size, or it does not run at another.
        """
        self.verify(runner, [case for case in self.cases if case.size == self.size])
        try:
            self.verify(runner, [case for case in self.cases if case.size != self.size])
        except DiffersError as error:
            return str(error)
        return None


def write_lower(attempt: Attempt, precision: str, quality: Quality) -> Fit | None:
    """Write a file in ``precision`` and judge it by real images, where there are any to judge by.

    Raises:
        DropError: the file is not good enough, whatever stays in float.
        VerificationError: one for several sizes is not, or not with so many layers in float that it would be for less.
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
    images, module = quality.ranges(attempt.cases), attempt.capture.module
    judge = quality.judge(attempt.size)
    assert judge is not None
    if not (count := len(layers(module))):
        raise ExportError("the model has no layers with weights, which are what eight bits are for")

    def once(keep: frozenset[str]) -> Judgement:
        attempt.say(f"quantising with {len(keep)} of {count} layers in float")
        attempt.write(attempt.capture.at(Precision("int8", images, keep)))
        runner = attempt.load()
        judgement = judge(runner, attempt.batch)
        if not attempt.several or judgement.refusal(quality.max_drop):
            return judgement
        return replace(judgement, elsewhere=attempt.elsewhere(runner))

    def ranked() -> list[str]:
        return rank_layers(module, images)

    if not attempt.several:
        return put_back(count, ranked, once, quality.max_drop)
    try:
        return put_back(count, ranked, once, quality.max_drop, most=int(_FLOAT * count))
    except DropError as error:
        cause = moved(module, layers(module), images)
        raise VerificationError(f"{error}{f' The {cause}.' if cause else ''}") from error
