"""Optional packages: imported where they are used, and named with their remedy when they are absent."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from .errors import MissingExtraError

# extra -> the packages (import names) that it brings
EXTRAS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "train": ("sklearn", "matplotlib", "pydantic"),
}


def available(package: str) -> bool:
    """Whether ``package`` (an import name) can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


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
