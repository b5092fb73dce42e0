"""Writing a model for a target with as many open axes as can be proved."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..zoo.errors import MixzooError
from ..zoo.files import remove
from .artifacts import clear, total_size
from .bundle import Bundle
from .capture import AXIS_INDEX, Capture, first_cause
from .check import explain
from .errors import ExportError, UnprovableError, VerificationError
from .judge import DropError
from .latency import Latency, time
from .lower import Attempt, Quality, write_lower
from .numbers import outputs_of, relative_error
from .patience import limited
from .precision import Precision
from .prepare import Prepared
from .protocol import Accelerated, BuiltAhead, FileFacts, Placed, Runner, Target, not_run_because
from .sensitivity import Fit
from .shapes import AXES, Axes, Case, Size, grid, proof_batch, proof_sizes, size_name
from .verify import Check, Reference, verify

_LEAST_TRACED = 288  # px: smaller maps shrink to one position or window inside, which torch.export takes for constant
PATIENCE = 900.0  # s; the slowest model of the zoo takes a third of it
_PROBED = 1e-2  # relative: a graph that is further off need not be converted; verification asks for more


@dataclass(frozen=True)
class Elsewhere:
    """A file, verified on an accelerator beside the processor.

    Attributes:
        by: what ran it, in words.
        checks: what was seen at each shape.
        placed: what of it the accelerator computes.
        latency: at the first shape, against PyTorch on the same device.
    """

    by: str
    checks: tuple[Check, ...]
    placed: Placed
    latency: Latency


@dataclass(frozen=True)
class Written:
    """One file, verified, or what it was made from where it cannot run here.

    Attributes:
        path: where it is.
        facts: what it says of itself.
        checks: what was seen at each shape.
        latency: at the first of them; None where the runtime itself does not run here.
        fit: of a file in lower precision, what it was judged by; None where it was not judged by real images.
        float_bytes: size of the float32 file of the same runtime and shapes; None where there is none.
        elsewhere: what was seen on an accelerator; None where there is none that the runtime uses.
    """

    path: Path
    facts: FileFacts
    checks: tuple[Check, ...]
    latency: Latency | None
    fit: Fit | None = None
    float_bytes: int | None = None
    elsewhere: Elsewhere | None = None


@dataclass(frozen=True)
class Outcome:
    """The files of a target.

    Attributes:
        files: one, or one for each fixed shape.
        axes: the open axes, each proved by a run at another size or batch.
        fixed: why wider sets of axes are not open, by set.
    """

    files: tuple[Written, ...]
    axes: Axes
    fixed: dict[Axes, str]


@dataclass(frozen=True)
class Job:
    """What to write.

    Attributes:
        prepared: the model.
        sizes: (height, width) pairs, pixels.
        batches: batch sizes.
        options: by name of the target.
        axes: those that may be left open.
        say: told what is being done, in a few words.
        patience: seconds of processor time to find a graph with open axes in; None for no limit.
        precision: of the files.
        quality: what those of lower precision are calibrated with and judged by.
        bundle: what an app needs beside the files; None where that is not asked for.
        floats: float32 files that are there already and verified, by target, open axes and name without suffix.
    """

    prepared: Prepared
    sizes: tuple[Size, ...]
    batches: tuple[int, ...]
    options: Mapping[str, Mapping[str, Any]]
    axes: Axes
    say: Callable[[str], None]
    patience: float | None = PATIENCE
    precision: str = "fp32"
    quality: Quality | None = None
    bundle: Bundle | None = None
    floats: dict[tuple[str, Axes, str], Path] = field(default_factory=dict)

    @property
    def real(self) -> Callable[[Size], Sequence[torch.Tensor]] | None:
        """Images that files are compared on, by their size; None where synthetic ones serve."""
        return self.quality.some if self.quality and self.precision == "int8" else None


def write(job: Job, target: Target, folder: Path) -> Outcome:
    """Write and verify ``job`` in ``folder``, trying the target's sets of open axes from the widest to the empty one.

    Raises:
        ExportError: not even fixed shapes can be written.
        VerificationError: not even files of fixed shapes do what the model does, or nothing can be proved.
        DropError: a file of lower precision loses too much.
    """
    reference = Reference(job.prepared, job.real)
    for size in job.sizes:
        if reason := reference.refuses(size):
            raise ExportError(f"{job.prepared.name} itself does not run at {size_name(size)}: {reason}")
    fixed: dict[Axes, str] = {}
    for axes in (axes for axes in target.axes if set(axes) <= set(job.axes)):
        try:
            return Outcome(_write_all(job, target, folder, reference, axes), axes, fixed)
        except ExportError as error:
            if isinstance(error, UnprovableError | DropError):
                raise
            if not axes:
                raise _explained(job, target, error) from error
            fixed[axes] = str(error)
            _clear(folder)
    raise AssertionError("the empty set of axes ends the loop")


def _explained(job: Job, target: Target, error: ExportError) -> ExportError:
    """The error with what the graph tells of its cause: operator, module and remedy. Runtimes often tell neither."""
    prepared = job.prepared
    example = torch.zeros(job.batches[0] if target.batched else 1, prepared.in_chans, *job.sizes[0])
    cause = explain(Capture(prepared.inference, example, ()), prepared.original, target.name)
    return type(error)(f"{str(error).rstrip('.')}. {target.title} does not take {cause}") if cause else error


@contextlib.contextmanager
def _read_by(target: Target, path: Path) -> Iterator[None]:
    """Give what a runtime raises when it reads a file one kind and the target's name."""
    try:
        yield
    except MixzooError:
        raise
    except Exception as error:  # each runtime has its own
        raise ExportError(f"{target.title} cannot read {path.name}: {first_cause(error)}") from error


