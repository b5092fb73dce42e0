"""The forms a model can be timed in. A form that cannot run says why, and its row in the report carries the reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..blocks.deploy import deploy
from ..export.verify import synthetic_image
from ..zoo.errors import UnknownNameError
from ..zoo.extras import available, require

Run = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """A model that is timed, told in a way that another process can make it again.

    Attributes:
        make: builds the model in eval mode, always with the same weights; picklable.
        to_onnx: writes the model to an ONNX file in a folder, for inputs like the given one.
        folder: where that ONNX file is, or is written the first time.
    """

    make: Callable[[], nn.Module]
    to_onnx: Callable[[nn.Module, torch.Tensor, Path], object]
    folder: Path

    def onnx_file(self, x: torch.Tensor) -> Path:
        """The model as ONNX, for inputs like ``x``."""
        if not (found := next(self.folder.glob("*.onnx"), None)):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.to_onnx(self.make(), x, self.folder)
            found = next(self.folder.glob("*.onnx"))
        return found


@dataclass(frozen=True)
class Form:
    """One way to run a model.

    Attributes:
        name: as in ``--form``.
        unavailable: the reason why this machine cannot run the form, or None where it can.
        build: (subject, input (B, C, H, W), threads) -> a call without arguments that gives logits (B, num_classes).
        description: one sentence.
    """

    name: str
    unavailable: Callable[[], str | None]
    build: Callable[[Subject, torch.Tensor, int], Run]
    description: str


def get_form(name: str) -> Form:
    """The form called ``name``.

    Raises:
        UnknownNameError: no such form; the message has near names.
    """
    if name not in FORMS:
        raise UnknownNameError("form", name, FORMS, f"Forms: {', '.join(FORMS)}.")
    return FORMS[name]


def example(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Normalised images (B, C, H, W), always the same ones."""
    images = [synthetic_image(channels, (height, width), index) for index in range(batch)]
    return (torch.cat(images) - 0.45) / 0.22


def _always() -> str | None:
    return None


def _no_compiler() -> str | None:
    compilers = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    if any(name and shutil.which(name) for name in compilers):
        return None
    return "torch.compile needs a C++ compiler: install g++ or clang, or point CXX at one"


def _no_onnxruntime() -> str | None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not available(name)]
    return f"{' and '.join(missing)} not installed: pip install 'mixzoo[onnx]'" if missing else None


def _torch_run(model: nn.Module, x: torch.Tensor) -> Run:
    def run() -> torch.Tensor:
        with torch.inference_mode():
            return first_output(model(x))

    return run


def first_output(outputs: Any) -> torch.Tensor:
    """The logits of a model that gives one tensor or several."""
    return outputs[0] if isinstance(outputs, tuple | list) else outputs


def _eager(subject: Subject, x: torch.Tensor, threads: int) -> Run:
    return _torch_run(subject.make(), x)


def _deploy(subject: Subject, x: torch.Tensor, threads: int) -> Run:
    return _torch_run(deploy(subject.make()), x)


def _compile(subject: Subject, x: torch.Tensor, threads: int) -> Run:
    return _torch_run(deploy(subject.make(), compile=True), x)


def _onnxruntime(subject: Subject, x: torch.Tensor, threads: int) -> Run:
    session = _session(subject.onnx_file(x), threads)
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _session(file: Path, threads: int) -> Any:
    """An ONNX Runtime session whose threads rest between calls, so that they do not slow the other candidates."""
    runtime = require("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form("eager", _always, _eager, "the model as it trains, in eval mode"),
        Form("deploy", _always, _deploy, "mixzoo.deploy(model)"),
        Form("compile", _no_compiler, _compile, "mixzoo.deploy(model, compile=True)"),
        Form("onnxruntime", _no_onnxruntime, _onnxruntime, "the exported ONNX file in ONNX Runtime"),
    )
}
