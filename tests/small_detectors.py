"""Mask R-CNN and Semantic FPN with narrow heads around any backbone, and a batch for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import nn

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SCENES = {
    "mask_rcnn": CONFIGS / "mmdet/scenes/mask-rcnn_shvit-small_scenes.py",
    "semantic_fpn": CONFIGS / "mmseg/scenes/fpn_shvit-small_scenes.py",
}
STRIDES = (4, 8, 16, 32)


def build(kind: str, backbone: dict[str, Any]) -> nn.Module:
    """``kind`` of `SCENES`, narrow, around ``backbone`` with four maps, at `STRIDES` if it says nothing else."""
    model = Config.fromfile(SCENES[kind]).model
    model.backbone = {"type": "mixzoo.Backbone", "strides": STRIDES, **backbone}
    strides = list(model.backbone.strides)
    model.neck = {"type": "FPN", "out_channels": 16, "num_outs": 4}
    scope, narrow = ("mmdet", _narrow_detector) if kind == "mask_rcnn" else ("mmseg", _narrow_segmenter)
    narrow(model, strides)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(model)


def _narrow_detector(model: Any, strides: list[int]) -> None:
    model.rpn_head.update(in_channels=16, feat_channels=16)
    model.rpn_head.anchor_generator.strides = strides
    roi = model.roi_head
    for extractor in (roi.bbox_roi_extractor, roi.mask_roi_extractor):
        extractor.update(out_channels=16, featmap_strides=strides)
    roi.bbox_head.update(in_channels=16, fc_out_channels=32)
    roi.mask_head.update(in_channels=16, conv_out_channels=16)
    model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    model.train_cfg.rcnn.sampler.num = 16


def _narrow_segmenter(model: Any, strides: list[int]) -> None:
    model.decode_head.update(in_channels=[16] * 4, in_index=[0, 1, 2, 3], channels=16, feature_strides=strides)


def batch(kind: str, height: int, width: int) -> dict[str, Any]:
    """Two images (3, height, width) of noise with what is in them, as a pipeline hands it over."""
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8) for _ in range(2)]
    sample = _objects if kind == "mask_rcnn" else _classes
    return {"inputs": pixels, "data_samples": [sample(height, width) for _ in pixels]}


def _objects(height: int, width: int) -> DetDataSample:
    boxes = torch.tensor([[10.0, 20.0, 60.0, 70.0], [50.0, 40.0, 150.0, 120.0]])
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    sample = DetDataSample(metainfo=_shape(height, width))
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([1, 3]), masks=BitmapMasks(masks.numpy(), height, width)
    )
    return sample


def _classes(height: int, width: int) -> SegDataSample:
    sample = SegDataSample(metainfo=_shape(height, width))
    sample.gt_sem_seg = PixelData(data=torch.arange(height * width).view(1, height, width) // 997 % 7)
    return sample


def _shape(height: int, width: int) -> dict[str, Any]:
    size = (height, width)
    return {"img_shape": size, "ori_shape": size, "pad_shape": size, "scale_factor": (1.0, 1.0)}
