"""Which implementation of each op serves which device, a reason for each that does not, and what all have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mixzoo.kernels import OPS, Op
from support import rel_err, tolerances
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

# for a map of 56 x 56, with 64 channels and two heads, in float32: on the CPU, CUDA and MPS. The reference serves where
# its operators are the fastest already; neighborhood attention on MPS is served by tiles, which tensors that have a
# device without data cannot plan.
CHOSEN = {
    "agent_attention": ("sdpa", "reference", "sdpa"),
    "attention": ("sdpa", "sdpa", "sdpa"),
    "bilevel_routing_attention": ("tiled", "triton", "tiled"),
    "depthwise_conv2d": ("channels_last", "reference", "reference"),
    "dynamic_depthwise_conv": ("grouped", "grouped", "grouped"),
    "flow_attention": ("channel_major", "channel_major", "channel_major"),
    "frequency_filter": ("fft", "fft", "reference"),
    "halo_attention": ("reference", "reference", "sdpa"),
    "linear_attention": ("channel_major", "triton", "channel_major"),
    "neighborhood_attention": ("tiled", "triton", "reference"),
    "soft_attention": ("channel_major", "triton", "channel_major"),
    "window_attention": ("reference", "reference", "sdpa"),
}
every_op = pytest.mark.parametrize("name", OPS)
ON_CPU = [(name, c.name) for name, op in OPS.items() for c in op.candidates if c.name not in ("triton", "natten")]


def first(op: Op, args: Any, kwargs: Any) -> str:
    return next((n for n, reason in op.explain(*args, **kwargs).items() if reason is None), "reference")


@every_op
def test_each_device_is_served_by_what_is_said(name: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    args, kwargs = OPS[name].sample(56, 2, 64)
    found = [first(OPS[name], args, kwargs)]
    for device in ("cuda", "mps"):
        with FakeTensorMode():

            def there(value: Any, device: str = device) -> Any:
                if not isinstance(value, Tensor):
                    return value
                return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)

            found.append(first(OPS[name], tree_map(there, args), tree_map(there, kwargs)))
    assert tuple(found) == CHOSEN[name]


@every_op
def test_reasons_are_sentences_and_none_runs_without_one(name: str) -> None:
    args, kwargs = OPS[name].sample(14, 2, 16)
    reasons = OPS[name].explain(*args, **kwargs)
    assert list(reasons) == [c.name for c in OPS[name].candidates]
    assert all(reason is None or len(reason.split()) > 4 for reason in reasons.values())
    assert "CUDA, not on cpu" in reasons.get("triton", "CUDA, not on cpu")  # type: ignore[operator]


@pytest.fixture
def fresh_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("name", "candidate"), ON_CPU)
@pytest.mark.parametrize("side", (14, 15, 31))
@pytest.mark.usefixtures("fresh_memory_is_nan")
def test_nothing_reads_memory_that_was_not_written(name: str, candidate: str, side: int) -> None:
    """Whether or not the candidate would be taken for reasons of speed; maps that windows and regions do not divide."""
    torch.manual_seed(0)
    op = OPS[name]
    args, kwargs = tree_map(lambda t: t.double() if isinstance(t, Tensor) else t, op.sample(side, 2, 16))
    run = next(c.run for c in op.candidates if c.name == candidate)
    if (name, candidate) == ("bilevel_routing_attention", "whole"):
        args = (*args[:4], None, *args[5:])
    if (name, candidate) == ("attention", "baddbmm"):
        args = (*(t[0] for t in args[:3]), *args[3:])
    with torch.no_grad():
        assert rel_err(run(*args, **kwargs), op.reference(*args, **kwargs)) < 100 * tolerances()[torch.float64]
