"""Backbones in segmentation and detection libraries: maps, strides, frozen parts, and what libraries make of them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mixzoo
import pytest
import torch
from mixzoo.zoo import weights
from mixzoo.zoo.dense import DenseBackbone
from mixzoo.zoo.detection import backbone_with_fpn
from mixzoo.zoo.errors import MixzooError, UnknownNameError
from mixzoo.zoo.fill import fill_
from mixzoo.zoo.registry import timm_name
from mixzoo.zoo.segmentation import register_encoder
from small import images
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

ALL = (4, 8, 16, 32)
SIZE = (200, 264)  # multiples of 8 only
SMALL_SHVIT: dict[str, Any] = {"depths": [1, 2, 1], "dims": [64, 128, 156], "partial_dims": [None, 32, 40]}


def check_maps(backbone: DenseBackbone, maps: tuple[Tensor, ...], batch: int = 1) -> None:
    assert [m.shape for m in maps] == [
        (batch, dim, math.ceil(SIZE[0] / stride), math.ceil(SIZE[1] / stride))
        for dim, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


# maps and strides


@pytest.mark.parametrize(
    ("name", "options", "strides"),
    [
        ("van_b0", {}, ALL),
        ("van_b0", {"out_indices": (1, 3)}, (8, 32)),
        ("van_b0", {"strides": (8, 16)}, (8, 16)),
        ("van_b0", {"strides": (4, 8, 16, 32, 64)}, (*ALL, 64)),
        ("shvit_s1", {}, (16, 32, 64)),
        ("shvit_s1", {"strides": ALL}, ALL),
        ("efficientvit_m0", {"strides": (8, 16, 32)}, (8, 16, 32)),
        ("agent_deit_tiny", {"strides": ALL}, ALL),
        ("shvit", SMALL_SHVIT, (16, 32, 64)),
        ("resnet18", {"strides": ALL}, ALL),
        ("vit_tiny_patch16_224", {"strides": ALL, "dynamic_img_size": True, "dynamic_img_pad": True}, ALL),
    ],
)
def test_maps_have_the_strides_that_are_said(name: str, options: dict[str, Any], strides: tuple[int, ...]) -> None:
    backbone = DenseBackbone(name, **options).train()
    assert backbone.strides == strides
    maps = backbone(images(2, 3, *SIZE))
    check_maps(backbone, maps, batch=2)
    sum(m.square().mean() for m in maps).backward()  # type: ignore[union-attr]
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []  # nothing is there for nothing


def test_maps_are_those_of_the_model() -> None:
    backbone = DenseBackbone("shvit_s1", strides=ALL).eval()
    fill_(backbone)
    whole = mixzoo.create_model("shvit_s1").eval()
    whole.load_state_dict({**whole.state_dict(), **backbone.body.state_dict()})
    x = images(1, 3, *SIZE)
    expected = whole.forward_intermediates(x, intermediates_only=True)
    maps = backbone(x)
    assert torch.equal(maps[2], expected[0]) and torch.equal(maps[3], expected[1])
    finer = backbone.adapter.finer["8"](expected[0])[..., : maps[1].shape[-2], : maps[1].shape[-1]]
    assert torch.equal(maps[1], finer) and maps[0].std() > 0
    coarse = DenseBackbone("van_b0", strides=(32, 64)).eval()
    map32, map64 = coarse(x)
    assert torch.equal(map64, nn.functional.max_pool2d(map32, 2, ceil_mode=True))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "shvit_s1", "out_indices": (0, 1, 2, 3)}, MixzooError, r"it has 3, at strides 16, 32, 64.*strides="),
        ({"model": "vam_b0"}, UnknownNameError, "van_b0"),
        ({"model": "van_b0", "map_norm": "layernom"}, UnknownNameError, "'layernorm'"),
        ({"model": "van_b0", "map_norm": ["layernorm"]}, MixzooError, "1 entries and the backbone 4"),
        ({"model": "van_b0", "frozen_stages": 9}, MixzooError, "-1 to 4"),
        ({"model": "van_b0", "strides": (4, 8, 12)}, MixzooError, "factors of two"),
        ({"model": "van_b0", "strides": (8, 4)}, MixzooError, "rising order"),
        ({"model": "van_b0", "drop_pat_rate": 0.1}, UnknownNameError, "drop_path_rate"),
        ({"model": "resnet18", "mixer": "pool"}, MixzooError, "timm's resnet18"),
    ],
)
def test_wrong_wishes_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DenseBackbone(**options)


# training


def test_frozen_stages_do_not_train_and_stay_in_eval_mode() -> None:
    backbone = DenseBackbone("van_b0", frozen_stages=1, drop_path_rate=0.5).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    sum(m.square().mean() for m in backbone(images(2, 3, 64, 96))).backward()  # type: ignore[union-attr]
    optimiser.step()
    changed = {name for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[name])}
    parts = {name.split(".")[1] + "." + name.split(".")[2] for name in changed}
    assert parts == {"stages.1", "stages.2", "stages.3"}  # neither statistics nor weights of stem and first stage
    assert not backbone.body.stages[0].training and backbone.body.stages[1].training
    assert DenseBackbone("van_b0", frozen_stages=0).frozen == {n for n in backbone.frozen if n.startswith("stem")}


@pytest.mark.parametrize("name", ("van_b0", "resnet18"))
def test_norm_eval_keeps_batch_statistics(name: str) -> None:
    backbone = DenseBackbone(name, norm_eval=True).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    backbone(images(2, 3, 64, 96))
    assert before and all(torch.equal(v, backbone.state_dict()[k]) for k, v in before.items())
    assert backbone.training and any(m.training for m in backbone.body.modules())


def test_checkpointing_gives_the_same_gradients() -> None:
    plain, cheap = (DenseBackbone("shvit_s1", with_cp=cp).train() for cp in (False, True))
    cheap.load_state_dict(plain.state_dict())
    for backbone in (plain, cheap):
        sum(m.square().mean() for m in backbone(images(2, 3, 64, 96))).backward()  # type: ignore[union-attr]
    grads = [[p.grad for p in backbone.parameters()] for backbone in (plain, cheap)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))  # type: ignore[arg-type]
    assert any(stage.grad_checkpointing for stage in cheap.body.stages)


# weights


def test_weights_of_a_run_and_of_grey_images_are_taken() -> None:
    backbone = DenseBackbone("shvit", checkpoint="shvit_fashion", **SMALL_SHVIT).eval()
    grey = mixzoo.create_model(
        "shvit", checkpoint_path=weights_of("shvit_fashion"), in_chans=1, num_classes=10, **SMALL_SHVIT
    ).eval()
    x = images(1, 1, 96, 96)
    expected = grey.forward_intermediates(x, intermediates_only=True)
    found = backbone(x.expand(-1, 3, -1, -1))
    assert all((a - b).norm() <= 1e-5 * b.norm() for a, b in zip(found, expected, strict=True))


def weights_of(run: str) -> Path:
    from mixzoo.zoo.trained import find_run

    return find_run(run) / "model.safetensors"


@pytest.mark.parametrize(
    ("name", "map_norm", "norms"),
    [
        ("poolformer_s12", "groupnorm", ["norm0", "norm2", "norm4", "norm6"]),
        ("nat_mini", "layernorm", ["norm0", "norm1", "norm2", "norm3"]),
        ("biformer_tiny", "layernorm", [f"extra_norms.{i}" for i in range(4)]),
        ("shvit_s1", None, []),
    ],
)
def test_official_detectors_are_loaded(name: str, map_norm: str | None, norms: list[str]) -> None:
    """The backbone's part of a checkpoint with the authors' names, in a model that holds more than the backbone."""
    source = DenseBackbone(name, map_norm=map_norm)
    fill_(source)
    whole = mixzoo.create_model(name)
    whole.load_state_dict({**whole.state_dict(), **source.body.state_dict()})
    kept = source.body.state_dict().keys()
    headless = {k for k in whole.state_dict() if k not in kept}
    official = {f"backbone.{k}": v for k, v in weights.to_official(whole).items()}
    for place, norm in zip(norms, source.norms, strict=bool(norms)):
        official |= {f"backbone.{place}.{leaf}": t for leaf, t in norm.state_dict().items()}
    detector = nn.ModuleDict({"backbone": DenseBackbone(name, map_norm=map_norm), "head": nn.Linear(2, 2)})
    found = detector.load_state_dict(official, strict=False)
    assert [k for k in found.missing_keys if not k.startswith("head.") and "num_batches" not in k] == []
    assert len(found.unexpected_keys) <= len(headless)  # the classifier
    x = images(1, 3, 96, 128)
    expected, maps = source.eval()(x), detector["backbone"].eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    own = detector.state_dict()
    detector.load_state_dict(own)  # and our own names still are


# torchvision


def two_stage(detector: Callable[..., nn.Module], name: str) -> nn.Module:
    return detector(backbone_with_fpn(name, 32), num_classes=3, min_size=136, max_size=160)


def one_stage(detector: Callable[..., nn.Module], name: str) -> nn.Module:
    backbone = backbone_with_fpn(name, 32, (8, 16, 32), LastLevelP6P7(32, 32))
    return detector(backbone, num_classes=3, min_size=136, max_size=160)


@pytest.mark.parametrize("name", ("shvit_s1", "poolformer_s12"))
@pytest.mark.parametrize("detector", (FasterRCNN, MaskRCNN, RetinaNet, FCOS))
def test_torchvision_detects(detector: Any, name: str) -> None:
    torch.manual_seed(0)
    make = one_stage if detector in (RetinaNet, FCOS) else two_stage
    model = make(detector, name).train()
    assert isinstance(model.backbone, BackboneWithFPN)
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 60.0, 50.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.zeros(1, 136, 152, dtype=torch.uint8).index_fill_(1, torch.arange(8, 50), 1),
    }
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        torch.manual_seed(1)  # the same proposals are sampled each time
        loss = sum(model([images(3, 136, 152)], [target]).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.no_grad():
        (found,) = model.eval()([images(3, 130, 150)])
    assert {"boxes", "scores", "labels"} <= set(found) and found["boxes"].shape[1] == 4


# segmentation_models_pytorch


@pytest.mark.parametrize("name", ("tu-poolformer_s12", "tu-van_b0", "shvit_s1", "van_b0", "affnet_et"))
@pytest.mark.parametrize("decoder", ("Unet", "FPN"))
def test_segmentation_models_pytorch_trains(name: str, decoder: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    encoder = f"tu-{timm_name(name[3:])}" if name.startswith("tu-") else register_encoder(name)
    model = getattr(smp, decoder)(encoder, encoder_weights=None, classes=2).train()
    for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout2d)):
        dropout.p = 0.0
    x, target = images(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        out = model(x)
        assert out.shape == (2, 2, 64, 64)
        loss = nn.functional.cross_entropy(out, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert [n for n, p in model.encoder.named_parameters() if p.grad is None] == []


def test_encoder_options_channels_and_depth() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    name = register_encoder("shvit", "grey-shvit", checkpoint="shvit_fashion", **SMALL_SHVIT)
    model = smp.Unet(name, encoder_weights=None, encoder_depth=4, decoder_channels=(32, 16, 8, 4), in_channels=4)
    assert model.encoder.body.strides == (4, 8, 16) and model(images(1, 4, 64, 96)).shape == (1, 1, 64, 96)
    with pytest.raises(MixzooError, match="output_stride=16"):
        smp.DeepLabV3Plus(name, encoder_weights=None)


# mmdetection and mmsegmentation: what they make of it is tested in tests/openmmlab


def test_their_absence_is_one_sentence() -> None:
    code = "import sys; sys.modules['mmengine'] = None\nimport mixzoo.zoo.openmmlab"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mixzoo.zoo.errors.MissingExtraError") and "--no-build-isolation 'mixzoo[openmmlab]'" in last
