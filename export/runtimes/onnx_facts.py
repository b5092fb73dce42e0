"""What an ONNX file says of itself, read back from disk. Import this module only where onnx is installed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, ValueInfoProto

from ..errors import ExportError
from ..protocol import FileFacts, TensorInfo


def describe(path: Path) -> FileFacts:
    """Inputs, outputs, operators and tensor ranks of the file at ``path``.

    Raises:
        ExportError: ONNX's checker refuses the file.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"ONNX's checker refuses the file: {str(error).splitlines()[0]}") from error
    model = _inferred(path)
    initial = {tensor.name for tensor in model.graph.initializer}
    ranks, unranked = _ranks(model.graph)
    return FileFacts(
        inputs=tuple(_info(v) for v in model.graph.input if v.name not in initial),
        outputs=tuple(_info(v) for v in model.graph.output),
        operators=_operators(model),
        max_rank=max(ranks, default=0),
        unranked=unranked,
        extra={"opset": _opset(model), "ir_version": model.ir_version},
    )


def _inferred(path: Path) -> ModelProto:
    """The model with the shapes of all its values; external weights are not read."""
    model = onnx.load(str(path), load_external_data=False)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _opset(model: ModelProto) -> int:
    return next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))


def _operators(model: ModelProto) -> dict[str, int]:
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    return dict(Counter(f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in nodes).most_common())


def _ranks(graph: GraphProto) -> tuple[list[int], int]:
    """Ranks of all tensors whose shape is known, and how many tensors there are without one."""
    ranks = [len(tensor.dims) for g in _graphs(graph) for tensor in g.initializer]
    known: set[str] = {tensor.name for g in _graphs(graph) for tensor in g.initializer}
    for value in (v for g in _graphs(graph) for v in (*g.input, *g.value_info, *g.output)):
        if value.type.tensor_type.HasField("shape"):
            ranks.append(len(value.type.tensor_type.shape.dim))
            known.add(value.name)
    produced = {name for g in _graphs(graph) for node in g.node for name in node.output if name}
    return ranks, len(produced - known)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """``graph`` and the graphs of its control flow."""
    yield graph
    for attribute in (a for node in graph.node for a in node.attribute):
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graphs(inner)


def _info(value: ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorInfo(value.name, dtype, tuple(_shape(tensor.shape.dim)))


def _shape(dims: Iterable[Any]) -> Iterator[int | str]:
    for dim in dims:
        yield dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
