"""Where a number that is not finite comes from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


def finite(value: Any) -> bool:
    """Whether every number in tensors, or in lists and dicts of them, is finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(finite(item) for item in value.values())
    return all(finite(item) for item in value) if isinstance(value, tuple | list) else True


@torch.no_grad()
def first_not_finite(model: nn.Module, images: Tensor, precision: AbstractContextManager[Any]) -> str:
    """What in ``model`` is first not finite for images (B, C, H, W), as the end of a sentence.

    The innermost module is named whose output is not finite. The model's mode stays as it is; one that is compiled runs
    as it was before, so that every module is seen.
    """
    if not finite(images):
        return "the images themselves are not finite"
    broken = [name for name, parameter in model.named_parameters() if not finite(parameter)]
    if broken:
        return f"the weights {broken[0]!r} are not finite any more"
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> Any:
        def see(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not finite(output):
                found.append(f"the first module whose output is not finite is {name!r} ({type(module).__name__})")

        return module.register_forward_hook(see)

    hooks = [watch(name or "the model", module) for name, module in model.named_modules()]
    try:
        with precision, torch.compiler.set_stance("force_eager"):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "every module's output is finite: it is the loss alone that is not"
