"""Lower precision for Core ML: which operators compute in float16, and coremltools' own quantisation to eight bits.

Float16 has islands of float32: norms, softmax, reductions, powers and their inverses, and products of two activations,
which are the scores of attention and the sums of linear attention, with what is made of them until they are divided. Of
what softmax made no product can grow, and those stay in float16. What is given or gives numbers that come near to
overflowing on an example is on an island, too.

Eight bits are those of weights and inputs of convolutions and matrices, in a program that is otherwise as in float16.
coremltools finds the ranges of activations by running the program in Core ML, which only macOS can, and keeps those of
the last image; here `MilEvaluator` runs it, everywhere, and the ranges are those of all images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import ExportError
from ..half import LIMIT
from .coreml_eval import Computed, MilEvaluator, MilProgram, import_coremltools, variable_type

MINIMUM = {"fp32": "iOS16", "fp16": "iOS16", "int8": "iOS17"}  # whose programs may quantise activations
Ranges = dict[str, dict[str, float]]
_WITH_WEIGHTS = ("conv", "linear")
_IN_FLOAT32 = frozenset({
    *("batch_norm", "instance_norm", "l2_norm", "layer_norm", "local_response_norm", "softmax"),
    *("reduce_l1_norm", "reduce_l2_norm", "reduce_log_sum_exp", "reduce_mean", "reduce_prod", "reduce_sum"),
    *("reduce_sum_square", "cumsum", "square", "pow", "exp", "exp2", "log", "sqrt", "rsqrt", "inverse", "real_div"),
})  # fmt: skip
_GROW = ("cumsum", "exp", "exp2", "pow", "reduce_l1_norm", "reduce_prod", "reduce_sum", "reduce_sum_square", "square")
_MOVES = ("cast", "expand_dims", "reshape", "slice_by_index", "split", "squeeze", "transpose")
_PASS = (*_MOVES, "abs", "add", "clip", "concat", "maximum", "minimum", "mul", "relu", "select", "sub")
_SCALES = ("exp", "inverse", "real_div", "rsqrt", "sqrt")
_HALF_MAX = float(torch.finfo(torch.float16).max)


def compute_precision(coremltools: Any, name: str, example: Tensor) -> Any:
    """What `coremltools.convert` is to compute in; ``example`` is an input of the model."""
    if name == "fp32":
        return coremltools.precision.FLOAT32
    return coremltools.transform.FP16ComputePrecision(op_selector=Islands(example))


class Unfinished:
    """A function that coremltools is at work on, as `MilEvaluator` takes it."""

    def __init__(self, function: Any) -> None:
        self.function, self.inputs = function, list(function.inputs)
        self.outputs = [variable.name for variable in function.outputs]
        self.operations = [op for op in function.operations if op.op_type != "const"]


class Islands:
    """Says which MIL operations are to compute in float16: those that are not on an island.

    Args:
        example: an input of the model. The function is computed on it when the first of its operations is asked for,
            while all of them are in float32 still; one that cannot be has no islands but those of its operators.
    """

    def __init__(self, example: Tensor) -> None:
        self.example = example
        self._beyond: Set[str] | None = None
        self._large: dict[Any, bool] = {}

    def __call__(self, operation: Any) -> bool:
        """Whether ``operation`` is to compute in float16."""
        if self._beyond is None:
            self._beyond = _beyond_half(operation.enclosing_block, self.example)
        if operation.op_type in _IN_FLOAT32 or self.large(operation):
            return False
        if any(variable.name in self._beyond for variable in (*_live(operation), *operation.outputs)):
            return False
        return not (operation.op_type == "mul" and _rescales(operation))

    def large(self, operation: Any) -> bool:
        """Whether its values may be beyond float16: sums, powers, and what is made of them until it is divided."""
        if operation not in self._large:
            self._large[operation] = self._is_large(operation)
        return self._large[operation]

    def _is_large(self, operation: Any) -> bool:
        makers = list(_makers(operation))
        if operation.op_type in ("matmul", "einsum"):
            return len(_live(operation)) > 1 and all(_source(maker) != "softmax" for maker in makers)
        if operation.op_type in _GROW:
            return True
        passes = operation.op_type in _PASS and not (operation.op_type == "mul" and _rescales(operation))
        return passes and any(self.large(maker) for maker in makers)


def _beyond_half(function: Any, example: Tensor) -> Set[str]:
    """The tensors of ``function`` that come near to what float16 cannot hold; none where it cannot be computed."""
    try:
        ranges = ranges_of(Unfinished(function), [example])
    except ExportError:
        return frozenset()
    return {name for name, ends in ranges.items() if not max(-ends["rmin"], ends["rmax"]) <= LIMIT}


def _live(operation: Any) -> list[Any]:
    """The variables that it is given, but constants."""
    given: list[Any] = []
    for value in operation.inputs.values():
        given += value if isinstance(value, tuple | list) else [value]
    return [variable for variable in given if variable is not None and variable.val is None]


def _makers(operation: Any) -> Iterator[Any]:
    """The operations that give what it is given."""
    return (variable.op for variable in _live(operation) if variable.op is not None)


def _source(operation: Any) -> str:
    """The type of the operation whose values ``operation`` moves, or its own."""
    while operation.op_type in _MOVES and (maker := next(_makers(operation), None)) is not None:
        operation = maker
    return str(operation.op_type)


def _rescales(operation: Any) -> bool:
    """Whether it is given what may be too small for float16."""
    return any(_source(maker) in _SCALES for maker in _makers(operation))


def quantised(model: Any, program: MilProgram, ranges: Ranges, keep: Iterable[str]) -> Any:
    """A converted model in eight bits; it is not changed.

    Args:
        model: of coremltools.
        program: what it holds.
        ranges: of its tensors.
        keep: paths of layers that stay in float.
    """
    coremltools = import_coremltools()
    optimize = coremltools.optimize.coreml
    eight = optimize.OpLinearQuantizerConfig(mode="linear_symmetric")
    config = optimize.OptimizationConfig(
        op_type_configs=dict.fromkeys(_WITH_WEIGHTS, eight),
        op_name_configs=dict.fromkeys(_kept(program, keep, ranges)),
    )
    with _measured(ranges):
        model = optimize.linear_quantize_activations(model, config, [])
    return optimize.linear_quantize_weights(model, config)


def ranges_of(program: Computed, images: Sequence[Tensor]) -> Ranges:
    """Least and greatest value that every tensor of floats has on batches of images, by its name."""
    found: Ranges = {}

    def see(name: str, value: Tensor) -> None:
        if value.is_floating_point() and value.numel():
            low, high = (float(end) for end in value.aminmax())
            before = found.get(name, {"rmin": low, "rmax": high})
            found[name] = {"rmin": min(low, before["rmin"]), "rmax": max(high, before["rmax"])}

    evaluate = MilEvaluator(program)
    with torch.no_grad():
        for batch in images:
            evaluate(batch, see)
    return found


def _kept(program: MilProgram, keep: Iterable[str], ranges: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Names of operations that stay in float: those of modules to keep, and those that float16 may not hold.

    coremltools writes the results of eight bits in float16.
    """
    paths = "|".join(re.escape(path.replace(".", "_")) for path in sorted(keep) if path)
    pattern = re.compile(rf"(^|_)({paths})_.*weight") if paths else None
    for operation in program.operations:
        if operation.op_type not in _WITH_WEIGHTS:
            continue
        named = pattern is not None and pattern.search(operation.inputs["weight"].name)
        tensors = [operation.inputs["x"].name, operation.outputs[0].name]
        whole = variable_type(operation.outputs[0]) == "fp32"
        if named or whole or not all(_holds(ranges.get(name)) for name in tensors):
            yield operation.name


def _holds(ends: Mapping[str, float] | None) -> bool:
    return ends is not None and max(-ends["rmin"], ends["rmax"]) <= _HALF_MAX


@contextmanager
def _measured(ranges: Ranges) -> Iterator[None]:
    """Let coremltools take these ranges, and run nothing.

    Raises:
        ExportError: this coremltools does not look for them where 9.0 does.
    """
    from coremltools.optimize.coreml import _post_training_quantization as module

    name = "_get_activation_calibration_stats"
    if not hasattr(module, name):
        raise ExportError("this coremltools finds ranges of activations in another way: install coremltools 9.0.")
    before = getattr(module, name)
    setattr(module, name, lambda *_: ranges)
    try:
        yield
    finally:
        setattr(module, name, before)
