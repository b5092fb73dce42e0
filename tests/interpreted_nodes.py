"""Nodes of Triton candidates in compiled graphs, interpreted: `test_op_graphs.py` runs this in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixzoo.kernels import OPS
from support import rel_err, tolerances
from torch import Tensor

TOLERANCE = tolerances(float32=10)[torch.float32]  # a compiler sums in another order
NODES = {  # side, heads, channels
    "bilevel_routing_attention": (3, 2, 16),
    "depthwise_conv2d": (5, 1, 2),
    "linear_attention": (9, 2, 16),
    "neighborhood_attention": (9, 2, 16),
    "soft_attention": (9, 2, 16),
}

FORWARD = ("linear_attention", "soft_attention")  # without a backward pass


def arguments(name: str) -> tuple[list[Tensor], Any, Any]:
    """Tensors of a small sample, what is taken from them by Triton, and by the reference."""
    torch.manual_seed(0)
    args, kwargs = OPS[name].sample(*NODES[name])
    tensors, others = [a for a in args if isinstance(a, Tensor)], [a for a in args if not isinstance(a, Tensor)]
    triton = next(c.run for c in OPS[name].candidates if c.name == "triton")
    return tensors, lambda *t: triton(*t, *others, **kwargs), lambda *t: OPS[name].reference(*t, *others, **kwargs)


@pytest.mark.parametrize("name", NODES)
def test_compiled_outputs_and_gradients(name: str) -> None:
    tensors, triton, reference = arguments(name)
    differentiable = name not in FORWARD
    inputs, exact = ([t.clone().requires_grad_(differentiable) for t in tensors] for _ in range(2))
    expected = reference(*exact)
    graphs: list[Any] = []

    def record(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        torch.compile(triton, fullgraph=True, backend=record)(*inputs)
    assert sum(f"mixzoo.{name}_triton" in str(n.target) for n in graphs[0].graph.nodes) == 1
    torch._dynamo.reset()
    out = torch.compile(triton, fullgraph=True, backend="aot_eager")(*inputs)
    assert rel_err(out.detach(), expected.detach()) < TOLERANCE < rel_err(out.detach().flip(-1), expected.detach())
    if differentiable:
        probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        wanted = torch.autograd.grad(expected, exact, probe)
        for got, want in zip(torch.autograd.grad(out, inputs, probe), wanted, strict=True):
            assert rel_err(got, want) < 5 * TOLERANCE


@pytest.mark.parametrize("name", NODES)
def test_nodes_keep_the_rules_of_operators(name: str) -> None:
    called: list[tuple[Any, Any]] = []
    tensors, triton, _ = arguments(name)

    def record(graph: Any, inputs: Any) -> Any:
        class Interpreter(torch.fx.Interpreter):
            def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
                if "mixzoo" in str(target):
                    called.append((target, (args, kwargs)))
                return super().call_function(target, args, kwargs)

        return Interpreter(graph).run

    with torch.no_grad():
        torch.compile(triton, fullgraph=True, backend=record)(*tensors)
    (node, (args, kwargs)), *rest = called
    assert not rest
    differentiable = name not in FORWARD
    args = [a.requires_grad_(differentiable and a.is_floating_point()) if isinstance(a, Tensor) else a for a in args]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")  # the compiler's part is tested above
    torch.library.opcheck(getattr(node, "default", node), tuple(args), kwargs, test_utils=checks)
