"""timm's contract, held by every kind of backbone: the equivalent of timm's own tests/test_models.py."""

from __future__ import annotations

import copy
import fnmatch
import math
from typing import Any

import mixzoo
import pytest
import torch
from mixzoo.zoo.errors import MixzooError
from mixzoo.zoo.registry import VARIANTS
from small import ISOTROPIC, KINDS, TOKENS, images, make, reductions, shallow
from support import rel_err
from timm.models import FeatureInfo, get_notrace_functions, get_notrace_modules, group_parameters
from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureHookNet, FeatureListNet
from timm.models._features_fx import FeatureGraphNet
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

EQUAL = 1e-5  # float32: the same operators, in another order at most
HEADS = ("shvit_s1", "shvit_s1_distilled", "van_b0", "fcaformer_l1", "poolformer_s12", "convformer_s18")
every_kind = pytest.mark.parametrize("name", KINDS)


def features(name: str, **options: Any) -> nn.Module:
    """``name`` at full depth as a feature extractor, its batch norms at their defaults."""
    return make(name, features_only=True, **options).eval()


# training


@every_kind
def test_checkpointing_runs_blocks_again_and_changes_no_gradient(name: str) -> None:
    outputs, gradients, runs = [], [], []
    for enable in (False, True):
        model = shallow(name).train()
        model.set_grad_checkpointing(enable)
        count = [0]
        for block in (b for stage in model.stages for b in stage.blocks):
            block.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        out = model(images(2, 3, 64, 64))
        out.square().mean().backward()
        outputs.append(out.detach())
        gradients.append({n: p.grad for n, p in model.named_parameters()})
        runs.append(count[0])
    assert rel_err(outputs[1], outputs[0]) < EQUAL
    assert runs[1] == 2 * runs[0]
    assert not [n for n, g in gradients[0].items() if g is None]
    worst = max(gradients[0].values(), key=lambda g: g.abs().max()).abs().max()
    for key, gradient in gradients[0].items():
        assert (gradient - gradients[1][key]).abs().max() <= EQUAL * worst, key


@pytest.mark.parametrize("name", ("shvit_s1_distilled", "efficientvit_m0_distilled"))
def test_distilled_training_gives_a_pair_and_evaluation_the_mean(name: str) -> None:
    model = shallow(name)
    x = images(2, 3, 64, 64)
    assert isinstance(model.train()(x), Tensor)
    model.set_distilled_training()
    with torch.no_grad():
        student, teacher = model.train()(x)
        assert student.shape == teacher.shape == (2, 10) and not torch.equal(student, teacher)
        model.eval()
        pooled = model.head.global_pool(model.forward_features(x))
        logits = [model.head.fc(model.head.norm(pooled)), model.head.fc_dist(model.head.norm_dist(pooled))]
        assert rel_err(model(x), (logits[0] + logits[1]) / 2) < EQUAL
    model.train().set_distilled_training(False)
    assert isinstance(model(x), Tensor)
    assert len(model.get_classifier()) == 2


# configuration and head, without weights


@every_kind
def test_default_cfg_tells_the_truth(name: str) -> None:
    with torch.device("meta"):
        model = make(name, device="meta", dtype=torch.float32).eval()
        cfg, state = model.default_cfg, model.state_dict()
        x = torch.randn(1, *cfg["input_size"])
        heads = cfg["classifier"] if isinstance(cfg["classifier"], tuple | list) else (cfg["classifier"],)
        assert all(f"{head}.weight" in state for head in heads) and f"{cfg['first_conv']}.weight" in state
        assert model.num_classes == cfg["num_classes"] and model.in_chans == cfg["input_size"][0]
        last = model.forward_features(x)
        assert (cfg["pool_size"] is None) == (name in TOKENS) and model.num_features in (last.shape[1], last.shape[-1])
        if cfg["pool_size"]:
            assert last.shape == (1, model.num_features, *cfg["pool_size"])
        else:
            assert last.ndim == 3 and last.shape[1] > 1
        assert model.forward_head(last, pre_logits=True).shape == (1, model.head_hidden_size)
        assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", HEADS)
