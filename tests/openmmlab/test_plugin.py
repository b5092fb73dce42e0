"""The plugin for MMEngine: what a config builds, what is refused, and what leaves as a verified file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mixzoo
import pytest
import torch
from mixzoo.zoo.dense import DenseBackbone
from mixzoo.zoo.errors import MixzooError, UnknownNameError
from mixzoo.zoo.fill import fill_
from mixzoo.zoo.openmmlab import LayerDecay
from mixzoo.zoo.openmmlab_fpn import FinerFPN
from mixzoo.zoo.raw import RawOutputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

HEADER = 'custom_imports = dict(imports=["mixzoo.zoo.openmmlab"])\n'
DETECTOR = HEADER + (
    '_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py"]\n'
    'model = dict(type="mixzoo.Model", of="MaskRCNN",'
    ' backbone=dict(_delete_=True, type="mixzoo.Backbone", model="van_b0"))\n'
)
# MMEngine looks for the original's distribution name, which the fork's mmseg does not have
SEGMENTER = HEADER + (
    '_base_ = [__import__("mmseg").__path__[0] + "/.mim/configs/_base_/models/{base}.py"]\n'
    'norm_cfg = dict(type="BN")\n'
    'model = dict(type="mixzoo.Model", of="EncoderDecoder", pretrained=None,'
    ' backbone=dict(_delete_=True, type="mixzoo.Backbone", model="van_b0"), decode_head=dict(norm_cfg=norm_cfg))\n'
)


def built(tmp_path: Path, text: str, scope: str = "mmdet", **changes: Any) -> Any:
    """What a config of this text builds, with ``changes`` as from the command line ('model__backbone__model')."""
    (tmp_path / "config.py").write_text(text)
    config = Config.fromfile(tmp_path / "config.py")
    config.merge_from_dict({f"model.{key.replace('__', '.')}": value for key, value in changes.items()})
    init_default_scope(scope)
    __import__(f"{scope}.models")
    return MODELS.build(config.model)


# what a config builds


def test_neck_takes_the_backbones_channels(tmp_path: Path) -> None:
    model = built(tmp_path, DETECTOR, backbone__model="pvt_v2_b0", backbone__frozen_stages=1, backbone__norm_eval=True)
    assert type(model).__name__ == "MaskRCNN" and isinstance(model.backbone, DenseBackbone)
    assert model.backbone.channels == (32, 64, 160, 256) and model.backbone.strides == (4, 8, 16, 32)
    assert [conv.conv.in_channels for conv in model.neck.lateral_convs] == [32, 64, 160, 256]
    assert not any(p.requires_grad for p in model.backbone.body.stages[0].parameters())


def test_heads_take_the_channels_of_the_maps_that_they_see(tmp_path: Path) -> None:
    model = built(tmp_path, SEGMENTER.format(base="upernet_r50"), "mmseg", auxiliary_head__norm_cfg={"type": "BN"})
    assert model.decode_head.in_channels == [32, 64, 160, 256] and model.auxiliary_head.in_channels == 160
    assert model.eval()(torch.zeros(1, 3, 70, 100)).shape == (1, 19, 18, 25)


def test_weights_stay_where_mmengine_initialises(tmp_path: Path) -> None:
    model = built(tmp_path, DETECTOR, backbone__model="resnet18", backbone__out_indices=[1, 2, 3, 4])
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())


def test_checkpoint_is_loaded_from_either_key(tmp_path: Path) -> None:
    source = mixzoo.create_model("van_b0")
    fill_(source)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "van.pth")
    path = str(tmp_path / "van.pth")
    one = built(tmp_path, DETECTOR, backbone__checkpoint=path)
    other = built(tmp_path, DETECTOR, backbone__init_cfg={"type": "Pretrained", "checkpoint": path})
    for model in (one, other):
        stem = model.backbone.body.stem.state_dict()
        assert all(torch.equal(v, source.stem.state_dict()[k]) for k, v in stem.items())
    with pytest.raises(MixzooError, match="checkpoint=FILE"):
        built(tmp_path, DETECTOR, backbone__init_cfg={"type": "Normal"})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"backbone__model": "shvit_s1"}, MixzooError, r"16, 32, 64, and none at 4.*strides=\(4, 8, 16, 32\)"),
        ({"backbone__model": "van_b9"}, UnknownNameError, "van_b6"),
        ({"backbone__model": "shvit_s1", "backbone__strides": [16, 32, 64]}, MixzooError, "anchor_generator.strides"),
        ({"neck__start_level": 1}, MixzooError, "strides 8, 16, 32, 64, 128.*made for 4, 8"),
        ({"backbone__type": "mmdet.ResNet"}, MixzooError, "type='MaskRCNN'"),
        ({"pretrained": "torchvision://resnet50"}, MixzooError, "pretrained=None"),
    ],
)
def test_what_would_be_wrong_in_silence_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    text = DETECTOR
    if changes.get("backbone__type"):
        text, changes = text.replace('"mixzoo.Backbone", model="van_b0"', '"mmdet.ResNet", depth=50'), {}
    with pytest.raises(error, match=message):
        built(tmp_path, text, **changes)


def test_plain_configs_know_the_backbone_too(tmp_path: Path) -> None:
    text = DETECTOR.replace('type="mixzoo.Model", of="MaskRCNN"', 'type="MaskRCNN"')
    assert built(tmp_path, text, neck__in_channels=[32, 64, 160, 256]).backbone.model_name == "van_b0"
    with pytest.raises(MixzooError, match="none at 4"):
        built(tmp_path, text, backbone__model="efficientvit_m0")


# the pyramid of EfficientViT and SHViT


def test_finer_levels_come_from_the_top_down_sums() -> None:
    neck = FinerFPN([8, 16, 24], 4, num_outs=5, num_finer=2)
    fill_(neck)
    maps = tuple(torch.randn(1, dim, 16 >> i, 24 >> i) for i, dim in enumerate((8, 16, 24)))
    outs = neck(maps)
    assert [tuple(m.shape[-2:]) for m in outs] == [(64, 96), (32, 48), (16, 24), (8, 12), (4, 6)]
    laterals = [conv(m) for conv, m in zip(neck.lateral_convs, maps, strict=True)]
    middle = laterals[1] + nn.functional.interpolate(laterals[2], scale_factor=2)
    finest = laterals[0] + nn.functional.interpolate(middle, scale_factor=2)
    once = nn.functional.conv_transpose2d(
        finest, neck.extra_trans_convs[0].conv.weight, neck.extra_trans_convs[0].conv.bias, stride=2
    )
    twice = neck.extra_trans_convs[1](once)
    assert torch.allclose(outs[1], neck.extra_fpn_convs[1](once), atol=1e-5)
    assert torch.allclose(outs[0], neck.extra_fpn_convs[0](twice), atol=1e-5)
    assert torch.allclose(outs[2], neck.fpn_convs[0](finest), atol=1e-5)
    names = {name for name in neck.state_dict() if name.startswith("extra")}
    assert "extra_trans_convs.1.conv.weight" in names and "extra_fpn_convs.0.conv.bias" in names


def test_pyramid_without_finer_levels_is_the_librarys() -> None:
    with pytest.raises(MixzooError, match="type='FPN'"):
        FinerFPN([8, 16], 4, num_outs=2, num_finer=0)


# learning rates


def constructed(paramwise: dict[str, Any], model: nn.Module) -> dict[str, dict[str, Any]]:
    optimizer = {"type": "AdamW", "lr": 1.0, "weight_decay": 0.05}
    constructor = LayerDecay({"type": "OptimWrapper", "optimizer": optimizer}, paramwise)
    return {group["name"]: group for group in constructor(model).optimizer.param_groups}


def test_rates_fall_by_layer() -> None:
    model = nn.ModuleDict({"backbone": DenseBackbone("fcaformer_l2", frozen_stages=0), "head": nn.Linear(2, 2)})
    groups = constructed({"decay_rate": 0.5, "num_layers": 6, "first": ["token"]}, model)
    rate = {name: group["lr"] for name, group in groups.items()}
    assert rate["head.weight"] == 1.0 and not any(name.startswith("backbone.body.stem") for name in rate)
    by_stage = {
        stage: {r for name, r in rate.items() if f"stages.{stage}.blocks" in name and "token" not in name}
        for stage in range(4)
    }
    assert by_stage[0] == {0.5**6} and by_stage[1] == {0.5**5} and by_stage[3] == {0.5}
    depth = len(model["backbone"].body.stages[2].blocks)
    assert by_stage[2] == {0.5 ** (7 - 3 - block // 3) for block in range(depth)}
    assert {rate[n] for n in rate if "stages.3.downsample" in n} == {0.5}
    assert {group["weight_decay"] for name, group in groups.items() if name.endswith("bias")} == {0.0}
    assert groups["head.weight"]["weight_decay"] == 0.05


def test_rates_fall_by_stage() -> None:
    model = nn.ModuleDict({"backbone": DenseBackbone("fcaformer_l1"), "head": nn.Linear(2, 2)})
    rate = {
        name: group["lr"]
        for name, group in constructed({"decay_rate": 0.9, "num_layers": 6, "decay_type": "stage_wise"}, model).items()
    }
    assert {round(r, 9) for n, r in rate.items() if "stages.2.blocks" in n} == {round(0.9**4, 9)}
    assert {round(r, 9) for n, r in rate.items() if ".downsample" in n or ".stem" in n} == {round(0.9**7, 9)}
    with pytest.raises(MixzooError, match="decay_rate and num_layers"):
        constructed({"decay_rate": 0.9, "num_layer": 6}, model)


# files


@pytest.mark.slow
def test_segmenter_leaves_as_a_verified_file(tmp_path: Path) -> None:
    model = built(tmp_path, SEGMENTER.format(base="fpn_r50"), "mmseg", decode_head__num_classes=5).eval()
    fill_(model)
    raw = RawOutputs(model, (96, 128))
    (report,) = mixzoo.export(raw, out=tmp_path / "out", sizes=((96, 128), (70, 110)), dynamic="batch")
    checks = [check for artifact in report.manifest["artifacts"] for check in artifact["checks"]]
    assert {(c["height"], c["width"]) for c in checks} == {(96, 128), (70, 110)}
    assert report.manifest["verified"] and 0 < report.error < 1e-4
    x = torch.randn(1, 3, 70, 110)
    assert raw(x).shape == (1, 5, 70, 110)


@pytest.mark.slow
def test_detector_leaves_as_a_verified_file(tmp_path: Path) -> None:
    text = DETECTOR.replace("mask-rcnn_r50_fpn", "retinanet_r50_fpn").replace("MaskRCNN", "RetinaNet")
    changes = {"neck__num_outs": 5, "bbox_head__stacked_convs": 1, "bbox_head__num_classes": 3}
    model = built(tmp_path, text, backbone__out_indices=[0, 1, 2, 3], **changes).eval()
    fill_(model)
    (report,) = mixzoo.export(RawOutputs(model, (96, 128)), out=tmp_path / "out", sizes=((96, 128), (70, 110)))
    assert report.manifest["verified"] and 0 < report.error < 1e-4
    sizes = {(c["height"], c["width"]) for artifact in report.manifest["artifacts"] for c in artifact["checks"]}
    assert {(96, 128), (70, 110)} <= sizes
