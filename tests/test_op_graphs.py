"""What compilers, exporters and tensors without data see of every op: its operators or one node, and its shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from interpreter import needs_triton, run_interpreted
from mixzoo.kernels import OPS
from mixzoo.kernels.neighborhood_attention import NEIGHBORHOOD_ATTENTION_OP
from mixzoo.kernels.soft_attention import SOFT_ATTENTION_OP
from support import TOLERANCE, rel_err
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten, tree_unflatten

every_op = pytest.mark.parametrize("name", OPS)
EXACT = TOLERANCE[torch.float64]
# the node of each op in a graph compiled for CUDA; the others are made of operators that a compiler fuses by itself
ON_CUDA = {
    "bilevel_routing_attention": "bilevel_routing_attention_triton",
    "depthwise_conv2d": "depthwise_conv2d_triton",
    "linear_attention": "linear_attention_triton",
    "neighborhood_attention": "neighborhood_attention_triton",
    "soft_attention": "soft_attention_triton",
}


class Call(torch.nn.Module):
    """An op as a function of the tensors of its sample, at a side that is odd and that windows do not divide."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, run: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.leaves, self.spec = tree_flatten(OPS[name].sample(15, 2, 16))
        self.places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        self.tensors = [self.leaves[i].to(dtype) for i in self.places]
        self.run = run or OPS[name]

    def forward(self, *tensors: Tensor) -> Tensor:
        leaves = list(self.leaves)
        for i, tensor in zip(self.places, tensors, strict=True):
            leaves[i] = tensor
        args, kwargs = tree_unflatten(leaves, self.spec)
        return self.run(*args, **kwargs)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def mixzoo_nodes(graphs: list[GraphModule]) -> set[str]:
    targets = (str(n.target) for graph in graphs for n in graph.graph.nodes if n.op == "call_function")
    return {t.split(".")[1] for t in targets if t.startswith("mixzoo.")}


@every_op
def test_a_compiled_graph_is_whole_and_gives_the_references_outputs_and_gradients(name: str) -> None:
    op = Call(name)
    inputs, exact = ([t.clone().requires_grad_() for t in op.tensors] for _ in range(2))
    expected = Call(name, run=OPS[name].reference)(*exact)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    out = compiled(*inputs)
    assert out.shape == expected.shape and rel_err(out.detach(), expected.detach()) < EXACT
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    wanted = torch.autograd.grad(expected, exact, probe, allow_unused=True)
    for got, want in zip(torch.autograd.grad(out, inputs, probe, allow_unused=True), wanted, strict=True):
        assert (got is None) == (want is None) and (want is None or rel_err(got, want) < EXACT)
    with torch.no_grad():
        assert rel_err(compiled(*inputs), expected) < EXACT < rel_err(compiled(*(t.flip(-1) for t in inputs)), expected)


@every_op
def test_an_exported_graph_has_only_operators_that_other_runtimes_have(name: str) -> None:
    op = Call(name)
    program = torch.export.export(op, tuple(op.tensors))
    expected = Call(name, run=OPS[name].reference)(*op.tensors)
    assert rel_err(program.module()(*op.tensors), expected) < EXACT
    for node in program.graph.nodes:
        target, value = str(node.target), node.meta.get("val")
        assert not any(word in target for word in ("fft", "complex", "unfold.", "im2col", "mixzoo")), target
        assert not isinstance(value, Tensor) or (value.ndim <= 5 and not value.is_complex()), node


@every_op
@pytest.mark.parametrize("kind", ("meta", "fake"))
def test_tensors_without_data_have_the_shape_of_the_result(name: str, kind: str) -> None:
    op = Call(name, torch.float32)
    expected = op(*op.tensors)
    if kind == "meta":
        out = op(*(t.to("meta") for t in op.tensors))
    else:
        with FakeTensorMode() as mode:
            out = op(*map(mode.from_tensor, op.tensors))
    assert out.shape == expected.shape and out.dtype == expected.dtype


@needs_triton
@every_op
@pytest.mark.parametrize("train", (False, True), ids=("inference", "training"))
def test_what_a_compiler_sees_on_cuda(name: str, train: bool) -> None:
    """Traced with tensors that have a device and no data: no graph breaks, and Triton is one node."""
    graphs: list[GraphModule] = []

    def record(graph: GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    op = Call(name, torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.set_grad_enabled(train):
        inputs = [torch.empty_like(t, device="cuda").requires_grad_(train) for t in op.tensors]
        out = torch.compile(op, fullgraph=True, backend=record)(*inputs)
    assert out.device.type == "cuda"
    declines = ("linear_attention", "soft_attention") if train else ("depthwise_conv2d",)  # cuDNN is faster without one
    assert mixzoo_nodes(graphs) == ({ON_CUDA[name]} if name in ON_CUDA and name not in declines else set())


def node_arguments() -> dict[str, tuple[Any, ...]]:
    """Arguments for the nodes whose implementations run on the CPU."""
    (q, k, v, *options), kwargs = NEIGHBORHOOD_ATTENTION_OP.sample(9, 2, 16)
    maps = [t.requires_grad_() for t in (q, k, v)]
    (s, landmarks, w), _ = SOFT_ATTENTION_OP.sample(9, 2, 16)
    return {
        "neighborhood_attention_tiled": (*maps, *options, kwargs["bias"].requires_grad_()),
        "soft_attention_tiled": (s, landmarks, w, True),
    }


@pytest.mark.parametrize("node", node_arguments())
def test_nodes_keep_the_rules_of_operators(node: str) -> None:
    torch.library.opcheck(getattr(torch.ops.mixzoo, node).default, node_arguments()[node])


def test_every_node_is_checked_here_or_runs_on_cuda_alone() -> None:
    """Those of Triton are checked where it is interpreted, and natten is not here."""
    names = {n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("mixzoo::")}
    ours = {n.removesuffix("_backward") for n in names}
    assert ours - set(node_arguments()) == {*ON_CUDA.values(), "neighborhood_attention_natten"}


@pytest.mark.slow
@needs_triton
def test_triton_nodes_interpreted() -> None:
    run_interpreted("nodes")
