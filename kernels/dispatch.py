"""How a functional op chooses what runs: a plain reference, and faster candidates that say when they do not apply.

What other tools see of an op:

    torch.export, torch.jit.trace   the reference, or what the op names instead: plain operators that every runtime has
    torch.compile                   the operators of the chosen candidate, which the compiler fuses as it likes; one
                                    node of the library ``mixzoo`` where the candidate is `opaque`
    tensors without data            the shape of the result
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
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
        sample: (side, heads, dim, batch=1) -> (args, kwargs) for maps of side x side tokens, to measure with.
        exported: what runs under export instead of a reference that is slow, or has no operators, in other runtimes.
    """

    name: str
    reference: Callable[..., Tensor]
    candidates: Sequence[Candidate]
    sample: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
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
    if not _has_triton():
        return "triton is not installed: pip install triton"
    if len(dtypes) > 1 or not dtypes <= _TRITON_DTYPES:
        names = ", ".join(str(t.dtype) for t in operands)
        return f"the Triton kernel takes operands of one type of at most 32 bits, not {names}"
    if width > MAX_TRITON_WIDTH:
        return f"heads wider than {MAX_TRITON_WIDTH} channels do not fit the registers of a program"
    return None


def wants_gradient(*operands: Tensor | None) -> bool:
    """Whether the gradient of any of ``operands`` is asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)


@torch.compiler.assume_constant_result
def _has_triton() -> bool:
    """Whether it is installed; a compiler need not look into how that is found out."""
    return find_spec("triton") is not None


Implementation = Callable[..., Tensor]
Gradients = Callable[..., Sequence[Tensor | None]]


def opaque(
    name: str,
    schema: str,
    like: Implementation,
    gradients: Gradients | None = None,
) -> Callable[[Implementation], Implementation]:
    """Make an implementation that a compiler cannot look into one node ``mixzoo::<name>`` of its graphs.

    Outside of a compiled graph nothing changes, and autograd goes through the implementation itself. The node gives its
    result the memory order that ``like`` says, and gradients that of the arguments. Without ``gradients`` it has
    no backward pass, and the candidate must decline where one is wanted.

    Args:
        name: of the node.
        schema: parameters as `torch.library` writes them, defaults too: ``"Tensor x, int side, Tensor? bias=None"``.
        like: same parameters; an empty tensor, in shape, type and memory order that of the result.
        gradients: (gradient of the result, then the same parameters) -> one for every tensor among them, None where
            there is none; the backward pass is one node, too.
    """

    def register(run: Implementation) -> Implementation:
        node = torch.library.custom_op(f"mixzoo::{name}", mutates_args=(), schema=f"({schema}) -> Tensor")(
            lambda *args: _ordered(run(*args), like(*args))
        )
        node.register_fake(like)
        places = [i for i, parameter in enumerate(schema.split(",")) if parameter.split()[0] in ("Tensor", "Tensor?")]
        if gradients is not None:
            _differentiate(node, places, _gradient_node(name, schema, places, gradients))

        @wraps(run)
        def call(*args: Any, **kwargs: Any) -> Tensor:
            return node(*args, **kwargs) if torch.compiler.is_compiling() else run(*args, **kwargs)

        return call

    return register


def _gradient_node(name: str, schema: str, places: list[int], gradients: Gradients) -> Gradients:
    """``gradients`` as a node of its own, with an empty tensor for None."""

    def shapes(grad: Tensor, *args: Any) -> list[Tensor]:
        given = [args[i] if i < len(args) else None for i in places]  # arguments at the end may be left to defaults
        return [grad.new_empty(0) if t is None else torch.empty_like(t) for t in given]

    def compute(grad: Tensor, *args: Any) -> list[Tensor]:
        found = gradients(grad, *args)
        return [e if g is None else _ordered(g, e) for g, e in zip(found, shapes(grad, *args), strict=True)]

    back_schema = f"(Tensor grad, {schema}) -> Tensor[]"
    back = torch.library.custom_op(f"mixzoo::{name}_backward", mutates_args=(), schema=back_schema)(compute)
    back.register_fake(shapes)
    return back


def _differentiate(node: Any, places: list[int], gradients: Gradients) -> None:
    """Give ``node`` a backward pass, which keeps its arguments alone."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*(inputs[i] for i in places))
        ctx.others = [None if i in places else value for i, value in enumerate(inputs)]

    def back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        args = list(ctx.others)
        result: list[Tensor | None] = [None] * len(args)
        for i, tensor in zip(places, ctx.saved_tensors, strict=True):
            args[i] = tensor
        for i, found in zip(places, gradients(grad, *args), strict=True):
            result[i] = found if args[i] is not None and args[i].is_floating_point() else None
        return tuple(result)

    node.register_autograd(back, setup_context=keep)


def _ordered(result: Tensor, empty: Tensor) -> Tensor:
    """``result`` in the memory order of ``empty``, which it is written into where they differ."""
    return result if result.stride() == empty.stride() else empty.copy_(result)


def known(*sizes: object) -> bool:
    """Whether sizes are numbers, not symbols of a graph that leaves them open: what is equal or not is then decided."""
    return all(isinstance(n, int) for n in sizes)


def exporting() -> bool:
    """Whether a graph is being captured for another runtime, where only plain operators should appear.

    Not `torch.compiler.is_exporting`: what `torch.compile` traces sees that as true.
    """
    return torch.compiler._is_exporting_flag or torch.jit.is_tracing()  # type: ignore[attr-defined]
