"""Checkpoints load in every form, adapt as timm's do, and never lose or invent a tensor in silence."""

from __future__ import annotations

import argparse
from pathlib import Path

import mixzoo
import pytest
import timm
import torch
from mixzoo.blocks.geometry import resize_table
from mixzoo.zoo import download
from mixzoo.zoo.errors import CheckpointError
from mixzoo.zoo.fill import calibrate_, fill_
from mixzoo.zoo.registry import VARIANTS
from mixzoo.zoo.weights import load_checkpoint_file, to_official
from safetensors.torch import save_file
from support import PARITY, TOLERANCE, golden, image, official_state, rel_err


def official(name: str = "shvit_s1", family: str = "shvit") -> dict[str, torch.Tensor]:
    return official_state(golden(family)[0][name])


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
def test_official_files(key: str | None, suffix: str, tmp_path: Path) -> None:
    state, file = official(), tmp_path / f"official{suffix}"
    if suffix == ".safetensors":
        if key:
            pytest.skip("a safetensors file holds tensors only, no entries")
        save_file(state, file)
    else:
        torch.save({key: state, "epoch": 3, "args": argparse.Namespace(lr=1.0)} if key else state, file)
    meta, arrays = golden("shvit")
    x = image(meta["shvit_s1"]["input"])
    for model in (
        mixzoo.create_model("shvit_s1", checkpoint_path=file, dtype=torch.float64),
        timm.create_model("mz_shvit_s1", checkpoint_path=file, dtype=torch.float64),
    ):
        with torch.inference_mode():
            assert rel_err(model.eval()(x), arrays["shvit_s1/logits"]) <= PARITY


def test_prefixes_of_wrappers_are_stripped(tmp_path: Path) -> None:
    file = tmp_path / "ddp.pth"
    torch.save({f"module.{k}": v for k, v in official().items()}, file)
    mixzoo.create_model("shvit_s1", checkpoint_path=file)


TIMM = (
    "caformer_s18",
    "convformer_s18",
    "poolformerv2_s12",
    "efficientvit_m0",
    "efficientvit_m5",
    "shvit_s1",
    "shvit_s2",
    "pvt_v2_b0",
    "pvt_v2_b2_li",
)


@pytest.mark.parametrize("name", TIMM)
def test_timm_weights_give_timm_outputs(name: str) -> None:
    theirs = calibrate_(fill_(timm.create_model(name)), (224, 224), batch=2).double().eval()
    ours = mixzoo.create_model(name, dtype=torch.float64).eval()
    ours.load_state_dict(theirs.state_dict())
    x = image((1, 3, 224, 224))
    with torch.inference_mode():
        expected = theirs(x)
        # timm's CAFormer and ConvFormer have another epsilon in the hidden norm of the head
        assert rel_err(ours(x), expected) <= (1e-5 if "former_s18" in name else PARITY)
        assert rel_err(ours.forward_features(x), theirs.forward_features(x)) <= PARITY


def test_timm_poolformer_weights_give_timm_features_and_official_logits() -> None:
    """timm's PoolFormer v1 has the authors' stages and another head: the features agree, and the logits are theirs."""
    theirs = fill_(timm.create_model("poolformer_s12")).double().eval()
    ours = mixzoo.create_model("poolformer_s12", dtype=torch.float64).eval()
    ours.load_state_dict(theirs.state_dict())
    x = image((1, 3, 224, 224))
    with torch.inference_mode():
        features = theirs.forward_features(x)
        assert rel_err(ours.stages(ours.stem(x)), features) <= PARITY
        normed = torch.nn.functional.group_norm(features, 1, theirs.head.norm.weight, theirs.head.norm.bias, 1e-5)
        assert rel_err(ours(x), theirs.head.fc(normed.mean((2, 3)))) <= PARITY
        assert rel_err(ours(x), theirs(x)) > 1e-3


def test_all_problems_are_in_one_error(tmp_path: Path) -> None:
    state = official()
    state["nonsense.weight"] = state.pop("blocks1.0.conv.m.c.weight")
    state["blocks1.0.ffn.m.pw1.bn.bias"] = torch.zeros(3)
    file = tmp_path / "bad.pth"
    torch.save(state, file)
    pattern = r"missing \(1\)[^\n]*conv(?s:.)*unexpected \(1\)[^\n]*nonsense(?s:.)*mis-shaped \(1\)[^\n]*\(3,\)"
    with pytest.raises(CheckpointError, match=pattern):
        mixzoo.create_model("shvit_s1", checkpoint_path=file)
    with pytest.raises(RuntimeError, match="nonsense"):
        timm.create_model("mz_shvit_s1", checkpoint_path=file)


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "van.pth"
    torch.save(official("van_b0", "van"), file)
    with pytest.raises(CheckpointError, match=r"is not a checkpoint of .*shvit_s1"):
        mixzoo.create_model("shvit_s1", checkpoint_path=file)


