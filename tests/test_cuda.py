"""On a GPU: every op, every model of `small`, a step of training, compiled graphs, a run, an exported file.

What these are compared with was computed on the processor in float64, or on the GPU in float64 where sizes ask for it.
"""

from __future__ import annotations

import copy
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mixzoo.blocks.mixers import MIXERS
from mixzoo.export import export
from mixzoo.export.target import TARGETS
from mixzoo.kernels import OPS
from mixzoo.train import train
from mixzoo.train.logs import STEPS
from mixzoo.train.snapshots import FOLDER, saved_steps
from rich.console import Console
from small import KINDS, images, make, ready, shallow
from support import LARGE_LOGITS, rel_err, tolerances
from torch import Tensor, nn
from torch.utils._pytree import tree_map

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

CANDIDATES = [(name, c.name) for name, op in OPS.items() for c in op.candidates]
LOST = 0.1  # relative, of outputs
ROUTED = 0.2  # the same, where rounding sends some regions to others
STEP = 1e-3  # relative, of gradients in float32 through a whole model
COMPILED = (
    "biformer_tiny",
    "dinat_mini",
    "favit_b0",
    "soft_tiny",
    "van_b0",
)  # each with an op of another Triton kernel


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def at(values: Any, dtype: torch.dtype) -> Any:
    """On the GPU and of a type, what is a tensor of numbers; memory order stays."""

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().cuda()
        return value.to(dtype).requires_grad_() if value.is_floating_point() else value

    return tree_map(there, values)


def leaves(args: Any) -> list[Tensor]:
    return [v for v in torch.utils._pytree.tree_leaves(args) if isinstance(v, Tensor) and v.is_floating_point()]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("side", (14, 31, 56))
@pytest.mark.parametrize(("name", "candidate"), CANDIDATES)
def test_candidates_agree_with_the_reference(name: str, candidate: str, side: int, dtype: torch.dtype) -> None:
    """... and their gradients, where they have some."""
    torch.manual_seed(0)
    op = OPS[name]
    args, kwargs = op.sample(side, 2, 64)
    mine, options = at(args, dtype), at(kwargs, dtype)
    chosen = next(c for c in op.candidates if c.name == candidate)
    if chosen.unsupported(*mine, **options):
        mine, options = tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, (mine, options))
    if reason := chosen.unsupported(*mine, **options):
        pytest.skip(reason)
    exact = tree_map(lambda v: v.detach().double() if isinstance(v, Tensor) and v.is_floating_point() else v, mine)
    exact_options = tree_map(
        lambda v: v.detach().double() if isinstance(v, Tensor) and v.is_floating_point() else v, options
    )
    trained = [v.requires_grad for v in leaves(mine)]
    for value, wanted in zip(leaves(exact), trained, strict=True):
        value.requires_grad_(wanted)
    tolerance = tolerances(**LARGE_LOGITS)[dtype]
    out, expected = chosen.run(*mine, **options), op.reference(*exact, **exact_options)
    assert out.dtype == op.reference(*mine, **options).dtype and rel_err(out, expected) <= 5 * tolerance
    if any(trained):
        weight = torch.randn_like(expected)
        wanted = torch.autograd.grad((expected * weight).sum(), [v for v in leaves(exact) if v.requires_grad])
        got = torch.autograd.grad((out * weight.to(out.dtype)).sum(), [v for v in leaves(mine) if v.requires_grad])
        assert max(rel_err(a, b) for a, b in zip(got, wanted, strict=True)) <= 20 * tolerance


