"""What each target takes, as data: its operators (`tables`), its greatest rank, and what is known of single operators.

A name in a table stands for an operator in any overload, and for its form in place. Where each fact is from is told
with it; the tests compare the tables with the converters' own registries wherever those are installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from torch.export import ExportedProgram

from ..runtimes.executorch_parts import in_parts
from . import notes
from .notes import Note


@dataclass(frozen=True)
class Rules:
    """What a target takes.

    Attributes:
        name: of the target.
        title: of its runtime or converter.
        table: name of the table with the operators that it takes.
        source: where the table is from.
        measured: whether the table holds operators that were tried one by one, so that others are not known.
        takes_parts: whether operators that the table lacks are taken apart into core ATen before they are looked up.
        in_parts: takes a captured graph apart, into core ATen unless the target's own export does it in another way.
        max_rank: greatest number of a tensor's axes; None where no model comes near it.
        drops_batch: whether a first axis of one image does not count.
        rank_source: where that is from.
        moves_any_rank: whether tensors above it may be moved about, if nothing is computed with them.
        cuts_any_rank: whether rows, sums of an axis and products of the last one may be taken from them, too.
        no_complex, no_double: whether it lacks complex numbers and float64.
        data_dependent: whether it takes shapes that follow from values.
        refused: operators that it is known not to take, though the table or their parts may say so.
        folds: whether what does not depend on the input is computed before it is converted.
        ranks: whether topk is taken where its indices alone are used, though it is refused where its values are.
        picks: whether the greatest of the last axis, and rows by their numbers, are rewritten before it is converted.
        accelerated: name of the table with the operators of core ATen that its accelerated part takes.
        falls_out: what is told of the others.
        outside: operators that run outside of the accelerated part, where there is no such table.
    """

    name: str
    title: str
    table: str
    source: str
    measured: bool = False
    takes_parts: bool = True
    in_parts: Callable[[ExportedProgram], ExportedProgram] = ExportedProgram.run_decompositions
    max_rank: int | None = None
    rank_source: str = ""
    drops_batch: bool = False
    moves_any_rank: bool = False
    cuts_any_rank: bool = False
    no_complex: bool = True
    no_double: bool = False
    data_dependent: bool = False
    refused: Mapping[str, Note] = field(default_factory=dict)
    folds: bool = False
    ranks: bool = False
    picks: bool = False
    accelerated: str = ""
    falls_out: Note = notes.FALLS_OUT
    outside: Mapping[str, Note] = field(default_factory=dict)

    def takes(self, name: str) -> bool:
        """Whether the table has ATen's operator ``name``, or its parts are in every table."""
        return in_table(self.table, name) or (self.takes_parts and in_table("composites", name))


def in_table(table: str, name: str) -> bool:
    """Whether a table has the operator, in any overload, in place or as a copy of a view."""
    return not {name, name.rstrip("_"), f"{name}_copy"}.isdisjoint(operators(table))


@cache
def operators(table: str) -> frozenset[str]:
    """Names of ATen's operators in a table, which is a text file with comments that say where they are from."""
    text = (files(__package__) / "tables" / f"{table}.txt").read_text()
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return frozenset(name for line in lines for name in line.split())


_TRANSFORMS = dict.fromkeys(("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_rfft", "fft_irfft"), notes.FFT)

_ALL = (
    Rules(
        name="onnx",
        title="torch.onnx",
        table="onnx",
        source="torch/onnx/_internal/exporter/_torchlib/ops (torch 2.11)",
        no_complex=False,  # a transform is DFT, its tensors pairs of numbers
        data_dependent=True,
    ),
    Rules(
        name="openvino",
        title="OpenVINO's frontend",
        table="openvino",
        source="names in libopenvino_pytorch_frontend (openvino 2026.4)",
        data_dependent=True,
        refused=_TRANSFORMS,
    ),
    Rules(
        name="litert",
        title="litert_torch",
        table="litert",
        source="litert_torch/backend/lowerings and litert_torch/fx_infra/decomp.py (litert_torch 0.10)",
        max_rank=6,
        rank_source="tensorflow/lite/kernels: no kernel computes with more; tried with litert_torch 0.10",
        moves_any_rank=True,
        no_double=True,
        ranks=True,
        refused={
            "topk": notes.SORT,
            "sort": notes.SORT,
            "col2im": notes.SCATTERS,
            **_TRANSFORMS,
        },
        folds=True,
        outside=notes.OUTSIDE_OF_LITERTS_XNNPACK,
    ),
    Rules(
        name="executorch",
        title="ExecuTorch",
        table="executorch",
        source="executorch/kernels/portable/functions.yaml (executorch 1.2)",
        max_rank=6,
        rank_source="XNN_MAX_TENSOR_DIMS in xnnpack.h, which torch 2.11 has among its headers",
        data_dependent=True,
        in_parts=in_parts,
        accelerated="xnnpack",
    ),
    Rules(
        name="ncnn",
        title="pnnx",
        table="ncnn",
        source="pnnx 20261020 and ncnn 1.0.20261020",
        measured=True,
        takes_parts=False,
        max_rank=4,
        rank_source="https://github.com/Tencent/ncnn/blob/master/src/mat.h: w, h, d and c",
        drops_batch=True,
        moves_any_rank=True,
        cuts_any_rank=True,
        no_double=True,
        refused={**notes.REFUSED_BY_NCNN, "as_strided": notes.AS_STRIDED, **_TRANSFORMS},
        folds=True,
        picks=True,
    ),
    Rules(
        name="coreml",
        title="coremltools",
        table="coreml",
        source="coremltools/converters/mil/frontend/torch/torch_op_registry.py (coremltools 9.0)",
        takes_parts=False,
        max_rank=5,
        rank_source="coremltools/converters/mil/mil/program.py, _check_invalid_tensor_rank (coremltools 9.0)",
        moves_any_rank=True,
        cuts_any_rank=True,
        refused={
            "as_strided": notes.AS_STRIDED,
            **_TRANSFORMS,
            "upsample_bicubic2d": notes.BICUBIC,
            "col2im": notes.OVERLAPS,
        },
        folds=True,
    ),
    Rules(
        name="tensorrt",
        title="torch.onnx",
        table="onnx",
        source="torch/onnx/_internal/exporter/_torchlib/ops (torch 2.11)",
        refused={"col2im": notes.NO_COL2IM, **_TRANSFORMS},
        max_rank=8,
        rank_source="tensorrt_rtx.Dims.MAX_DIMS (1.7)",
    ),
    Rules(
        name="qnn",
        title="ExecuTorch's backend for QNN",
        table="executorch",
        source="executorch/kernels/portable/functions.yaml (executorch 1.2): what QNN does not take runs on the CPU",
        max_rank=5,
        rank_source="QNN's operator definitions for HTP, of which nothing was run",
        accelerated="qnn",
    ),
)
RULES: dict[str, Rules] = {rules.name: rules for rules in _ALL}
