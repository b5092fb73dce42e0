"""What a ``.pte`` file says of itself, read back from disk. Import this module only where executorch is installed."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
from executorch.exir._serialize._flatbuffer import _flatc_decompile
from executorch.exir._serialize._program import deserialize_pte_binary

from ..capture import AXIS_INDEX
from ..protocol import Delegated, FileFacts, TensorInfo
from .executorch_macs import of_kernel, of_part

_XNNPACK = "XnnpackBackend"
_FLOAT32 = 6  # of ExecuTorch's scalar types
_AXES = {index: axis for axis, index in AXIS_INDEX.items()}
_NOT_NUMBERS = re.compile(r":\s*-?(inf|nan)\b")  # flatc writes them bare, which is no JSON


def describe(path: Path, greatest: str) -> FileFacts:
    """Inputs, outputs, operators and tensor ranks of the file at ``path``.

    Args:
        path: the file.
        greatest: how the names of methods begin that give the greatest side of an open axis.
    """
    read = deserialize_pte_binary(path.read_bytes())
    program = getattr(read, "program", read)
    plans = {plan.name: plan for plan in program.execution_plan}
    plan = plans.pop("forward")
    bounds = {name.removeprefix(greatest): _constant(p) for name, p in plans.items() if name.startswith(greatest)}
    calls = list(_calls(plan))
    rest = Counter(name for name, _ in calls)
    parts = [_xnnpack_graph(blob) for blob in _blobs(program, plan)]
    inside = Counter(node["xnode_union_type"] for part in parts for node in part["xnodes"])
    ranks = [len(value.val.sizes) for value in plan.values if hasattr(value.val, "sizes")]
    ranks += [value["xvalue_union"].get("num_dims", 0) for part in parts for value in _values(part)]
    return FileFacts(
        inputs=tuple(_info(plan.values[i].val, "image", bounds) for i in plan.inputs),
        outputs=tuple(
            _info(plan.values[i].val, "output" if len(plan.outputs) == 1 else f"output_{n}", bounds)
            for n, i in enumerate(plan.outputs)
        ),
        operators=dict((inside + rest).most_common()),
        max_rank=max(ranks, default=0),
        delegated=Delegated(
            "XNNPACK",
            sum(inside.values()),
            len(parts),
            dict(rest.most_common()),
            macs=sum(map(of_part, parts)),
            rest_macs=sum(of_kernel(name, arguments) for name, arguments in calls),
        ),
        extra={"greatest": bounds} if bounds else {},
    )


def _constant(plan: Any) -> int:
    """What a method without arguments returns."""
    return int(plan.values[plan.outputs[0]].val.int_val)


def _calls(plan: Any) -> Iterator[tuple[str, list[Any]]]:
    """The kernels that are called outside of XNNPACK: names, and the values that they get."""
    for call in (i.instr_args for chain in plan.chains for i in chain.instructions):
        if hasattr(call, "op_index"):
            yield plan.operators[call.op_index].name, [plan.values[i].val for i in call.args]


def _blobs(program: Any, plan: Any) -> Iterator[bytes]:
    for delegate in plan.delegates:
        if delegate.id == _XNNPACK:
            yield bytes(program.backend_delegate_data[delegate.processed.index].data)


def _xnnpack_graph(blob: bytes) -> dict[str, Any]:
    """A part for XNNPACK, as its schema has it."""
    header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
    schema = files("executorch.backends.xnnpack.serialization") / "schema.fbs"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "schema.fbs").write_bytes(schema.read_bytes())
        (place / "part.bin").write_bytes(blob[header.flatbuffer_offset :][: header.flatbuffer_size])
        _flatc_decompile(folder, str(place / "schema.fbs"), str(place / "part.bin"))
        graph = json.loads(_NOT_NUMBERS.sub(": null", (place / "part.json").read_text()))
    assert isinstance(graph, dict)
    return graph


def _values(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for value in part.get("xvalues", ()):
        union = value["xvalue_union"]
        yield {"xvalue_union": union.get("tensor_value", union)}


def _info(tensor: Any, name: str, bounds: Mapping[str, int]) -> TensorInfo:
    """An open axis is given by its name. Of other tensors than images only the first can be."""
    named = _AXES if len(tensor.sizes) == 4 else {0: "batch"}
    sides = tuple(named[i] if named.get(i) in bounds else side for i, side in enumerate(tensor.sizes))
    kind = int(tensor.scalar_type)
    return TensorInfo(name, "float32" if kind == _FLOAT32 else f"scalar type {kind}", sides)