def _write_all(job: Job, target: Target, folder: Path, reference: Reference, axes: Axes) -> tuple[Written, ...]:
    """A file for each combination of asked sizes and batches that ``axes`` leave fixed."""
    sizes = [job.sizes] if "height" in axes else [(size,) for size in job.sizes]
    batches = [job.batches] if "batch" in axes or not target.batched else [(batch,) for batch in job.batches]
    files = []
    for some_sizes in sizes:
        for some_batches in batches:
            parts = [size_name(some_sizes[0])] if len(sizes) > 1 else []
            parts += [f"b{some_batches[0]}"] if len(batches) > 1 else []
            parts += [job.precision] if job.precision != "fp32" else []
            path = folder / ("_".join([job.prepared.name, *parts]) + target.suffix)
            files.append(_write_one(job, target, path, reference, axes, some_sizes, some_batches))
    return tuple(files)


def _write_one(
    job: Job,
    target: Target,
    path: Path,
    reference: Reference,
    axes: Axes,
    sizes: tuple[Size, ...],
    batches: tuple[int, ...],
) -> Written:
    job.say(f"{target.name}: writing {path.name} with {describe_axes(axes)}")
    cases = _cases(reference, axes, sizes, batches)
    capture = Capture(job.prepared.inference, _example(reference, axes, sizes[0], batches[0]), axes, _greatest(cases))
    with limited(job.patience if axes else None):
        _probe(capture, reference)
    fit = _write_file(job, target, path, capture, reference, cases)
    with _read_by(target, path):
        facts = target.describe(path)
    _check_open(facts, axes)
    reason = not_run_because(target)
    job.say(f"{target.name}: running {'the source of ' if reason else ''}{path.name} at {len(cases)} shapes")
    runner = _load(target, path)
    checks = verify(reference, runner, cases, job.precision, _takes_one(target, axes))
    with _float_file(job, target, path, capture) as float_file:
        timed = target.timed and not reason
        before = _verified(job, target, float_file, cases[0]) if float_file and timed else None
        latency = time(reference, runner, cases[0], before) if timed else None
        size = total_size(float_file) if float_file else None
    return Written(
        path, facts, tuple(checks), latency, fit, size, _elsewhere(job, target, path, reference, axes, cases)
    )


def _elsewhere(
    job: Job, target: Target, path: Path, reference: Reference, axes: Axes, cases: Sequence[Case]
) -> Elsewhere | None:
    """Verify a file on the accelerator that its runtime finds here; None where there is none.

    Raises:
        VerificationError: it does not run there, or differs from the model.
    """
    if not isinstance(target, Accelerated) or (by := target.accelerator()) is None:
        return None
    job.say(f"{target.name}: running {path.name} by {by} at {len(cases)} shapes")
    images = torch.cat([reference.image(cases[0].size, index) for index in range(cases[0].batch)])
    try:
        with _read_by(target, path):
            runner = target.load_accelerated(path)
        checks = verify(reference, runner, cases, job.precision, _takes_one(target, axes))
        placed = target.placed(path, images.numpy())
    except ExportError as error:
        raise type(error)(f"by {by}: {error}") from error
    return Elsewhere(by, tuple(checks), placed, time(reference, runner, cases[0]))


def _takes_one(target: Target, axes: Axes) -> bool:
    """Whether a file takes a batch of one image, whatever it was written for."""
    return "batch" in axes or not target.batched


def _write_file(
    job: Job, target: Target, path: Path, capture: Capture, reference: Reference, cases: Sequence[Case]
) -> Fit | None:
    """Write the file of a capture in the precision asked for, as often as it takes."""

    def export(lowered: Capture) -> None:
        clear(path)
        with limited(job.patience if capture.axes else None):
            target.export(lowered, path, job.options.get(target.name, {}))

    if job.quality is None:
        export(capture.at(Precision(job.precision)))
        return None
    batched = "batch" not in capture.axes and target.batched
    attempt = Attempt(
        capture=capture,
        cases=cases,
        batch=capture.example.shape[0] if batched else None,
        write=export,
        load=lambda: _load(target, path),
        verify=lambda runner, some: verify(reference, runner, some, job.precision, _takes_one(target, capture.axes)),
        say=lambda text: job.say(f"{target.name}: {text}"),
    )
    return write_lower(attempt, job.precision, job.quality)