def test_other_classes_and_channels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "official.pth"
    torch.save({"model": official()}, file)
    model = mixzoo.create_model("shvit_s1", checkpoint_path=file, num_classes=10, in_chans=1)
    assert "1000 classes" in caplog.text
    stem = official()["patch_embed.0.c.weight"].float()
    assert torch.allclose(model.stem.conv1.conv.weight, stem.sum(1, keepdim=True), atol=1e-6)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 10)
    features = mixzoo.create_model("shvit_s1", checkpoint_path=file, features_only=True, out_indices=(0, 1))
    assert [f.shape[1] for f in features(torch.randn(2, 3, 64, 64))] == [128, 224]


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    file = tmp_path / "evil.pth"
    torch.save({"model": official(), "hook": Evil(tmp_path / "touched")}, file)
    with pytest.raises(CheckpointError, match="refused"):
        mixzoo.create_model("shvit_s1", checkpoint_path=file)
    assert not (tmp_path / "touched").exists()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_broken_files(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"broken{suffix}"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="broken"):
        load_checkpoint_file(file)
    with pytest.raises(CheckpointError, match="No checkpoint file"):
        load_checkpoint_file(tmp_path / "absent.pth")


def test_tables_of_another_image_size_are_resized(tmp_path: Path) -> None:
    for name in ("efficientvit_m0", "fcaformer_l1", "randformer_s12", "metaformer_pppa_s12_224"):
        file = tmp_path / f"{name}.pth"
        source = fill_(mixzoo.create_model(name, img_size=192)).eval()
        torch.save(to_official(source), file)
        loaded = mixzoo.create_model(name, checkpoint_path=file, img_size=256).eval()
        source.set_input_size(256)
        x = torch.randn(1, 3, 256, 256)
        with torch.no_grad():
            assert torch.equal(loaded(x), source(x))
        for key, tensor in loaded.state_dict().items():
            if key.endswith(".bias.table"):
                stage = int(key.split(".")[1])
                original = mixzoo.create_model(name, checkpoint_path=file, img_size=192).state_dict()[key]
                assert torch.equal(tensor, resize_table(original, tuple(tensor.shape[-2:]))), f"stage {stage}"


def test_offline_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    url = VARIANTS["shvit_s1"].weights[0].url
    with pytest.raises(CheckpointError) as error:
        mixzoo.create_model("shvit_s1", pretrained=True, cache_dir=tmp_path)
    message = str(error.value)
    assert url in message and str(tmp_path / "shvit_s1.pth") in message and "checkpoint_path" in message
    with pytest.raises(CheckpointError, match="No weights"):
        mixzoo.create_model("fcaformer_l1", pretrained=True)


def test_links_to_shared_files_have_a_place_each(tmp_path: Path) -> None:
    """Their last part is the same for all of them, and has no suffix."""
    urls = [w.url for v in VARIANTS.values() for w in v.weights if w.url]
    shared = [url for url in urls if url.endswith("/content")]
    assert len(shared) > 1 and len({download.cache_path(url, tmp_path) for url in shared}) == len(set(shared))
    assert all(download.cache_path(url, tmp_path).suffix for url in urls)


def test_pretrained_uses_and_checks_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": official()}, tmp_path / "shvit_s1.pth")
    model = timm.create_model("mz_shvit_s1", pretrained=True, cache_dir=tmp_path, num_classes=3)
    assert torch.equal(model.stem.conv1.conv.weight, official()["patch_embed.0.c.weight"].float())
    pinned = download.Weights(url=VARIANTS["shvit_s1"].weights[0].url, sha256="0" * 64)
    with pytest.raises(CheckpointError, match="SHA-256"):
        download.fetch("shvit_s1", pinned, tmp_path)


def test_float32_survives_the_round_trip() -> None:
    model = fill_(mixzoo.create_model("fcaformer_l1", num_classes=4)).eval()
    other = mixzoo.create_model("fcaformer_l1", num_classes=4).eval()
    other.load_state_dict(to_official(model))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert rel_err(other(x), model(x)) < TOLERANCE[torch.float32]
