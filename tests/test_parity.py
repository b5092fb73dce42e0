"""Every family computes what its authors' code computes, through the conversion of official checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import mixzoo
import pytest
import torch
from mixzoo.zoo.weights import to_official
from support import PARITY, golden, image, official_state, rel_err

FAMILIES = (
    "metaformer",
    "efficientvit",
    "shvit",
    "van",
    "fcaformer",
    "pvt",
    "affnet",
    "ravlt",
    "mavit",
    "inline",
    "biformer",
    "flowformer",
    "agent",
    "swin",
    "slab",
    "nat",
    "soft",
    "ffnet",
    "favit",
    "cswin",
    "l2vit",
    "nalaformer",
)
HEAVY = (  # smaller members run the same code
    "favit_b2",
    "favit_b3",
    "ffnet_3",
    "ffnet_4",
    "ravlt_l",
    "mavit_l",
    "inline_cswin_base",
    "biformer_base",
    "dinat_s_base",
    "nat_base",
    "agent_cswin_base",
    "cswin_base_384",
    "agent_pvt_medium",
    "l2vit_small",
    "l2vit_base",
    "l2vit_base_384",
    "nalaformer_b",
    "nalaformer_l",
)
FROZEN = ("mixer.weight", ".unused")  # RandFormer's matrices, and what the authors' code never reads
FIXTURES = [
    pytest.param(f, n, marks=pytest.mark.full if n in HEAVY else ())
    for f in FAMILIES
    for n in golden(f)[0]
    if f"{n}/logits" in golden(f)[1]
]


def build(family: str, name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model of a fixture in float64 with the fixture's weights, and the official state dict they came from."""
    meta = golden(family)[0][name]
    base, _, size = name.partition("_r") if re.search(r"_r\d", name) else (name, "", "")
    base = base.removesuffix("_b1")  # the fixture of a single image
    options = {"img_size": int(size)} if size.isdigit() else {}
    model = mixzoo.create_model(base, **options).double().eval()
    state = official_state(meta)
    model.load_state_dict(state)
    return model, state


@pytest.mark.parametrize(("family", "name"), FIXTURES)
def test_logits_are_the_authors(family: str, name: str) -> None:
    meta, arrays = golden(family)
    model, state = build(family, name)
    with torch.inference_mode():
        out = model(image(meta[name]["input"], meta[name]["seed"]))
    assert rel_err(out, arrays[f"{name}/logits"]) <= PARITY
    frozen = sum(b.numel() for k, b in model.named_buffers() if k.endswith(FROZEN))
    assert sum(p.numel() for p in model.parameters()) + frozen == meta[name]["params"]

    back = to_official(model)
    assert back.keys() - set(meta[name]["constants"]) == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("name", [n for n in golden("fcaformer")[0] if "dense" in n])
def test_dense_features_are_the_authors(name: str, tmp_path: Path) -> None:
    """The moving windows of FcaFormer's dense-prediction backbone, also where windows do not divide the map."""
    meta, arrays = golden("fcaformer")
    file = tmp_path / "official.pth"
    torch.save({"state_dict": official_state(meta[name])}, file)
    options = {"features_only": True, "checkpoint_path": file, "dtype": torch.float64}
    model = mixzoo.create_model("fcaformer_l2_dense", **options).eval()
    with torch.inference_mode():
        features = model(image(meta[name]["input"]))
    assert model.feature_info.channels() == [96, 192, 384, 768]
    for index, feature in enumerate(features):
        assert rel_err(feature[:, ::8, ::2, ::2], arrays[f"{name}/feature{index}"]) <= PARITY


def test_parity_sees_a_norm_epsilon() -> None:
    """The comparison above can fail: another epsilon in one family's norms is far outside the tolerance."""
    meta, arrays = golden("shvit")
    model, _ = build("shvit", "shvit_s1")
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-6
    with torch.inference_mode():
        out = model(image(meta["shvit_s1"]["input"]))
    assert rel_err(out, arrays["shvit_s1/logits"]) > 5 * PARITY


def test_single_windows_of_efficientvit() -> None:
    """Each local window attention alone, where the whole model's saturated softmax would hide biases and kernels."""
    name = "efficientvit_m2_mixers"
    meta, arrays = golden("efficientvit")
    model = mixzoo.create_model("efficientvit_m2").double().eval()
    model.load_state_dict(official_state(meta[name]))
    mixers = [m for k, m in model.named_modules() if k.endswith("mix.fn.mixer")]
    for seed, (mixer, side) in enumerate(zip(mixers, (14, 7, 7, 4, 4, 4), strict=True), start=1):
        x = image((1, mixer.proj.conv.in_channels, side, side), seed)
        key = [k for k in arrays if k.startswith(name)][seed - 1]
        with torch.inference_mode():
            assert rel_err(mixer(x)[:, ::8], arrays[key]) <= PARITY
