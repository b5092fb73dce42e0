"""What is known of operators that give trouble: why, what to do about it, and where that is from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Note(NamedTuple):
    """Why an operator is not taken, the rewrite that is, and the source."""

    reason: str
    remedy: str
    source: str


_TORCH = "https://docs.pytorch.org/docs/2.11/user_guide/torch_compiler/export.html"
_TRIED = "a file with this operator alone was tried"

COMPLEX = Note(
    "its tensors are complex, for which the target has no type",
    "Compute with real and imaginary parts, as kernels/frequency_filter.py does under export: a DFT as a product.",
    _TRIED,
)
DATA_DEPENDENT = Note(
    "the shape of its output follows from the values of its input",
    "Keep the shape: mask with torch.where, or take a fixed number with topk.",
    _TORCH,
)
RANDOM = Note(
    "it draws random numbers, which is for training only, so that no two runs agree",
    "Use a module such as nn.Dropout, which evaluation mode turns off, or leave it out.",
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout.html",
)
BATCH_STATISTICS = Note(
    "it normalises with the batch's statistics, which is for training only: an image's outputs follow its neighbours",
    "Keep running statistics (track_running_stats=True), and put the model in evaluation mode.",
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html",
)
CUSTOM = Note(
    "it is an operator of an extension, which no converter knows",
    "Write it in PyTorch's own operators under torch.compiler.is_exporting(), as kernels/dispatch.py does.",
    "https://docs.pytorch.org/docs/stable/torch.compiler_api.html",
)
FFT = COMPLEX._replace(reason="it is a Fourier transform, for which the converter has nothing")
AS_STRIDED = Note(
    "it reads memory by strides, for which the converter has nothing",
    "Use reshape, slices and permute.",
    _TRIED,
)
DOUBLE = Note(
    "it computes in float64, which the target does not have",
    "Compute in float32, centred or scaled where that loses too much.",
    _TRIED,
)
BICUBIC = Note(
    "the converter has nothing for bicubic interpolation of what depends on the input",
    "Use mode='bilinear'; a table that does not depend on the input is computed once, and may stay bicubic.",
    _TRIED,
)


_ADD_PARTS = "Use torch.nn.functional.fold with a fixed output size, which is written as a sum of shifted parts."
NO_COL2IM = Note(
    "TensorRT's parser does not take ONNX's Col2Im",
    _ADD_PARTS,
    "a file with this operator alone was tried (tensorrt-rtx 1.7)",
)
OVERLAPS = Note(
    "coremltools takes windows that do not overlap alone",
    _ADD_PARTS,
    "coremltools/converters/mil/frontend/torch/ops.py, col2im (coremltools 9.0)",
)
SCATTERS = Note(
    "the converter writes STABLEHLO_SCATTER for it, which LiteRT cannot run",
    _ADD_PARTS,
    "a file with timm's volo_d1_224 was tried (litert_torch 0.10, ai-edge-litert 2.3)",
)
SORT = Note(
    "the converter writes STABLEHLO_SORT for it, which LiteRT cannot run",
    "Take the greatest one by one with amax and a mask, or of topk the indices alone, which LiteRT has.",
    "a file with this operator alone was tried (litert_torch 0.10, ai-edge-litert 2.3)",
)
CHOICE = Note(
    "ncnn has no layer that compares or chooses: it computes with floats only",
    "Use arithmetic: clamp, maximum, minimum, or a mask that is a constant and multiplied or added.",
    "ncnn has no layer for what pnnx 20261020 leaves of it: a file with this operator alone was tried",
)
PICKED = Note(
    "ncnn has no layer that sorts, or gathers by computed or listed indices",
    "Use topk of the last axis and positions of one axis by their numbers, x[:, rows], which are rewritten, or slices.",
    CHOICE.source,
)
NO_LAYER = Note("ncnn has no layer for it", "Write it in mean, sum, product and the like.", CHOICE.source)
REFUSED_BY_NCNN = {
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne", "where", "masked_fill", "logical_and", "__and__"), CHOICE),
    **dict.fromkeys(("topk", "sort", "argmax", "gather", "index", "index_select", "scatter"), PICKED),
    **dict.fromkeys(("cdist", "linalg_inv", "movedim", "repeat_interleave", "tile"), NO_LAYER),
}
FALLS_OUT = Note(
    "the accelerated part has nothing for it: it runs in a plain kernel, and cuts that part in two",
    "Use operators that the part has, see the source, if time matters here.",
    "executorch/backends/xnnpack/partition/config/__init__.py (executorch 1.2)",
)
_FALLS_OUT_OF_LITERT = FALLS_OUT._replace(
    source="https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/delegates/xnnpack/README.md"
)
OUTSIDE_OF_LITERTS_XNNPACK = dict.fromkeys(
    {"elu", "softplus", "mish", "where", "masked_fill", "gt", "ge", "lt", "le", "eq", "argmax", "cumsum", "gather"}
    | {"index", "index_select", "flip", "repeat", "scatter", "grid_sampler", "embedding"},
    _FALLS_OUT_OF_LITERT,
)


def missing(title: str, source: str, part: str | None = None) -> Note:
    """Of an operator that a table lacks, or of which it lacks a part."""
    what = f"{title} has nothing for {part}, which it comes apart into" if part else f"{title} has nothing for it"
    return Note(what, "Write it in operators that are in the table of the source.", source)


def too_many_axes(rank: int, most: int, source: str) -> Note:
    """Of a tensor above the greatest rank."""
    remedy = "Join axes that are not moved: reshape so that batch and heads, or rows and windows, are one axis."
    return Note(f"its tensor has {rank} axes, and the target takes {most}", remedy, source)


def untried(title: str) -> Note:
    """Of an operator that nobody has tried."""
    return Note(f"nobody has tried it with {title}", "Export the model: what is written is run and compared.", _TRIED)


def not_captured(reason: str) -> Note:
    """Of a model that torch.export cannot capture."""
    remedy = "Keep branches and shapes free of the values of tensors: use torch.where, topk and fixed lengths."
    return Note(f"torch.export cannot capture it: {reason}", remedy, _TORCH)


def not_open(axes: Sequence[str], reason: str) -> Note:
    """Of a model that torch.export cannot capture with these axes open."""
    remedy = "Files of fixed shapes can be written all the same; leave out --dynamic to check those."
    return Note(f"torch.export cannot capture it with {', '.join(axes)} open: {reason}", remedy, _TORCH)