def test_the_classifier_comes_off(name: str) -> None:
    with torch.device("meta"):
        model = make(name, device="meta")
        x = torch.randn(2, *model.default_cfg["input_size"])
        last = model.forward_features(x).shape
        model.reset_classifier(0)
        assert model.num_classes == 0 and model(x).shape == (2, model.head_hidden_size)
        model.reset_classifier(5)
        assert model.num_classes == 5 and model(x).shape == (2, 5)
        model.reset_classifier(0, "")
        assert model(x).shape == last
        assert make(name, num_classes=0, device="meta")(x).shape == (2, model.head_hidden_size)
        assert make(name, num_classes=0, global_pool="", device="meta")(x).shape == last


@every_kind
def test_device_dtype_and_frozenness_are_kept(name: str) -> None:
    model = make(name, device="meta", dtype=torch.float64).eval()
    tensors = [*model.parameters(), *model.buffers()]
    assert {t.device.type for t in tensors} == {"meta"}
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}
    model.requires_grad_(False)
    model.reset_classifier(0)
    model.set_input_size((448, 320))
    assert not [n for n, p in model.named_parameters() if p.requires_grad]
    model.reset_classifier(3)
    classifier = model.get_classifier()
    for head in classifier if isinstance(classifier, tuple) else (classifier,):
        assert (head.weight.device.type, head.weight.dtype) == ("meta", torch.float64)
    assert not any(m.training for m in model.modules())


@every_kind
def test_unknown_options_are_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(TypeError):
        make(name, not_an_option=1)
    with pytest.raises(MixzooError, match="drop_rate"):
        mixzoo.create_model(name, droprate=0.1)


def test_a_pooling_of_another_width_is_built_not_swapped_in() -> None:
    x = images(2, 3, 64, 64)
    wide = make("shvit_s1", global_pool="catavgmax", num_classes=7).eval()
    assert wide(x).shape == (2, 7) and wide.forward_head(wide.forward_features(x), pre_logits=True).shape == (2, 640)
    with pytest.raises(ValueError, match="width"):
        make("shvit_s1").reset_classifier(3, "catavgmax")


@every_kind
def test_forward_is_features_then_head(name: str) -> None:
    model = shallow(name)
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        last = model.forward_features(x)
        assert torch.equal(model.forward_head(last), model(x))
        before = model.forward_head(last, pre_logits=True)
        assert before.shape == (2, model.head_hidden_size)
        model.reset_classifier(0)
        assert torch.equal(model(x), before)
        assert rel_err(model(x.flip(2)), before) > 1e-3


# features


@every_kind
def test_reductions_channels_and_maps_agree(name: str) -> None:
    model = features(name)
    info = model.feature_info
    assert info.reduction() == reductions(name)
    with torch.no_grad():
        maps = model(images(1, 3, 96, 128))
    assert [m.shape[1] for m in maps] == info.channels()
    for m, reduction in zip(maps, info.reduction(), strict=True):
        assert (m.shape[2], m.shape[3]) == (math.ceil(96 / reduction), math.ceil(128 / reduction))
        assert bool(m.isfinite().all())


@every_kind
def test_out_indices_choose_maps(name: str) -> None:
    model = shallow(name)
    x = images(1, 3, 64, 64)
    last = len(model.feature_info) - 1
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        for indices in ((0, last), (1,), (-1,), (0, -2)):
            chosen = FeatureGetterNet(copy.deepcopy(model), out_indices=indices)
            out = chosen(x)
            assert [m.shape[1] for m in out] == chosen.feature_info.channels()
            assert all(torch.equal(a, maps[i]) for a, i in zip(out, indices, strict=True))


def test_stages_that_no_feature_needs_are_not_kept() -> None:
    cut = features("poolformer_s12", out_indices=(0, 1))
    assert cut.feature_info.reduction() == [4, 8]
    assert len(cut.model.stages) == 2 and sum(p.numel() for p in cut.parameters()) < 1e6
    cut = make("fcaformer_l1_dense", features_only=True, out_indices=(0, 2)).train()
    sum(m.sum() for m in cut(images(2, 3, 64, 64))).backward()
    assert not [n for n, p in cut.named_parameters() if p.grad is None]


