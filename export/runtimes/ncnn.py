"""ncnn: ``.param`` with its weights in ``.bin`` beside it, converted by pnnx, run by ncnn on the CPU.

ncnn has no batch axis: a file takes one image, and the runner gives it the images of a batch one after another. Height
and width are fixed. Weights are float32 or float16, as pnnx writes them; the runner computes in float32 whatever the
weights are. Left to its own options ncnn computes in float16 or bfloat16 where the processor can, which is faster, but
large activations overflow in it: of that nothing is proved here.
"""

from __future__ import annotations

import math
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...zoo.extras import require
from ..capture import Capture, first_cause, quiet
from ..errors import ExportError
from ..numbers import outputs_of
from ..options import check_options
from ..protocol import FileFacts, Runner, Target, TensorInfo
from ..rewriting import Rewriting
from .ncnn_parts import PARTS, RANKS
from .ncnn_text import INPUT, finite, input_shape, layers_of, made_by, reshaped, with_shape

_NO_EIGHT_BITS = (
    "ncnn's quantiser, the programs ncnn2table and ncnn2int8, is not in its Python packages: build them from ncnn's "
    "sources and give them the .param and .bin files that are written in fp32, or take fp16."
)
_LIMIT = 600  # seconds for pnnx: what works takes a few
_HALF = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage")
_OUTPUT = "out"  # how pnnx names what the model returns
_NOT_COUNTED = (INPUT, "MemoryData", "Split")  # they hold and name tensors