@contextlib.contextmanager
def _float_file(job: Job, target: Target, path: Path, capture: Capture) -> Iterator[Path | None]:
    """The float32 file of the same shapes, which is written for the while if there is none; of itself, None."""
    stem = path.stem.removesuffix(f"_{job.precision}")
    known = job.floats.get((target.name, capture.axes, stem))
    if job.precision == "fp32" or known or not target.timed or not_run_because(target):
        yield known
        return
    job.say(f"{target.name}: writing {stem}{target.suffix} to compare with")
    with tempfile.TemporaryDirectory(prefix="mixzoo-") as folder:
        file = Path(folder) / (stem + target.suffix)
        target.export(capture.at(Precision()), file, job.options.get(target.name, {}))
        yield file


def _verified(job: Job, target: Target, path: Path, case: Case) -> Runner:
    """A float32 file, loaded, which does what the model does at ``case``."""
    runner = _load(target, path)
    verify(Reference(job.prepared), runner, [case], takes_one=False)
    return runner


def _load(target: Target, path: Path) -> Runner:
    """The file in its runtime, or what it was made from where that cannot run here."""
    with _read_by(target, path):
        if isinstance(target, BuiltAhead) and target.cannot_run():
            return target.load_source(path, torch.get_num_threads())
        return target.load(path, torch.get_num_threads())


def _probe(capture: Capture, reference: Reference) -> None:
    """Before the slow conversion, see that the graph did not freeze what a larger input needs.

    By what it computes: torch.export also refuses shapes for which its graph holds all the same, such as maps that
    shrink to one position, and sides that divide where the example's did not.
    """
    batch, height, width = (capture.example.shape[AXIS_INDEX[axis]] for axis in AXES)
    size = (height + 32, width + 64) if "height" in capture.axes else (height, width)
    case = Case(batch + 1 if "batch" in capture.axes else batch, size, asked=False)
    if reference.refuses(size):
        return
    x = reference.image(size, 0).repeat(case.batch, 1, 1, 1)
    if reason := _frozen(capture, x):
        raise ExportError(f"the captured graph does not hold for {case}: {capture.refuses(x) or reason}")


def _frozen(capture: Capture, x: torch.Tensor) -> str | None:
    """Why the graph is not that of its module for ``x``; None if it is."""
    try:
        error = relative_error(outputs_of(capture.run, x), outputs_of(capture.module, x))
    except Exception as raised:  # whatever an operator raises
        return first_cause(raised)
    return None if error <= _PROBED else f"it differs from the model by {error:.1e}"


def _example(reference: Reference, axes: Axes, size: Size, batch: int) -> torch.Tensor:
    """An input to trace: two images where the batch is open, and no side so small that maps shrink to nothing."""
    if "height" in axes:
        larger = (max(size[0], _LEAST_TRACED), max(size[1], _LEAST_TRACED))
        size = size if reference.refuses(larger) else larger
    image = reference.image(size, 0)
    return image.repeat(2 if "batch" in axes else batch, 1, 1, 1)


def _cases(reference: Reference, axes: Axes, sizes: tuple[Size, ...], batches: tuple[int, ...]) -> list[Case]:
    """The asked shapes, and for each open axis one that was not asked for."""
    cases = grid(sizes, batches)
    if "batch" in axes and len(batches) < 2:
        cases.append(Case(proof_batch(batches), sizes[0], asked=False))
    if "height" not in axes:
        return cases
    proofs = [size for size in proof_sizes(sizes) if not reference.refuses(size)]
    if not proofs:
        raise VerificationError(f"the model itself runs at none of {', '.join(map(size_name, proof_sizes(sizes)))}")
    return cases + [Case(2 if "batch" in axes else batches[0], size, asked=False) for size in proofs]


def _greatest(cases: Iterable[Case]) -> dict[str, int]:
    """The greatest batch, height and width of ``cases``."""
    shapes = [(case.batch, *case.size) for case in cases]
    return {axis: max(sides) for axis, sides in zip(AXES, zip(*shapes, strict=True), strict=True)}


def _check_open(facts: FileFacts, axes: Axes) -> None:
    shape = facts.inputs[0].shape
    baked = [axis for axis in axes if isinstance(shape[AXIS_INDEX[axis]], int)]
    if baked:
        raise ExportError(f"the converter took {' and '.join(baked)} for constant")


def describe_axes(axes: Axes) -> str:
    """'batch, height and width open' and the like."""
    if not axes:
        return "every axis fixed"
    head = ", ".join(axes[:-1])
    return f"{f'{head} and ' if head else ''}{axes[-1]} open" + ("" if axes == AXES else ", the rest fixed")


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        remove(path)
