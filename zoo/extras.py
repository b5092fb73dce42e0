"""Optional packages: imported where they are used, and named with their remedy when they are absent."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from .errors import MissingExtraError

# extra -> the packages (import names) that it brings
EXTRAS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "nncf"),
    "litert": ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
    "executorch": ("executorch", "torchao"),
    "ncnn": ("ncnn", "pnnx"),
    "coreml": ("coremltools",),
    "tensorrt": ("tensorrt_rtx",),
    "segmentation": ("segmentation_models_pytorch",),
    "train": ("sklearn", "matplotlib", "pydantic", "accelerate", "tensorboard"),
}


def available(package: str) -> bool:
    """Whether ``package`` (an import name) can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def missing(extra: str, doing: str) -> str | None:
    """Which packages of ``extra`` are not installed, with the command that installs them; None where all are there.

    Args:
        extra: a key of `EXTRAS`.
        doing: what needs them, as the beginning of the sentence: "Exporting to ONNX".
    """
    absent = [name for name in EXTRAS[extra] if not available(name)]
    return f"{doing} needs {' and '.join(absent)}: pip install 'mixzoo[{extra}]'" if absent else None


def require(package: str, extra: str) -> ModuleType:
    """Import and return ``package``.

    Raises:
        MissingExtraError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"This needs {package!r}, which is not installed: pip install 'mixzoo[{extra}]'"
        ) from error
