"""Short trainings through MMEngine's runner on scenes of digits, broken off in the middle and gone on with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from mixzoo.train.scenes import SceneSettings, make_scenes
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_detectors import SCENES

SIZE = (80, 112)  # height, width
BATCH, STEPS, SAVED = 8, 100, 50  # SAVED: where a checkpoint is, before a run is broken off
PICTURES = BATCH * 10
SCORES = {"mask_rcnn": "coco/bbox_mAP_50", "semantic_fpn": "mIoU"}
BETTER = 0.03  # AP50 and mIoU, of 1, that the short run is ahead of the untrained model
DIGITS = tuple("014678")  # as many classes as the settings have


class BrokenOff(Exception):
    """What ends a run in the middle."""


class Watch(Hook):
    """Takes down the loss of every step, and breaks off at one of them."""

    def __init__(self, last: int | None = None) -> None:
        self.losses: dict[int, float] = {}
        self.last = last

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses[runner.iter] = outputs["loss"].item()
        if runner.iter == self.last:
            raise BrokenOff


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "scenes"
    make_scenes(out, SceneSettings(PICTURES, 24, SIZE, source="digits", classes=DIGITS, most=3))
    return out


def configure(kind: str, scenes: Path, folder: Path) -> Config:
    """The settings of the long run, made short."""
    cfg = Config.fromfile(SCENES[kind])
    cfg.merge_from_dict({"work_dir": str(folder), "experiment_name": f"{kind}-{folder.name}", "log_level": "ERROR"})
    classes = DIGITS if kind == "mask_rcnn" else ("background", *DIGITS)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.batch_size = BATCH
        loader.dataset.data_root = str(scenes)
        loader.dataset.metainfo.classes = classes
        for transform in loader.dataset.pipeline:
            if transform["type"] == "Resize":
                transform["scale"] = (SIZE[1] * 3 // 2, SIZE[0] * 3 // 2)
    epoch = 1 if cfg.train_cfg.type == "IterBasedTrainLoop" else PICTURES // BATCH
    cfg.param_scheduler[0].end = 10
    cfg.param_scheduler[1].T_max = cfg.train_cfg["max_iters" if epoch == 1 else "max_epochs"] = STEPS // epoch
    cfg.train_cfg.val_interval = STEPS // epoch
    cfg.default_hooks.checkpoint.interval = SAVED // epoch
    for name in ("val_evaluator", "test_evaluator"):
        if kind == "mask_rcnn":
            cfg[name].ann_file = str(scenes / "annotations/instances_val.json")
    return cfg


def run(cfg: Config, last: int | None = None, **changes: Any) -> tuple[Runner, Watch]:
    watch, cfg = Watch(last), copy.deepcopy(cfg)
    cfg.merge_from_dict(changes)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(watch, priority="VERY_LOW")
    if last is None:
        runner.train()
    else:
        with pytest.raises(BrokenOff):
            runner.train()
    return runner, watch


def score(runner: Runner, kind: str) -> float:
    return float(runner.val()[SCORES[kind]]) / (1 if kind == "mask_rcnn" else 100)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCENES)
def test_a_run_learns_and_goes_on_where_it_was_broken_off(kind: str, scenes: Path, tmp_path: Path) -> None:
    cfg = configure(kind, scenes, tmp_path)
    before = score(Runner.from_cfg(copy.deepcopy(cfg)), kind)
    _, first = run(cfg, last=SAVED + 5)
    assert list(first.losses) == list(range(SAVED + 6))
    runner, second = run(cfg, resume=True)
    assert list(second.losses) == list(range(SAVED, STEPS))
    losses = [*first.losses.values(), *second.losses.values()]
    tenth = STEPS // 10
    assert sum(losses[-tenth:]) < 0.7 * sum(losses[:tenth])
    assert score(runner, kind) > before + BETTER