_LIKE_OTHERS = ("shvit_s1_distilled", "identityformer_s12")
EXTRACTORS = {"list": FeatureListNet, "dict": FeatureDictNet, "hook": FeatureHookNet, "fx": FeatureGraphNet}


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("name", [k for k in KINDS if k not in (*ISOTROPIC, *_LIKE_OTHERS, *TOKENS)])
def test_every_extractor_of_timm_gives_the_same_maps(name: str, extractor: str) -> None:
    x = images(1, 3, 64, 64)
    model = shallow(name)
    indices = tuple(range(len(model.feature_info)))
    options = {"flatten_sequential": True} if extractor in ("list", "dict") else {}
    with torch.no_grad():
        wanted = model.forward_intermediates(x, intermediates_only=True)
        other = EXTRACTORS[extractor](copy.deepcopy(model), out_indices=indices, **options)
        out = other(x)
    maps = list(out.values()) if isinstance(out, dict) else out
    assert all(rel_err(a, b) < EQUAL for a, b in zip(maps, wanted, strict=True))
    assert other.feature_info.channels() == [m.shape[1] for m in maps]


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_extractors_come_by_name(extractor: str) -> None:
    model = features("shvit_s1", feature_cls=extractor, out_indices=(0, 2))
    assert type(model) is EXTRACTORS[extractor]
    out = model(images(1, 3, 64, 64))
    maps = list(out.values()) if isinstance(out, dict) else out
    assert [tuple(m.shape) for m in maps] == [(1, 128, 4, 4), (1, 320, 1, 1)]


@pytest.mark.parametrize("feature_cls", ("list", "dict", "hook", "fx"))
@pytest.mark.parametrize("name", ("fcaformer_l1_dense", *TOKENS))
def test_maps_made_beside_the_stages_come_from_the_getter_alone(name: str, feature_cls: str) -> None:
    """Necks run beside the stages, and class tokens come with maps: timm's other extractors would miss that."""
    with pytest.raises(MixzooError, match="getter"):
        features(name, feature_cls=feature_cls)


def test_extractors_reach_the_blocks_of_a_single_stage() -> None:
    """Those that follow names do; those that run a model's children one after the other are refused."""
    x, name = images(1, 3, 64, 64), "dinat_isotropic_small"
    torch.manual_seed(0)
    wanted = (model := features(name, out_indices=(1, 5)))(x)
    other = FeatureHookNet(make(name).eval(), out_indices=(1, 5))
    other.load_state_dict(model.model.state_dict(), strict=False)
    assert len(wanted) == 2 and all(m.shape == (1, 384, 4, 4) for m in wanted) and rel_err(*wanted) > EQUAL
    assert [m.shape for m in other(x)] == [m.shape for m in wanted]
    for feature_cls in ("list", "dict"):
        with pytest.raises(MixzooError, match="use the getter"):
            features(name, feature_cls=feature_cls)


def positions(last: Tensor, like: Tensor) -> Tensor:
    """The map in what `forward_features` gives: ``last`` itself, or without the class token that comes first."""
    return last if last.ndim == 4 else last[:, 1:].transpose(1, 2).unflatten(2, like.shape[2:])


@every_kind
def test_forward_intermediates(name: str) -> None:
    model = shallow(name)
    x = images(2, 3, 64, 96)
    count = len(model.feature_info)
    info = FeatureInfo(model.feature_info, count)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x))
        assert [m.shape[1] for m in maps] == info.channels()
        only = model.forward_intermediates(x, indices=[0, count - 1], norm=True, intermediates_only=True)
        assert torch.equal(only[0], maps[0]) and torch.equal(only[1], positions(last, only[1]))
        final = model.forward_intermediates(x, indices=1, intermediates_only=True)
        assert len(final) == 1 and torch.equal(final[0], maps[-1])
        assert torch.equal(model.forward_intermediates(x, indices=[-2], intermediates_only=True)[0], maps[-2])
        flipped = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
        assert all(torch.equal(a.permute(0, 3, 1, 2), b) for a, b in zip(flipped, maps, strict=True))
        runs = [0]
        (model.stages[0].blocks if name in ISOTROPIC else model.stages)[1].register_forward_hook(
            lambda *_: runs.__setitem__(0, runs[0] + 1)
        )
        early, first = model.forward_intermediates(x, indices=[0], stop_early=True)
        assert runs == [0] and torch.equal(first[0], maps[0]) and torch.equal(early, maps[0])
        whole, _ = model.forward_intermediates(x, indices=[0])
        assert runs == [1] and torch.equal(whole, last)
    with pytest.raises(ValueError):
        model.forward_intermediates(x, output_fmt="NLC")
    with pytest.raises(AssertionError):
        model.forward_intermediates(x, indices=[count])