@pytest.mark.parametrize("channels_last", (False, True), ids=("contiguous", "channels_last"))
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_models_give_what_they_give_on_the_processor(name: str, channels_last: bool) -> None:
    """To what rounding makes of the same weights on the processor: of filled ones it makes much in two models.

    Where it makes more than `LOST` of them in half precision, a comparison would prove nothing: they have to be finite.
    """
    model, x = shallow(name), images(3, 3, 192, 224)
    expected = copy.deepcopy(model).double()(x.double())
    order = torch.channels_last if channels_last else torch.contiguous_format
    there, placed = copy.deepcopy(model).cuda().to(memory_format=order), x.cuda().contiguous(memory_format=order)
    assert rel_err(there(placed).cpu(), expected) < max(1e-5, 4 * rel_err(model(x), expected))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype), torch.autocast("cpu", dtype):
            error, own = rel_err(there(placed).cpu(), expected), rel_err(model(x), expected)
        allowed = max(ROUTED if "biformer" in name else 0.02, 4 * own)
        assert error < allowed if own < LOST else error < float("inf")


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(y).view_as(y)).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def difference(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Length of the difference of two gradients, relative to that of the second."""
    assert got.keys() == wanted.keys()
    apart = sum((got[key].cpu().double() - wanted[key].cpu()).square().sum() for key in wanted)
    return float((apart / sum(g.cpu().double().square().sum() for g in wanted.values())) ** 0.5)


@pytest.mark.parametrize("channels_last", (False, True), ids=("contiguous", "channels_last"))
@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_the_processor(name: str, channels_last: bool) -> None:
    model, x = shallow(name), images(2, 3, 128, 128)
    wanted = gradients(copy.deepcopy(model).double(), x.double())
    order = torch.channels_last if channels_last else torch.contiguous_format
    there, placed = copy.deepcopy(model).cuda().to(memory_format=order), x.cuda().contiguous(memory_format=order)
    got = gradients(there, placed)
    assert difference(got, wanted) < max(STEP, 4 * difference(gradients(model, x), wanted))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("mixer", MIXERS)
def test_mixers_train_in_lower_precision(mixer: str, dtype: torch.dtype) -> None:
    """Loss goes down, gradients are finite and reach all that they reach in float32."""
    torch.manual_seed(0)
    model: Any = ready(make("metaformer_pppa_s12_224", num_classes=4, mixer=mixer)).cuda().train()
    x, labels = torch.randn(8, 3, 96, 96, device="cuda"), torch.arange(8, device="cuda") % 4
    optimizer, scaler = torch.optim.AdamW(model.parameters(), 1e-3), torch.amp.GradScaler("cuda")
    losses = []
    for _ in range(12):
        with torch.autocast("cuda", dtype):
            loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(p.isfinite().all() for p in model.parameters())
    assert min(losses[-3:]) < losses[0]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_models_agree(name: str) -> None:
    model, x = shallow(name).cuda(), images(2, 3, 128, 128).cuda()
    expected = gradients(copy.deepcopy(model), x)
    compiled: Any = torch.compile(copy.deepcopy(model))
    with torch.no_grad():
        assert rel_err(compiled(x), model(x)) < 1e-4
    got = {key.removeprefix("_orig_mod."): value for key, value in gradients(compiled, x).items()}
    assert difference(got, expected) < STEP


@pytest.mark.parametrize("precision", ("no", "bf16", "fp16"))
def test_a_run_learns_and_goes_on_from_its_last_checkpoint(precision: str, tmp_path: Path) -> None:
    settings = [
        "schedule.epochs=6",
        "schedule.warmup_epochs=1",
        "saving.every_epochs=3",
        f"compute.precision={precision}",
    ]
    whole, again = tmp_path / "whole", tmp_path / "again"
    result = train("shvit_digits", settings, whole, Console(file=io.StringIO()))
    assert result.epochs[-1].accuracy > 0.5
    assert next(result.model.parameters()).dtype == torch.float32
    shutil.copytree(whole / FOLDER, again / FOLDER)
    for name in ("log.csv", STEPS):
        shutil.copy(whole / name, again / name)
    shutil.rmtree(saved_steps(again)[0])  # the newest, of the end
    train("shvit_digits", settings, again, Console(file=io.StringIO()), resume=True)
    losses = [
        [float(line.split(",")[3]) for line in (folder / STEPS).read_text().splitlines()[1:]]
        for folder in (whole, again)
    ]
    assert len(losses[0]) == len(losses[1]) > 20
    assert losses[1] == pytest.approx(losses[0], rel=0.05)  # sums on a GPU are in no fixed order


@pytest.mark.parametrize("name", ("biformer_tiny", "favit_b0", "poolformer_s12", "van_b0"))
def test_onnx_files_are_compared_on_the_gpu_too(name: str, tmp_path: Path) -> None:
    if TARGETS["onnx"].accelerator() is None:  # type: ignore[attr-defined]
        pytest.skip("ONNX Runtime has no CUDA here: pip install onnxruntime-gpu")
    (report,) = export(shallow(name), "onnx", tmp_path, sizes="96x128", dynamic=("batch",), name=name)
    (item,) = report.manifest["artifacts"]
    assert item["elsewhere"]["error"] < 1e-4 and item["elsewhere"]["latency"]["device"] == "cuda"
    assert item["elsewhere"]["nodes"] > 5 * sum(item["elsewhere"]["rest"].values())
