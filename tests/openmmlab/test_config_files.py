"""How the configs for mmdetection and mmsegmentation are written, what MMEngine makes of them, and that they run."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet", reason="needs mmdetection")
pytest.importorskip("mmseg", reason="needs mmsegmentation")

import mixzoo
from mixzoo.zoo import weights
from mixzoo.zoo.dense_configs import find_config
from mmengine.registry import PARAM_SCHEDULERS
from openmmlab.built_configs import FILES, NAMES, build, families, read, scope

ROOT = FILES[NAMES[0]].parents[2]
BASES = sorted(ROOT.glob("mm*/_base_/**/*.py"))


# no file repeats another


def own(file: Path, base: Any) -> dict[str, Any]:
    """What a file says itself, with ``base`` for what it takes from the files that it is made on."""
    code = ast.parse(file.read_text())
    code.body = [line for line in code.body if not _names_bases(line)]
    values: dict[str, Any] = {"_base_": base}
    exec(compile(code, str(file), "exec"), values)
    return {k: v for k, v in values.items() if not k.startswith("_") and k != "train_pipeline"}


def inherited(file: Path, folder: Path) -> Any:
    """What a file would be without its own settings."""
    lines = [line for line in ast.parse(file.read_text()).body if _names_bases(line)]
    values: dict[str, Any] = {}
    exec(compile(ast.Module(lines, []), str(file), "exec"), values)
    bases = values.get("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    paths = [base if "::" in base else str((file.parent / base).resolve()) for base in bases]
    (folder / "bases.py").write_text(f"_base_ = {paths}\n")
    return read(folder / "bases.py") if paths else {}


def _names_bases(line: ast.stmt) -> bool:
    return isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name) and line.targets[0].id == "_base_"


def repeated(settings: Any, base: Any, where: str = "") -> list[str]:
    """Keys of ``settings`` whose value the base has already."""
    found = []
    for key, value in settings.items():
        there = base.get(key, ...) if hasattr(base, "get") else ...
        if isinstance(value, dict) and not value.get("_delete_"):
            inner = {} if there is ... or there is None else there
            found += repeated(value, inner, f"{where}.{key}") if value else []
        elif not isinstance(value, dict) and there == value:
            found.append(f"{where}.{key}".lstrip("."))
    return found


@pytest.mark.parametrize("file", [*BASES, *FILES.values()], ids=lambda f: f.relative_to(ROOT).as_posix())
def test_a_file_says_only_what_its_base_does_not(file: Path, tmp_path: Path) -> None:
    base = inherited(file, tmp_path)
    assert repeated(own(file, base), base) == []


def test_a_repetition_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "again.py"
    base = FILES["mask-rcnn_poolformer-s12_fpn_1x_coco"]
    settings = 'dict(backbone=dict(model="poolformer_s24", map_norm="groupnorm"))'
    file.write_text(f'_base_ = "{base}"\nmodel = {settings}\ntrain_cfg = dict(max_epochs=12)\n')
    found = inherited(file, tmp_path)
    assert repeated(own(file, found), found) == ["model.backbone.map_norm", "train_cfg.max_epochs"]


# what MMEngine makes of them


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("fpn_van-b0_8xb4-40k_ade20k-512x512", "van_b0"),
        ("retinanet_efficientvit-m4_fpn_1x_coco", "efficientvit_m4"),
        ("upernet_nat-mini_8xb2-amp-160k_ade20k-512x512", "nat_mini"),
    ],
)
def test_weights_are_given_on_the_command_line(name: str, model: str, tmp_path: Path) -> None:
    source = mixzoo.create_model(model)
    torch.save(weights.to_official(source), tmp_path / "official.pth")
    config = read(find_config(name))
    config.merge_from_dict({"model.backbone.checkpoint": str(tmp_path / "official.pth")})
    body = build(config, name).backbone.body.state_dict()
    ours = source.state_dict()
    assert all(torch.equal(ours[key], tensor) for key, tensor in body.items() if not key.startswith("head"))
    blank = build(read(find_config(name)), name).backbone.body.state_dict()
    assert not all(torch.equal(ours[key], tensor) for key, tensor in blank.items())


def rates(name: str, steps: list[int]) -> list[float]:
    """The share of the whole rate at some steps of a run that counts steps."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    entries = [dict(entry) for entry in read(find_config(name)).param_scheduler]
    schedulers = [PARAM_SCHEDULERS.build({**entry, "optimizer": optimizer}) for entry in entries]
    found = {}
    for step in range(max(steps) + 1):
        if step in steps:
            found[step] = optimizer.param_groups[0]["lr"]
        for scheduler in schedulers:
            scheduler.step()
    return [found[step] for step in steps]


def test_rates_of_segmenters_are_the_published_curves() -> None:
    fall = rates("upernet_nat-mini_8xb2-amp-160k_ade20k-512x512", [0, 750, 16000])
    assert fall == pytest.approx([1e-6, 0.5 * (1 - 750 / 160000), 0.9], rel=1e-3)
    assert rates("fpn_pvt-tiny_8xb4-40k_ade20k-512x512", [0, 20000]) == pytest.approx([1, 0.5**0.9], rel=1e-4)
    assert rates("fpn_ravlt-t_8xb2-80k_ade20k-512x512", [0, 40000]) == pytest.approx([1, 0.5**0.9], rel=1e-4)
    wave = rates("fpn_biformer-small_8xb4-amp-80k_ade20k-512x512", [0, 500, 40000])
    assert wave == pytest.approx([0.1, 0.55, 0.5], rel=2e-3)


# that they run


SMALLEST = {FILES[name].parent / read(FILES[name]).model.backbone.model: name for name in reversed(families())}


LARGE = ("dinat-large", "dinat-s-large")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.full] if any(m in n for m in LARGE) else [])
        for n in sorted(SMALLEST.values())
    ],
)
def test_maps_reach_the_heads(name: str) -> None:
    model = build(read(FILES[name]), name).eval()
    backbone, neck = model.backbone, getattr(model, "neck", None)
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 96, 128))
        sizes = [(-(-96 // s), -(-128 // s)) for s in backbone.strides]
        assert [(m.shape[1], *m.shape[2:]) for m in maps] == [
            (c, *s) for c, s in zip(backbone.channels, sizes, strict=True)
        ]
        levels = neck(maps) if neck is not None else maps
        if scope(name) == "mmseg":
            logits = model.decode_head(levels)
            assert logits.shape[:2] == (1, 150) and logits.isfinite().all()
        else:
            assert len(levels) == 5 and all(level.shape[1] == 256 for level in levels)
            first = 12 if hasattr(model, "bbox_head") else 24
            assert [level.shape[2] for level in levels[:3]] == [first, first // 2, first // 4]
            assert all(level.isfinite().all() for level in levels)