@every_kind
def test_pruning_leaves_no_unused_parameter(name: str) -> None:
    whole = shallow(name).train()
    x = images(2, 3, 64, 64)
    count = len(whole.feature_info)
    for indices, prune_norm in (([0], True), ([count - 1], False), (list(range(count)), True)):
        model = copy.deepcopy(whole)
        taken = model.prune_intermediate_layers(indices, prune_norm=prune_norm)
        maps = model.forward_intermediates(x, indices=taken, norm=not prune_norm, intermediates_only=True)
        sum(m.sum() for m in maps).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]
        model.reset_classifier(4, "avg")
        assert model(x).shape == (2, 4)
        assert model.head_hidden_size == model.get_classifier().in_features == model.num_features


def test_checkpointing_works_through_features_only() -> None:
    x = images(2, 3, 64, 64)
    found = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = make("fcaformer_l1_dense", features_only=True).train()
        model.model.set_grad_checkpointing(enable)
        sum(m.square().mean() for m in model(x)).backward()
        found.append([p.grad for p in model.parameters()])
    assert all(rel_err(a, b) < 1e-3 for a, b in zip(*found, strict=True) if b.abs().max() > 1e-3)


# torch.fx, as timm's tests trace


def traced(model: nn.Module, train: bool = False) -> nn.Module:
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    kwargs = {"leaf_modules": list(get_notrace_modules()), "autowrap_functions": list(get_notrace_functions())}
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=kwargs, suppress_diff_warning=True)
    return create_feature_extractor(
        model, train_return_nodes=[train_nodes[-1]], eval_return_nodes=[eval_nodes[-1]], tracer_kwargs=kwargs
    ).train(train)


@every_kind
def test_fx_forward(name: str) -> None:
    model = shallow(name)
    graph = traced(model)
    with torch.no_grad():
        for size in ((64, 64), (96, 64)):
            x = images(2, 3, *size)
            (out,) = graph(x).values()
            assert rel_err(out, model(x)) < EQUAL, size


@every_kind
def test_fx_backward(name: str) -> None:
    graph = traced(shallow(name).train(), train=True)
    (out,) = graph(images(2, 3, 64, 64)).values()
    out.mean().backward()
    assert not [n for n, p in graph.named_parameters() if p.grad is None]


# optimisers


@every_kind
def test_parameter_groups(name: str) -> None:
    model = make(name, device="meta")
    names = [n for n, _ in model.named_parameters()]
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers) == set(names)
    depth = sum(s.depth for s in VARIANTS[name].spec.stages)
    assert max(layers.values()) > depth
    order = [layers[n] for n in names if not n.startswith(("head", "norm"))]
    assert layers[names[0]] == 0 == min(order)
    firsts = [min(v for k, v in layers.items() if k.startswith(f"stages.{i}.")) for i in range(len(model.stages))]
    assert firsts == sorted(firsts)
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert len(set(coarse.values())) == len(model.stages) + 2
    for pattern in model.no_weight_decay():
        assert any(fnmatch.fnmatch(n, pattern) for n in names), pattern


@every_kind
def test_timm_optimisers_take_the_model(name: str) -> None:
    model = shallow(name).train()
    optimiser = create_optimizer_v2(model, "adamw", lr=1e-2, weight_decay=0.05, layer_decay=0.7)
    grouped = [p for group in optimiser.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}
    scales = {round(group["lr_scale"], 6) for group in optimiser.param_groups}
    assert len(scales) > min(4, len(model.stages) + 1) and max(scales) == 1
    undecayed = {id(p) for group in optimiser.param_groups if not group["weight_decay"] for p in group["params"]}
    listed = model.no_weight_decay()
    for key, parameter in model.named_parameters():
        assert (id(parameter) in undecayed) == (parameter.ndim <= 1 or key in listed), key
