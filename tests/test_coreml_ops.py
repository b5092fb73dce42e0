"""What operators of MIL compute in mixzoo's evaluator, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mixzoo.export.runtimes.coreml_arguments import Arguments
from mixzoo.export.runtimes.coreml_ops import OPERATORS
from torch import Tensor, nn


class Variable:
    def __init__(self, name: str) -> None:
        self.name = name


class Operation:
    """An operation of a program, with its inputs' names."""

    def __init__(self, given: dict[str, Any]) -> None:
        lists = {name: value for name, value in given.items() if isinstance(value, tuple)}
        self.inputs: dict[str, Any] = {name: Variable(name) for name in given}
        self.inputs |= {name: [Variable(f"{name}{i}") for i in range(len(v))] for name, v in lists.items()}


def evaluate(name: str, **given: Any) -> Any:
    """What operator ``name`` makes of its inputs: tensors, plain values or tuples of tensors."""
    values = {f"{key}{i}": v for key, value in given.items() if isinstance(value, tuple) for i, v in enumerate(value)}
    values |= {
        k: v if isinstance(v, str | Tensor) else torch.tensor(v) for k, v in given.items() if not isinstance(v, tuple)
    }
    return OPERATORS[name](Arguments(Operation(given), values))


def x(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


WEIGHT = x(6, 2, 3, 3)
SPREAD = x(4, 3, 3, 4)
IMAGE = x(2, 4, 7, 9)
HALVES = x(2, 3, 4).half()
ROWS = torch.arange(24.0).reshape(2, 3, 4)
CEIL = {"x": IMAGE, "ceil_mode": True, "pad_type": "custom"}
CASES: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
    (
        lambda: evaluate("conv", x=IMAGE, weight=WEIGHT, pad_type="custom", pad=[1, 0, 2, 1], groups=2, strides=[2, 1]),
        lambda: F.conv2d(F.pad(IMAGE, (2, 1, 1, 0)), WEIGHT, stride=(2, 1), groups=2),
    ),
    (
        lambda: evaluate("conv", x=IMAGE, weight=WEIGHT, pad_type="same", groups=2, dilations=[2, 1], bias=x(6)),
        lambda: F.conv2d(IMAGE, WEIGHT, x(6), padding="same", groups=2, dilation=(2, 1)),
    ),
    (lambda: evaluate("conv", x=IMAGE, weight=WEIGHT, groups=2), lambda: F.conv2d(IMAGE, WEIGHT, groups=2)),
    (
        lambda: evaluate("conv_transpose", x=IMAGE, weight=SPREAD, groups=2, strides=[2, 3], bias=x(6)),
        lambda: F.conv_transpose2d(IMAGE, SPREAD, x(6), (2, 3), groups=2),
    ),
    (
        lambda: evaluate(
            "conv_transpose", x=IMAGE, weight=SPREAD, pad_type="custom", pad=[1, 0, 2, 1], dilations=[2, 1]
        ),
        lambda: F.conv_transpose2d(IMAGE, SPREAD, dilation=(2, 1))[:, :, 1:, 2:-1],
    ),
    (
        lambda: evaluate("max_pool", x=-IMAGE.abs(), kernel_sizes=[3, 3], pad_type="custom", pad=[1] * 4),
        lambda: F.max_pool2d(-IMAGE.abs(), 3, 1, 1),
    ),
    (
        lambda: evaluate("avg_pool", x=IMAGE, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1] * 4),
        lambda: F.avg_pool2d(IMAGE, 3, 2, 1),
    ),
    (
        lambda: evaluate(
            "avg_pool",
            **{"x": IMAGE, "kernel_sizes": [3, 3], "pad_type": "custom", "pad": [1] * 4},
            exclude_padding_from_average=True,
        ),
        lambda: F.avg_pool2d(IMAGE, 3, 1, 1, count_include_pad=False),
    ),
    (lambda: evaluate("pad", x=IMAGE, pad=[1, 2, 3, 0], constant_val=7.0), lambda: F.pad(IMAGE, (3, 0, 1, 2), value=7)),
    (lambda: evaluate("pad", x=IMAGE, pad=[1, 2, 3, 0], mode="reflect"), lambda: F.pad(IMAGE, (3, 0, 1, 2), "reflect")),
    (
        lambda: evaluate("pad", x=IMAGE, pad=[1, 2, 3, 0], mode="replicate"),
        lambda: F.pad(IMAGE, (3, 0, 1, 2), "replicate"),
    ),
    (
        lambda: evaluate(
            "slice_by_index",
            **{"x": ROWS, "begin": [-1, 1, 3], "end": [0, -1, 1], "stride": [1, 1, 2]},
            **{"begin_mask": [False, False, True], "end_mask": [False, False, True]},
            squeeze_mask=[True, False, False],
        ),
        lambda: ROWS[-1, 1:-1, ::2],
    ),
    (lambda: evaluate("slice_by_size", x=ROWS, begin=[0, 1, -2], size=[-1, 1, 2]), lambda: ROWS[:, 1:2, 2:4]),
    (
        lambda: evaluate("layer_norm", x=ROWS, axes=[-1, 1], gamma=x(3, 4), beta=x(3, 4), epsilon=1e-3),
        lambda: F.layer_norm(ROWS, (3, 4), x(3, 4), x(3, 4), 1e-3),
    ),
    (
        lambda: evaluate("layer_norm", x=IMAGE, axes=[1], gamma=x(4), epsilon=1e-3),
        lambda: F.layer_norm(IMAGE.movedim(1, -1), (4,), x(4), None, 1e-3).movedim(-1, 1),
    ),
    (lambda: evaluate("instance_norm", x=IMAGE, gamma=x(4)), lambda: F.instance_norm(IMAGE, weight=x(4))),
    (
        lambda: evaluate("batch_norm", x=IMAGE, mean=x(4), variance=x(4).abs(), beta=x(4), epsilon=1e-2),
        lambda: F.batch_norm(IMAGE, x(4), x(4).abs(), None, x(4), eps=1e-2),
    ),
    (lambda: evaluate("gelu", x=IMAGE), lambda: F.gelu(IMAGE)),
    (lambda: evaluate("gelu", x=IMAGE, mode="TANH_APPROXIMATION"), lambda: F.gelu(IMAGE, approximate="tanh")),
    (lambda: evaluate("gelu", x=IMAGE, mode="SIGMOID_APPROXIMATION"), lambda: IMAGE * (1.702 * IMAGE).sigmoid()),
    (lambda: evaluate("thresholded_relu", x=IMAGE, alpha=0.3), lambda: F.threshold(IMAGE, 0.3, 0.0)),
    (lambda: evaluate("clamped_relu", x=IMAGE, alpha=0.1, beta=0.5), lambda: F.leaky_relu(IMAGE, 0.1).clamp(max=0.5)),
    (lambda: evaluate("inverse", x=IMAGE.abs(), epsilon=0.5), lambda: 1 / (IMAGE.abs() + 0.5)),
    (lambda: evaluate("mod", x=torch.tensor([-3, 5]), y=torch.tensor([2, 3])), lambda: torch.tensor([1, 2])),
    (lambda: evaluate("gather", x=ROWS, indices=[[2, -3]], axis=1), lambda: ROWS[:, [[2, 0]]]),
    (
        lambda: evaluate("gather", x=ROWS, indices=[[2, -3], [1, 1]], axis=1, batch_dims=1),
        lambda: torch.stack([ROWS[0, [2, 0]], ROWS[1, [1, 1]]]),
    ),
    (lambda: evaluate("reshape", x=ROWS, shape=[0, 2, -1]), lambda: ROWS.reshape(2, 2, 6)),
    (lambda: evaluate("fill_like", ref_tensor=ROWS, value=2), lambda: torch.full((2, 3, 4), 2)),
    (lambda: evaluate("expand_dims", x=ROWS, axes=[0, -1]), lambda: ROWS[None, ..., None]),
    (lambda: evaluate("matmul", x=ROWS, y=ROWS, transpose_y=True), lambda: ROWS @ ROWS.mT),
    (lambda: evaluate("reduce_mean", x=IMAGE, axes=[-1, 2]), lambda: IMAGE.mean((2, 3))),
    (lambda: evaluate("reduce_prod", x=ROWS, axes=[0, 2], keep_dims=True), lambda: ROWS.prod(2, True).prod(0, True)),
    (
        lambda: evaluate("upsample_bilinear", x=IMAGE, scale_factor_height=2.0, scale_factor_width=1.5),
        lambda: F.interpolate(IMAGE, (14, 13), mode="bilinear", align_corners=True),
    ),
    (
        lambda: evaluate("upsample_bilinear", x=IMAGE, scale_factor_height=0.5, align_corners=False),
        lambda: F.interpolate(IMAGE, (3, 9), mode="bilinear", align_corners=False),
    ),
    *(
        (
            lambda mode=mode: evaluate(
                "resize_bilinear", x=IMAGE, target_size_height=10, target_size_width=4, sampling_mode=mode
            ),
            lambda corners=corners: F.interpolate(IMAGE, (10, 4), mode="bilinear", align_corners=corners),
        )
        for mode, corners in (("UNALIGN_CORNERS", False), ("STRICT_ALIGN_CORNERS", True), ("ALIGN_CORNERS", True))
    ),
    (
        lambda: evaluate("resize_bilinear", x=ROWS[None], target_size_height=3, target_size_width=8),
        lambda: torch.stack([(ROWS[..., i // 2] + ROWS[..., min((i + 1) // 2, 3)]) / 2 for i in range(8)], -1)[None],
    ),
    (
        lambda: evaluate("upsample_nearest_neighbor", x=IMAGE, scale_factor_width=2),
        lambda: F.interpolate(IMAGE, (7, 18)),
    ),
    (lambda: evaluate("concat", values=(ROWS, ROWS), axis=-1), lambda: torch.cat([ROWS, ROWS], -1)),
    (
        lambda: evaluate("concat", values=(ROWS, -ROWS), axis=-2, interleave=True),
        lambda: torch.stack([(-1) ** i * ROWS[:, i // 2] for i in range(6)], 1),
    ),
    (lambda: evaluate("split", x=ROWS, axis=2, split_sizes=[1, 3])[1], lambda: ROWS[..., 1:]),
    (lambda: evaluate("split", x=ROWS, axis=2, num_splits=2)[1], lambda: ROWS[..., 2:]),
    (
        lambda: evaluate(
            "quantize", input=ROWS - 9, scale=0.5, zero_point=torch.tensor(3, dtype=torch.int8), output_dtype="int8"
        ),
        lambda: ((ROWS - 9) * 2 + 3).to(torch.int8),
    ),
    (
        lambda: evaluate("quantize", input=ROWS * 20, scale=[1.0, 2.0, 4.0], axis=1, output_dtype="uint8"),
        lambda: (ROWS * 20 / torch.tensor([[1.0], [2.0], [4.0]])).round().clamp(max=255).to(torch.uint8),
    ),
    (
        lambda: evaluate("dequantize", input=ROWS.to(torch.int8), scale=[1.0, 2.0, 4.0], axis=-2),
        lambda: ROWS * torch.tensor([[1.0], [2.0], [4.0]]),
    ),
    (
        lambda: evaluate(
            "constexpr_affine_dequantize",
            **{"quantized_data": ROWS.to(torch.uint8), "zero_point": torch.tensor(5, dtype=torch.uint8)},
            **{"scale": 0.25, "axis": 0},
        ),
        lambda: (ROWS - 5) / 4,
    ),
    (lambda: evaluate("cast", x=ROWS + 0.6, dtype="int32"), lambda: ROWS.to(torch.int32)),
    (lambda: evaluate("matmul", x=HALVES, y=HALVES, transpose_y=True), lambda: HALVES.float() @ HALVES.float().mT),
    *(
        (
            lambda k=k, s=s, pad=pad: evaluate("max_pool", kernel_sizes=[k, k], strides=[s, s], pad=[pad] * 4, **CEIL),
            lambda k=k, s=s, pad=pad: F.max_pool2d(IMAGE, k, s, pad, ceil_mode=True),
        )
        for k, s, pad in ((2, 2, 0), (3, 2, 0), (3, 4, 1), (2, 3, 1), (4, 3, 2))
    ),
    (lambda: evaluate("cast", x=100 * ROWS, dtype="int16"), lambda: (100 * ROWS).to(torch.int16)),
    (lambda: evaluate("topk", x=IMAGE, k=2, axis=1, ascending=True)[0], lambda: IMAGE.sort(1).values[:, :2]),
    (
        lambda: evaluate("topk", x=IMAGE, k=2, axis=1, ascending=True, output_indices_dtype="uint16")[1],
        lambda: IMAGE.sort(1).indices[:, :2].to(torch.uint16),
    ),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_an_operator_computes_what_its_definition_says(case: int) -> None:
    ours, wanted = (function() for function in CASES[case])
    assert ours.shape == wanted.shape
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("conv", {"x": IMAGE, "weight": WEIGHT, "pad_type": "same", "strides": [2, 2], "groups": 2}, "pad_type same"),
        ("conv_transpose", {"x": IMAGE, "weight": SPREAD, "pad_type": "same"}, "pad_type same"),
        ("conv_transpose", {"x": IMAGE, "weight": SPREAD, "output_shape": [2, 3, 10, 13]}, "output_shape"),
        ("avg_pool", {"x": IMAGE, "kernel_sizes": [2, 2], "strides": [2, 2], "ceil_mode": True}, "beyond the input"),
        ("resize_bilinear", {"x": IMAGE, "sampling_mode": "OFFSET_CORNERS"}, "OFFSET_CORNERS"),
        ("upsample_bilinear", {"x": IMAGE, "align_corners": False, "half_pixel_centers": False}, "both False"),
        ("gelu", {"x": IMAGE, "mode": "OTHER"}, "mode OTHER"),
        ("real_div", {"x": torch.tensor([3]), "y": torch.tensor([2])}, "integers"),
        ("slice_by_index", {"x": ROWS, "begin": [0] * 3, "end": [1] * 3, "stride": [-1, 1, 1]}, "stride -1"),
    ],
)
def test_a_mode_that_is_not_followed_is_refused(name: str, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotImplementedError, match=reason):
        evaluate(name, **given)


def recurrent(layer: nn.LSTM, end: str = "") -> dict[str, Tensor]:
    """The weights of one direction, by MIL's names and with its order of gates."""

    def ordered(weight: Tensor) -> Tensor:
        i, f, z, o = weight.detach().chunk(4)
        return torch.cat((i, f, o, z))

    of = "_l0_reverse" if end else "_l0"
    ih, hh, first, second = (getattr(layer, f"{kind}{of}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    return {f"weight_ih{end}": ordered(ih), f"weight_hh{end}": ordered(hh), f"bias{end}": ordered(first + second)}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_states_go_along_a_sequence(direction: str) -> None:
    both = direction == "bidirectional"
    layer = nn.LSTM(3, 4, bidirectional=both)
    sequence, h, c = x(6, 2, 3), x(1 + both, 2, 4), x(1 + both, 2, 4) / 2
    given = {**recurrent(layer), **(recurrent(layer, "_back") if both else {}), "direction": direction}
    given |= {"initial_h": h.transpose(0, 1).flatten(1), "initial_c": c.transpose(0, 1).flatten(1), "x": sequence}
    with torch.no_grad():
        states, (h, c) = layer(sequence.flip(0) if direction == "reverse" else sequence, (h, c))
    wanted = [states.flip(0) if direction == "reverse" else states, *(s.transpose(0, 1).flatten(1) for s in (h, c))]
    for got, of_torch in zip(evaluate("lstm", output_sequence=True, **given), wanted, strict=True):
        assert torch.allclose(got, of_torch, atol=1e-6)
    assert torch.equal(evaluate("lstm", **given)[0], evaluate("lstm", **given)[1][None])
    for other in ({"cell_activation": "relu"}, {"clip": 1.0}):
        with pytest.raises(NotImplementedError, match=next(iter(other))):
            evaluate("lstm", **given, **other)


def test_a_cast_that_does_not_hold_its_values_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="uint16 of what it does not hold"):
        evaluate("cast", x=ROWS * 1e5, dtype="uint16")
