"""Configs for mmdetection and mmsegmentation as files, and the options of mixers that they need; without MMEngine."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import mixzoo
import pytest
import torch
from mixzoo.configs import dense_configs
from mixzoo.zoo.dense import DenseBackbone
from mixzoo.zoo.dense_configs import configs_for, find_config
from mixzoo.zoo.errors import MixzooError, UnknownNameError
from mixzoo.zoo.fill import fill_
from mixzoo.zoo.listing import facts
from mixzoo.zoo.registry import VARIANTS

FILES = dense_configs()


@pytest.mark.parametrize("name", FILES)
def test_header_gives_result_source_and_licence(name: str) -> None:
    head = FILES[name].read_text().splitlines()[0]
    figure = re.match(
        r"# ((?:box|mask) AP [\d.]+|mIoU [\d.]+|No published figure at hand)[^(]*\(([^)]+)\)\. Weights: .+\.$", head
    )
    assert figure, head
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}|github\.com/.+", figure[2])
    licence = VARIANTS[model_of(name)].licence
    assert head.endswith(f"Weights: {licence or 'no licence stated'}.")


def model_of(name: str) -> str:
    (model,) = (m for m in VARIANTS if name in configs_for(m))
    return model


@pytest.mark.parametrize("name", FILES)
def test_other_variants_are_a_few_lines(name: str) -> None:
    lines = FILES[name].read_text().splitlines()
    if '_base_ = "./' in "\n".join(lines):
        assert 3 <= len(lines) <= 6
    stem = model_of(name).removesuffix("_dense").replace("_", "-")
    assert f"_{stem}_" in name


def test_configs_are_found_by_name() -> None:
    path = find_config("mask-rcnn_van-b0_fpn_1x_coco")
    assert path == find_config("mask-rcnn_van-b0_fpn_1x_coco.py") and path.is_file()
    with pytest.raises(UnknownNameError, match="mask-rcnn_van-b0_fpn_1x_coco"):
        find_config("mask-rcnn_van-b0_1x")


def test_info_lists_the_configs_of_a_model() -> None:
    assert facts("shvit_s4")["dense_configs"] == ["mask-rcnn_shvit-s4_fpn_1x_coco", "retinanet_shvit-s4_fpn_1x_coco"]
    assert facts("shvit_s1")["dense_configs"] == []


def test_listing_needs_no_mmengine() -> None:
    code = "import sys; sys.modules['mmengine'] = None; from mixzoo.zoo.dense_configs import configs_for as f; "
    done = subprocess.run([sys.executable, "-c", code + "print(f('nat_base'))"], capture_output=True, text=True)
    assert json.loads(done.stdout.replace("'", '"')) == configs_for("nat_base") != []


# options of mixers


def test_mixers_with_other_options_keep_their_weights() -> None:
    plain = DenseBackbone("dinat_s_tiny").eval()
    wide = DenseBackbone("dinat_s_tiny", mixer_options=[{"dilations": (1, 3)}, None, None, None]).eval()
    fill_(plain)
    wide.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert not torch.allclose(plain(images)[0], wide(images)[0])
    assert wide.body.spec.stages[0].mixer.options["dilations"] == (1, 3)
    assert plain.body.spec.stages[0].mixer.options["dilations"] == (1, 8)


def test_of_two_mixers_those_change_that_have_the_option() -> None:
    model = mixzoo.create_model("agent_swin_base", mixer_options=[None, None, {"pooled": (14, 14)}, None])
    mixer = model.spec.stages[2].mixer
    assert mixer.first.options["pooled"] == (14, 14) and "pooled" not in mixer.rest.options
    assert "pooled" not in VARIANTS["agent_swin_base"].spec.stages[2].mixer.first.options


def test_unknown_options_of_mixers_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="dilations"):
        mixzoo.create_model("nat_mini", mixer_options=[{"dilation": (1, 3)}, None, None, None])
    with pytest.raises(UnknownNameError, match="takes none"):
        mixzoo.create_model("shvit_s1", mixer_options=[{"heads": 2}, None, None])
    with pytest.raises(MixzooError, match="4 entries"):
        mixzoo.create_model("nat_mini", mixer_options=[None])
