"""`mixzoo bench --op`: the figures are of what they claim, and every op can be measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mixzoo.bench import op_report, ops
from mixzoo.bench.memory import peak_tensor_memory
from mixzoo.kernels import OPS
from mixzoo.zoo import cli
from mixzoo.zoo.errors import MixzooError, UnknownNameError
from mixzoo.zoo.machine import describe_machine
from support import rel_err
from torch import Tensor
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose limits need not be measured anew for every test."""
    known = ops.Machine(bytes_per_ms=1e7, flops_per_ms=1e8)
    monkeypatch.setattr(ops.Machine, "measured", classmethod(lambda cls, *place: known))


QUICK = ops.OpSettings(sides=(14, 28), heads=(2,), threads=1, rounds=1)


@pytest.mark.parametrize("name", OPS)
def test_candidates_compute_the_sample_as_the_reference_does(name: str) -> None:
    op = OPS[name]
    assert op.name == name
    torch.manual_seed(0)
    args, kwargs = op.sample(16, 2, 32)
    with torch.no_grad():
        expected = op.reference(*args, **kwargs)
        for candidate in op.candidates:
            if candidate.unsupported(*args, **kwargs) is None:
                assert rel_err(candidate.run(*args, **kwargs), expected) < 1e-4


@pytest.mark.parametrize("name", OPS)
def test_every_op_can_be_measured(name: str) -> None:
    rows = next(ops.bench_op(name, QUICK))
    assert [row.implementation for row in rows] == [
        ops.REFERENCE,
        *(c.name for c in OPS[name].candidates),
        ops.ALL_TOKENS,
    ]
    reference = rows[0]
    assert reference.median_ms and reference.peak_mb and reference.floor_ms and reference.speedup == 1.0
    assert all(row.reason or (row.median_ms and row.peak_mb is not None) for row in rows)


@pytest.mark.parametrize("name", OPS)
def test_samples_hold_as_many_maps_as_asked_for_in_the_type_asked_for(name: str) -> None:
    settings = ops.OpSettings(batch=3, dtype="bfloat16")
    args, kwargs = ops.placed(OPS[name].sample(15, 1, 16, 3), settings)
    assert OPS[name].reference(*args, **kwargs).shape[0] == 3
    assert all(v.dtype == torch.bfloat16 for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
    assert args[0].dim_order() == OPS[name].sample(15, 1, 16, 3)[0][0].dim_order()


def test_rows_say_what_they_were_measured_with() -> None:
    settings = ops.OpSettings(sides=(14,), heads=(2,), batch=4, dtype="bfloat16", threads=1, rounds=1)
    row = next(ops.bench_op("linear_attention", settings))[0]
    assert (row.batch, row.dtype, row.device) == (4, "bfloat16", "cpu")
    title = op_report.table([row]).title
    assert title is not None and "batch 4" in title and "bfloat16" in title  # type: ignore[operator]


def test_tensor_memory_is_exact() -> None:
    a = torch.ones(256, 1024)  # 1 MiB
    assert peak_tensor_memory(lambda: a + a) == 2**20
    assert peak_tensor_memory(lambda: (a + a) * (a + a)) == 3 * 2**20  # two sums and the product
    assert peak_tensor_memory(lambda: a[:1]) == 0


def test_memory_grows_as_it_does() -> None:
    settings = ops.OpSettings(sides=(28, 40, 56), heads=(1,), dim=32, threads=1, rounds=1)
    rows = [row for size in ops.bench_op("attention", settings) for row in size]
    assert ops.exponents(rows)[ops.REFERENCE]["memory"] == pytest.approx(2.0, abs=0.1)


def test_slopes_of_known_powers() -> None:
    x = [1.0, 2.0, 4.0]
    assert ops.slope(x, [3 * v**1.5 for v in x]) == pytest.approx(1.5)


def test_what_would_take_too_much_is_left_out_with_the_reason() -> None:
    settings = ops.OpSettings(sides=(14, 28), heads=(1,), threads=1, rounds=1, max_gib=1e-3)
    last = list(ops.bench_op("attention", settings))[-1][0]
    assert last.median_ms is None and last.reason and "GiB" in last.reason


def test_the_floor_is_below_what_is_measured() -> None:
    q, k, v = torch.randn(3, 1, 2, 1024, 32)
    machine = ops.Machine(bytes_per_ms=1e6, flops_per_ms=1e7)
    floor = machine.floor_ms([lambda: F.scaled_dot_product_attention(q, k, v)], [q, k, v])
    assert floor == pytest.approx(max(4 * 4 * q.numel() / 1e6, 4 * 2 * 1024 * 1024 * 32 / 1e7), rel=0.01)


def test_a_machine_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    machine = ops.Machine.measured()
    assert 1e5 < machine.bytes_per_ms < 1e10 and 1e5 < machine.flops_per_ms < 1e12


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="'window_attention'"):
        next(ops.bench_op("window_atention", QUICK))
    with pytest.raises(MixzooError, match="do not divide"):
        ops.OpSettings(heads=(3,))
    with pytest.raises(MixzooError, match="one side"):
        ops.OpSettings(sides=())
    with pytest.raises(UnknownNameError, match="'float16'"):
        ops.OpSettings(dtype="float61")
    with pytest.raises(MixzooError, match="There are: cpu"):
        ops.OpSettings(device="nowhere")


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "op.jsonl"
    options = ("--op", "attention", "--sides", "14,28", "--heads", "2", "--threads", "1", "--out", str(file))
    result = CliRunner().invoke(cli.app, ["bench", *options])
    assert result.exit_code == 0, result.output
    assert all(text in result.stdout for text in ("28x28", "sdpa", "floor ms", "memory"))
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert {record["record"] for record in records} == {"op", "exponents"}
    assert CliRunner().invoke(cli.app, ["bench", "van_b0", *options]).exit_code == 2
    assert CliRunner().invoke(cli.app, ["bench"]).exit_code == 2
    assert CliRunner().invoke(cli.app, ["bench", "--op", "attention", "--sides", "x"]).exit_code == 2


def test_the_report_names_growth_and_gain() -> None:
    rows = [
        ops.OpRow("o", name, side, 1, 32, 1, 1, "cpu", "float32", ms * side**2, 0.1 * side**2, 0.1, 2.0 / ms, 1.0)
        for name, ms in ((ops.REFERENCE, 2.0), ("fast", 1.0))
        for side in (28, 56)
    ]
    text = "\n".join(str(line) for line in op_report.full_report(rows, describe_machine()).renderables)  # type: ignore[attr-defined]
    assert "fast: time grows as tokens^1.00, memory as tokens^1.00" in text
    assert "fast: 2.00 times as fast as the reference" in text
