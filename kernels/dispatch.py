"""How a functional op chooses what runs: a plain reference, and faster candidates that say when they do not apply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

MAX_TRITON_WIDTH = 128  # channels of a head
_TRITON_DTYPES = {torch.float32, torch.float16, torch.bfloat16}


@dataclass(frozen=True)
class Candidate:
    """A faster implementation of an op.

    Attributes:
        name: what `explain` calls it.
        run: same signature as the op's reference.
        unsupported: same arguments; the reason it does not apply, or None when it does.
    """

    name: str
    run: Callable[..., Tensor]
    unsupported: Callable[..., str | None]


@dataclass(frozen=True)
class Op:
    """A functional op: the first applicable candidate runs, and the reference under export or when none applies.

    Attributes:
        name: as in ``mixzoo bench --op``.
        reference: the equation in plain PyTorch.
        candidates: faster implementations, the one to prefer first.
        sample: (side, heads, dim) -> (args, kwargs) for a map of side x side tokens at batch 1, to measure with.
        exported: what runs under export instead of a reference that is slow, or has no operators, in other runtimes.
    """

    name: str
    reference: Callable[..., Tensor]
    candidates: Sequence[Candidate]
    sample: Callable[[int, int, int], tuple[tuple[Any, ...], dict[str, Any]]]
    exported: Callable[..., Tensor] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if exporting():
            return (self.exported or self.reference)(*args, **kwargs)
        for candidate in self.candidates:
            if candidate.unsupported(*args, **kwargs) is None:
                return candidate.run(*args, **kwargs)
        return self.reference(*args, **kwargs)

    def explain(self, *args: Any, **kwargs: Any) -> dict[str, str | None]:
        """For each candidate, in order: why it is not taken for these arguments, or None."""
        return {c.name: c.unsupported(*args, **kwargs) for c in self.candidates}


def triton_unsupported(width: int, *operands: Tensor) -> str | None:
    """Why no Triton kernel takes ``operands`` with heads ``width`` channels wide here, or None."""
    device, dtypes = operands[0].device.type, {t.dtype for t in operands}
    if device != "cuda":
        return f"the Triton kernel runs on CUDA, not on {device}"
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if len(dtypes) > 1 or not dtypes <= _TRITON_DTYPES:
        names = ", ".join(str(t.dtype) for t in operands)
        return f"the Triton kernel takes operands of one type of at most 32 bits, not {names}"
    if width > MAX_TRITON_WIDTH:
        return f"heads wider than {MAX_TRITON_WIDTH} channels do not fit the registers of a program"
    return None


def exporting() -> bool:
    """Whether a graph is being captured for another runtime, where only plain operators should appear."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]