class NcnnRunner(Runner):
    """An ncnn file on the CPU, in float32; it runs a batch image by image.

    Args:
        path: the ``.param`` file.
        threads: that it may use; ncnn's choice by default.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.ncnn = require("ncnn", extra="ncnn")
        self.net = self.ncnn.Net()
        for option in _HALF:
            setattr(self.net.opt, option, False)
        if threads is not None:
            self.net.opt.num_threads = threads
        if self.net.load_param(str(path)) or self.net.load_model(str(path.with_suffix(".bin"))):
            raise RuntimeError(f"ncnn cannot read {path.name}")
        self.input_name = self.net.input_names()[0]
        names = [name for name in self.net.output_names() if name.startswith(_OUTPUT)]  # not parts that nothing reads
        self.output_names = sorted(names, key=lambda name: int(name.removeprefix(_OUTPUT)))

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 images (B, C, H, W) -> every output, computed image by image."""
        images = [self.tensors(image, self.output_names) for image in x]
        return [np.stack(output) for output in zip(*images, strict=True)]

    def tensors(self, image: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
        """One image (C, H, W) -> the tensors called ``names``, which have no batch axis.

        Raises:
            RuntimeError: ncnn cannot compute one.
        """
        extractor = self.net.create_extractor()
        extractor.set_light_mode(False)
        extractor.input(self.input_name, self.ncnn.Mat(np.ascontiguousarray(image)).clone())
        return [self._extract(extractor, name) for name in names]

    def _extract(self, extractor: Any, name: str) -> np.ndarray:
        code, tensor = extractor.extract(name)
        if code:
            raise RuntimeError(f"ncnn cannot compute {name}: it gives code {code}")
        return np.array(tensor)


class NcnnTarget(Target):
    """``.param`` and ``.bin`` files. It has no options."""

    name = "ncnn"
    title = "ncnn"
    extra = "ncnn"
    suffix = ".param"
    batched = False
    precisions: Sequence[str] = ("fp32", "fp16")
    refused: Mapping[str, str] = {"int8": _NO_EIGHT_BITS}
    packages: Sequence[str] = ("ncnn", "pnnx")
    runtime = "ncnn on the CPU, in float32, image by image"
    undivided = "ncnn computes every layer itself"

    def export(self, capture: Capture, path: Path, options: Mapping[str, Any]) -> None:
        """Write ``capture``, for one image; see `Target.export`."""
        check_options(self.name, options)
        image = capture.example[:1]
        with TemporaryDirectory() as folder:
            traced = Path(folder) / "model.pt"
            _trace(capture.module, image, traced)
            _convert(traced, image, path, half=capture.precision.name == "fp16")
        path.write_text(finite(with_shape(path.read_text(), image.shape[1:])))
        _check_layers(path)
        _shape_outputs(path, capture.module, image)

    def load(self, path: Path, threads: int | None = None) -> NcnnRunner:
        """The files in ncnn."""
        return NcnnRunner(path, threads)

    def describe(self, path: Path) -> FileFacts:
        """What the files say of themselves, and the shapes that a run with a black image shows."""
        text = path.read_text()
        layers, shape = layers_of(text), input_shape(text)
        runner = NcnnRunner(path)
        black = np.zeros(shape, dtype=np.float32)
        ranks = [t.ndim for t in runner.tensors(black, [name for layer in layers for name in made_by(layer)])]
        outputs = dict(zip(runner.output_names, runner.tensors(black, runner.output_names), strict=True))
        counted = Counter(layer[0] for layer in layers if layer[0] not in _NOT_COUNTED)
        return FileFacts(
            inputs=(TensorInfo(runner.input_name, "float32", (1, *shape)),),
            outputs=tuple(TensorInfo(name, "float32", (1, *t.shape)) for name, t in outputs.items()),
            operators=dict(counted.most_common()),
            max_rank=max(ranks),
        )


# writing


def _trace(module: nn.Module, image: Tensor, path: Path) -> None:
    try:
        with quiet(), torch.no_grad(), _inlined(module, image):
            whole = _Listed.of(module, image)
            with Rewriting(PARTS):
                torch.jit.trace(whole, image, check_trace=False, strict=False).save(str(path))
    except Exception as error:  # whatever tracing raises
        raise ExportError(f"torch.jit.trace cannot capture the model: {first_cause(error)}") from error


class _Listed(nn.Module):
    """A module with a tuple for its list of outputs, of which pnnx makes one expression with what was computed last."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @classmethod
    def of(cls, module: nn.Module, image: Tensor) -> nn.Module:
        """``module`` itself where it does not give a list."""
        return cls(module) if isinstance(module(image), list) else module

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(x))


class _Linear(nn.Linear):
    """A layer that pnnx, which knows it by the name of its class, takes for the operators that it is made of."""


@contextmanager
def _inlined(module: nn.Module, image: Tensor) -> Iterator[None]:
    """Let pnnx look into the linear layers of ``module`` whose input has many axes, and is read as one of few."""
    many: dict[nn.Linear, None] = {}

    def note(layer: nn.Linear, args: tuple[Tensor, ...]) -> None:
        if args[0].ndim > RANKS.most:
            many[layer] = None

    hooks = [m.register_forward_pre_hook(note) for m in module.modules() if type(m) is nn.Linear]
    module(image)
    for hook in hooks:
        hook.remove()
    for layer in many:
        layer.__class__ = _Linear
    try:
        yield
    finally:
        for layer in many:
            layer.__class__ = nn.Linear


def _convert(traced: Path, image: Tensor, path: Path, half: bool) -> None:
    """Run pnnx in a process of its own, which may crash, and keep the two files that ncnn reads.

    Args:
        traced: a file of TorchScript.
        image: an input.
        path: of the ``.param`` file.
        half: whether weights are rounded to float16.
    """
    shape = ",".join(map(str, image.shape))
    weights = path.with_suffix(".bin")
    command = [require("pnnx", extra="ncnn").EXEC_PATH, traced.name, f"inputshape=[{shape}]f32", f"fp16={half:d}"]
    command += [f"ncnnparam={path.resolve()}", f"ncnnbin={weights.resolve()}"]
    try:
        done = subprocess.run(command, cwd=traced.parent, capture_output=True, text=True, timeout=_LIMIT)
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"pnnx did not finish in {_LIMIT} s{_stage(error.stderr)}, and was stopped") from error
    if done.returncode:
        raise ExportError(f"pnnx {_ending(done)}{_stage(done.stderr)}")
    if not (path.is_file() and weights.is_file()):
        raise ExportError(f"pnnx wrote no ncnn files{_stage(done.stderr)}: {_last_line(done.stderr)}")


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"crashed with {signal.Signals(-done.returncode).name}"
    return f"failed with code {done.returncode} ({_last_line(done.stderr)})"


def _stage(log: str | bytes | None) -> str:
    """In which of its passes pnnx was, from what it printed."""
    text = log.decode(errors="replace") if isinstance(log, bytes) else log or ""
    passes = [line.strip("# ") for line in text.splitlines() if line.startswith("#####")]
    return f" in its {passes[-1]}" if passes else ""


def _last_line(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith("#")]
    return lines[-1].strip()[:200] if lines else "it does not say why"


def _check_layers(path: Path) -> None:
    """See that ncnn has every layer: pnnx writes those that it cannot convert under PyTorch's names."""
    ncnn = require("ncnn", extra="ncnn")
    kinds = Counter(layer[0] for layer in layers_of(path.read_text()))
    unknown = {kind: count for kind, count in kinds.most_common() if ncnn.layer_to_index(kind) < 0}
    if unknown:
        listed = ", ".join(f"{kind} {count}" for kind, count in unknown.items())
        raise ExportError(f"ncnn has no layer for what pnnx left in PyTorch's form: {listed}")


def _shape_outputs(path: Path, module: nn.Module, image: Tensor) -> None:
    """Give outputs their shapes: pnnx leaves an axis of one where it takes another axis for the batch's."""
    try:
        runner = NcnnRunner(path)
        got = runner.outputs(image.numpy())
    except RuntimeError:
        return  # verification says what is wrong
    wanted = [tuple(y.shape[1:]) for y in outputs_of(module, image)]
    differ = {
        name: shape
        for name, shape, y in zip(runner.output_names, wanted, got, strict=False)
        if y.shape[1:] != shape and y[0].size == math.prod(shape) and 1 <= len(shape) <= 4
    }
    if differ:
        path.write_text(reshaped(path.read_text(), differ))
