"""The deploy form computes what the model computes, whatever the model's mode, and touches nothing of it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import mixzoo
import pytest
import timm
import torch
from mixzoo.blocks.conv import BranchedConv
from mixzoo.blocks.deploy import fold
from mixzoo.zoo import ffnet
from mixzoo.zoo.errors import DeployFormError
from mixzoo.zoo.fill import calibrate_, fill_
from mixzoo.zoo.weights import CheckpointError, to_official
from support import PARITY, TOLERANCE, golden, image, official_state, rel_err
from timm.layers import BatchNormAct2d, Conv2dSame, SqueezeExcite, StdConv2d
from torch import Tensor, nn
from torch.nn.utils import weight_norm as hooked_weight_norm
from torch.nn.utils.parametrizations import weight_norm

SMALL = (
    "shvit_s1", "shvit_s1_distilled", "efficientvit_m0", "efficientvit_m0_distilled", "van_b0", "fcaformer_l1",
    "poolformer_s12", "poolformerv2_s12", "randformer_s12", "convformer_s18", "caformer_s18", "metaformer_ppaa_s12_224",
)  # fmt: skip
FORMS = {"fold": fold, "deploy": mixzoo.deploy}


def filled(name: str, dtype: torch.dtype, **options: object) -> nn.Module:
    model = fill_(mixzoo.create_model(name, dtype=torch.float64, **options)).eval()
    return calibrate_(model, (64, 96)).to(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SMALL)
def test_equal_in_float64(name: str, form: str) -> None:
    model = filled(name, torch.float64)
    x = image((2, 3, 64, 96))
    with torch.no_grad():
        expected = model(x)
        assert rel_err(FORMS[form](model)(x), expected) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SMALL)
def test_equal_in_float32(name: str, form: str) -> None:
    """To 1e-5, or to four times what float32 itself loses against float64 where a model amplifies rounding more."""
    model = filled(name, torch.float32)
    x = image((1, 3, 96, 64)).float()
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        own = rel_err(model(x), exact)
        assert rel_err(FORMS[form](model)(x), exact) <= max(TOLERANCE[torch.float32], 4 * own)


def test_batch_norms_shortcuts_and_scales_are_gone() -> None:
    kinds = {
        type(m).__name__
        for n in ("shvit_s1", "efficientvit_m0", "van_b0")
        for m in fold(mixzoo.create_model(n)).modules()
    }
    assert not kinds & {"BatchNorm2d", "LayerScale2d", "DropPath", "Dropout", "Residual"}
    count = sum(p.numel() for p in fold(mixzoo.create_model("shvit_s1")).parameters())
    assert count < sum(p.numel() for p in mixzoo.create_model("shvit_s1").parameters())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_model_is_untouched_and_its_mode_is_safe(form) -> None:  # type: ignore[no-untyped-def]
    model = fill_(mixzoo.create_model("shvit_s1", num_classes=5, drop_path_rate=0.2)).train()
    before = copy.deepcopy(model.state_dict())
    deployed = form(model)
    assert model.training and not deployed.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert rel_err(form(deployed)(x), deployed(x)) == 0
        assert rel_err(deployed(x), model.eval()(x)) < TOLERANCE[torch.float32]


def test_a_wrong_fold_is_seen() -> None:
    """The comparisons above can fail: a batch norm folded without its epsilon is outside the tolerance."""
    model = filled("shvit_s1", torch.float64)
    wrong = copy.deepcopy(model)
    for module in wrong.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    x = image((1, 3, 64, 64))
    with torch.no_grad():
        assert rel_err(fold(wrong)(x), model(x)) > 100 * TOLERANCE[torch.float64]


def test_packed_weights_follow_the_weight_and_the_input_size() -> None:
    model = mixzoo.deploy(fill_(mixzoo.create_model("shvit", num_classes=3, depths=(1, 1, 1), dims=(64, 96, 128))))
    with torch.inference_mode():
        for batch, *size in ((1, 64, 64), (2, 96, 64), (70, 32, 32), (1, 64, 64)):
            x = torch.randn(batch, 3, *size)
            assert rel_err(model(x), copy.deepcopy(model).double()(x.double())) < TOLERANCE[torch.float32]
        model.stem[0].weight.mul_(2)
        assert rel_err(model(x), copy.deepcopy(model).double()(x.double())) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_of_both_forms_load(form: str, tmp_path: Path) -> None:
    model = fill_(mixzoo.create_model("shvit_s1", num_classes=7)).eval()
    deployed = FORMS[form](model)
    file = tmp_path / "deployed.pth"
    torch.save(deployed.state_dict(), file)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        loaded = mixzoo.create_model("shvit_s1", num_classes=7, checkpoint_path=file)
        assert rel_err(loaded(x), expected) < TOLERANCE[torch.float32]
        other = FORMS[form](mixzoo.create_model("shvit_s1", num_classes=7))
        for state in (model.state_dict(), to_official(model), deployed.state_dict()):
            other.load_state_dict(state)
            assert rel_err(other(x), expected) < TOLERANCE[torch.float32]
    with pytest.raises(DeployFormError, match=r"mixzoo\.deploy"):
        mixzoo.create_model("shvit_s1", num_classes=7).load_state_dict(deployed.state_dict())
    with pytest.raises(CheckpointError, match="before"):
        to_official(deployed)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "a norm with its activation": lambda: nn.Sequential(nn.Conv2d(8, 8, 3), BatchNormAct2d(8)),
    "one without an activation": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), BatchNormAct2d(8, apply_act=False)),
    "standardised weights": lambda: nn.Sequential(StdConv2d(8, 8, 3), nn.BatchNorm2d(8)),
    "padded as it runs": lambda: nn.Sequential(nn.BatchNorm2d(8), Conv2dSame(8, 8, 3), nn.BatchNorm2d(8)),
    "weights of a parametrization": lambda: nn.Sequential(weight_norm(nn.Conv2d(8, 8, 1)), nn.BatchNorm2d(8)),
    "weights of a hook": lambda: nn.Sequential(hooked_weight_norm(nn.Conv2d(8, 8, 1)), nn.BatchNorm2d(8)),
    "no statistics": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)),
    "a subclass of identity": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), Doubled(), nn.ReLU()),
    "what other code asks for": lambda: Named(),
    "a layer of two chains": lambda: Shared(),
    "weights of five axes": lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Conv3d(2, 2, (1, 3, 3))),
    "excitation by the greatest too": lambda: SqueezeExcite(8, rd_channels=4, add_maxpool=True),
    "excitation with a norm": lambda: SqueezeExcite(8, rd_channels=4, norm_layer=nn.BatchNorm2d),
}


class Named(nn.Module):
    """Code that asks for what its Sequentials hold, by name and by place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(8, 8, 3), BatchNormAct2d(8))
        self.blocks = nn.Sequential(nn.Sequential(OrderedDict(conv=nn.Conv2d(8, 8, 1), drop=nn.Dropout(0.1))))
        self.head = nn.Sequential(nn.Sequential(nn.BatchNorm2d(8), nn.Identity()), nn.Conv2d(8, 8, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem[1](self.stem[0](x))
        for block in self.blocks:
            x = x + block.drop(block.conv(x))
        assert len(self.blocks) == 1
        return self.head[2](self.head[1](self.head[0][0](x)))


class Shared(nn.Module):
    """One convolution before two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(8, 8, 1)
        self.a, self.b = nn.Sequential(conv, nn.BatchNorm2d(8)), nn.Sequential(conv, nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


class Doubled(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_layers_that_only_look_like_those_that_fold_stay_what_they_are(kind: str, form: str) -> None:
    torch.manual_seed(0)
    model = LAYERS[kind]().eval().double()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.running_var is not None):
        assert norm.running_mean is not None
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.bias.normal_()
    x = torch.randn(2, 8, 7, 9, dtype=torch.float64)
    expected = model(x)
    assert rel_err(FORMS[form](model)(x), expected) < 1e-12


@pytest.mark.parametrize("name", ("repvit_m0_9", "mobileone_s0", "levit_128s", "timm:shvit_s1"))
def test_models_of_timm_get_their_own_inference_form(name: str) -> None:
    """... in the type that they have: timm makes layers of the default one."""
    model: nn.Module = fill_(timm.create_model(name.removeprefix("timm:")).double()).eval()
    folded, x = fold(model), image((1, 3, 224, 224))
    with torch.no_grad():
        assert rel_err(folded(x), model(x)) <= TOLERANCE[torch.float64]
    assert torch.get_default_dtype() == torch.float32
    kinds = [type(m).__name__ for m in folded.modules()]
    assert not any("BatchNorm" in kind for kind in kinds) and len(kinds) < 0.7 * len(list(model.modules()))


def test_any_module_deploys() -> None:
    import timm

    model = fill_(timm.create_model("resnet10t", num_classes=4)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert rel_err(mixzoo.deploy(model)(x), model(x)) < TOLERANCE[torch.float32]


def test_embeddings_survive() -> None:
    model = filled("shvit_s1_distilled", torch.float64)
    x = image((1, 3, 64, 64))
    with torch.no_grad():
        features = model.forward_features(x)
        deployed = mixzoo.deploy(model)
        expected = model.forward_head(features, pre_logits=True)
        assert rel_err(deployed.forward_head(deployed.forward_features(x), pre_logits=True), expected) < 1e-9


def test_the_authors_deploy_form_loads_by_the_papers_name() -> None:
    """FFNet's own deploy form, which keeps layer scales, into the folded model and nowhere else."""
    sizes = {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128), "mlp_kernel": 7, "scale_init": 0.5, "num_classes": 7}
    merged = mixzoo.create_model("ffnet", **sizes, layers=ffnet.MERGED)
    state = to_official(fill_(merged).double().eval())
    assert any(key.endswith("layer_scale") for key in state)
    model = mixzoo.create_model("ffnet", **sizes).double().eval()
    x = image((1, 3, 64, 96))
    with torch.no_grad():
        for form in FORMS.values():
            deployed = form(model)
            deployed.load_state_dict(state)
            assert rel_err(deployed(x), merged(x)) < TOLERANCE[torch.float64]
    with pytest.raises(DeployFormError, match=r"mixzoo\.deploy"):
        model.load_state_dict(state)


def test_an_official_deploy_file_gives_a_deploy_form(tmp_path: Path) -> None:
    meta, arrays = golden("ffnet")
    file = tmp_path / "reparam.pth"
    torch.save({"state_dict": official_state(meta["ffnet_1_deploy"])}, file)
    model = mixzoo.create_model("ffnet_1", checkpoint_path=file, dtype=torch.float64)
    assert model.deploy_form == "folded" and not any(isinstance(m, BranchedConv) for m in model.modules())
    with torch.no_grad():
        assert rel_err(model(image(meta["ffnet_1_deploy"]["input"])), arrays["ffnet_1_deploy/logits"]) <= PARITY
