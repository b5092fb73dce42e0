"""Writing a model's functions as others while it is captured, for converters that know fewer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode


class Rewriting(TorchFunctionMode):
    """Calls what stands for a function in its place, as long as it is entered.

    Args:
        parts: by function, as `torch.overrides` names it (``torch.addcmul`` and ``Tensor.addcmul`` are two), what is
            called with the same arguments; inside of it nothing is replaced.
    """

    def __init__(self, parts: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.parts = parts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.parts.get(func, func)(*args, **(kwargs or {}))
