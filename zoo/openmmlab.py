"""Backbones in mmdetection and mmsegmentation.

``custom_imports = dict(imports=["mixzoo.zoo.openmmlab"])`` in a config registers, in MMEngine's scope ``mixzoo``:

- ``mixzoo.Backbone``: any model of the zoo or of timm as a backbone;
- ``mixzoo.Model``: builds a detector or segmenter whose neck or heads take their channels from its backbone;
- ``mixzoo.FPN``: mmdetection's pyramid with finer levels than the backbone has, as EfficientViT and SHViT detect with;
- ``mixzoo.LayerDecay``: a constructor of optimizers with a lower rate in earlier layers of a backbone.

Works with the maintained forks of OpenMMLab (onedl-mmengine, ...) and, by the same import names, with the original
packages; mixzoo itself needs neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from .dense import DenseBackbone, probe
from .errors import MissingExtraError, MixzooError

try:
    from mmengine.model import BaseModule
    from mmengine.optim import DefaultOptimWrapperConstructor
    from mmengine.registry import MODELS as ALL_MODELS
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ALL_CONSTRUCTORS
    from mmengine.registry import Registry
except ImportError as missing:
    raise MissingExtraError(
        "mixzoo.zoo.openmmlab needs MMEngine, which is not installed: pip install 'setuptools<82' wheel ninja psutil, "
        "then MMCV_WITH_OPS=1 pip install --no-build-isolation 'mixzoo[openmmlab]'."
    ) from missing

HERE = "mixzoo.zoo.openmmlab"
MODELS = Registry("model", parent=ALL_MODELS, scope="mixzoo", locations=[HERE])
CONSTRUCTORS = Registry("optimizer wrapper constructor", parent=ALL_CONSTRUCTORS, scope="mixzoo", locations=[HERE])
FINEST = 4  # the stride at which pyramids begin


@MODELS.register_module(name="Backbone")
class OpenMMLabBackbone(DenseBackbone, BaseModule):
    """`DenseBackbone` as MMEngine wants it: images (B, C, H, W) -> a tuple of maps.

    Args:
        model: a model or family of the zoo, or a model of timm.
        init_cfg: ``dict(type="Pretrained", checkpoint=...)`` is another way to say ``checkpoint=...``.
        options: those of `DenseBackbone`, and of the model. ``strides`` has to be given for a model whose finest map
            has a stride above 4: what follows would take its maps for others.

    Raises:
        MixzooError: the model has no map at stride 4, and ``strides`` is not given.
        UnknownModelError, CheckpointError: as `DenseBackbone`.
    """

    def __init__(self, model: str, init_cfg: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(model, **_with_checkpoint(options, init_cfg))
        own = self.native_strides
        if not options.get("strides") and min(own) > FINEST:
            raise MixzooError(
                f"{model} has maps at strides {_listed(own)}, and none at {FINEST}: say strides=(4, 8, 16, 32) for "
                f"finer maps by transposed convolutions, or strides={self.strides} to take them as they are."
            )

    def init_weights(self) -> None:
        """Nothing to do: a backbone is built with the weights that it starts from."""
        self._is_init = True


def _with_checkpoint(options: dict[str, Any], init_cfg: dict[str, Any] | None) -> dict[str, Any]:
    if not init_cfg:
        return options
    if init_cfg.get("type") != "Pretrained" or options.get("checkpoint"):
        raise MixzooError(
            f"mixzoo.Backbone cannot start from init_cfg={init_cfg}: give checkpoint=FILE or pretrained=True, once."
        )
    return {**options, "checkpoint": init_cfg["checkpoint"]}


@MODELS.register_module(name="FPN")
def fpn(**options: Any) -> nn.Module:
    """mmdetection's FPN with ``num_finer`` levels before it; see `openmmlab_fpn.FinerFPN`."""
    from .openmmlab_fpn import FinerFPN

    return FinerFPN(**options)


# models whose parts fit


@MODELS.register_module(name="Model")
def model(of: str, backbone: dict[str, Any], pretrained: None = None, **parts: Any) -> nn.Module:
    """The detector or segmenter called ``of``, with the neck's or the heads' ``in_channels`` those of its backbone.

    Args:
        of: what to build, as ``type`` would name it: "MaskRCNN", "EncoderDecoder".
        backbone: config of a ``mixzoo.Backbone``.
        pretrained: None; weights are the backbone's business.
        parts: the rest of the config.

    Raises:
        MixzooError: strides that anchors, regions or heads are made for are not those of the maps that they get.
    """
    if pretrained is not None:
        raise MixzooError(f"pretrained={pretrained!r} belongs into the backbone: say pretrained=None in the model.")
    built = probe(build=_build, **backbone) if "model" in backbone else None
    if not isinstance(built, DenseBackbone):
        raise MixzooError(f"mixzoo.Model fits mixzoo.Backbone only, not {backbone.get('type')}: say type={of!r}.")
    channels, strides = list(built.channels), list(built.strides)
    if parts.get("neck") is not None:
        _check_strides(of, _neck_strides(parts["neck"], strides), parts)
        parts["neck"] = {**parts["neck"], "in_channels": channels}
    else:
        for name in (head for head in _HEADS if parts.get(head)):
            parts[name] = _fitted_head(parts[name], channels)
    return ALL_MODELS.build({"type": of, "backbone": backbone, **parts})


def _build(**config: Any) -> Any:
    return ALL_MODELS.build(config)


_HEADS = {"decode_head", "auxiliary_head", "bbox_head"}


def _fitted_head(head: Any, channels: list[int]) -> Any:
    """The config of a head, or of several, with the channels of the maps that ``in_index`` chooses."""
    if isinstance(head, (list, tuple)):
        return [_fitted_head(each, channels) for each in head]
    index = head.get("in_index", -1)
    chosen = [channels[i] for i in index] if isinstance(index, (list, tuple)) else channels[index]
    return {**head, "in_channels": chosen}


def _neck_strides(neck: dict[str, Any], strides: list[int]) -> list[int] | None:
    """Strides of the maps of a pyramid; None for a neck that mixzoo does not know."""
    if not str(neck.get("type")).endswith("FPN") or "num_outs" not in neck:
        return None
    end = neck.get("end_level", -1)
    taken = strides[neck.get("start_level", 0) : None if end == -1 else end + 1]
    taken = [taken[0] >> step for step in range(neck.get("num_finer", 0), 0, -1)] + taken
    return taken + [taken[-1] << step for step in range(1, neck["num_outs"] - len(taken) + 1)]


def _check_strides(of: str, given: list[int] | None, parts: dict[str, Any]) -> None:
    for where, wanted in _wanted_strides(parts) if given else ():
        if list(wanted) != (given or [])[: len(wanted)]:
            raise MixzooError(
                f"{of}: the pyramid's maps have strides {_listed(given or [])}, and {where} is made for "
                f"{_listed(wanted)}. Say strides=... in the backbone, start_level=... or num_finer=... in the neck, or "
                "other strides there."
            )


def _wanted_strides(parts: Any, where: str = "") -> Iterator[tuple[str, Sequence[int]]]:
    """Where strides of a pyramid's maps are written down, and which."""
    entries: Any = parts.items() if isinstance(parts, dict) else enumerate(parts) if isinstance(parts, list) else ()
    for key, value in entries:
        place = f"{where}.{key}".lstrip(".")
        generator = str(where).endswith(("anchor_generator", "prior_generator"))
        if key in ("featmap_strides", "feature_strides") or (key == "strides" and generator):
            yield place, [max(v) if isinstance(v, (list, tuple)) else v for v in value]
        elif isinstance(value, (dict, list)):
            yield from _wanted_strides(value, place)


def _listed(strides: Sequence[int]) -> str:
    return ", ".join(map(str, strides))


# learning rates by layer


@CONSTRUCTORS.register_module(name="LayerDecay")
class LayerDecay(DefaultOptimWrapperConstructor):
    """Parameter groups with learning rates that fall from the heads to the stem, as in ConvNeXt (arXiv:2201.03545).

    ``paramwise_cfg`` takes ``decay_rate``, ``num_layers``, and optionally ``decay_type`` and ``first``. The rate of
    layer i is ``decay_rate ** (num_layers + 1 - i)`` of the whole; what does not belong to the backbone has the whole.
    By 'layer_wise', the default, the stem is layer 0, the first two stages are 1 and 2, every three blocks of the third
    stage are one from 3 on, and the last stage is ``num_layers``; a downsampling layer belongs to the stage that it
    leads to. By 'layer_wise_cab', which is FcaFormer's, downsampling layers are 0, 2 and 3 instead. By 'stage_wise'
    stage i is layer i + 1, and downsampling layers belong to the stem. Parameters that have one of the words in
    ``first`` in their names are of layer 0. Biases and other vectors are not decayed.

    Raises:
        MixzooError: an unknown ``decay_type`` or key, or one that is missing.
    """

    keys = ("decay_rate", "num_layers", "decay_type", "first")

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        unknown = [key for key in self.paramwise_cfg if key not in self.keys]
        kind = self.paramwise_cfg.get("decay_type", "layer_wise")
        if unknown or kind not in _LAYERS or not {"decay_rate", "num_layers"} <= self.paramwise_cfg.keys():
            raise MixzooError(
                f"mixzoo.LayerDecay does not take paramwise_cfg={self.paramwise_cfg}: it needs decay_rate and "
                f"num_layers, and takes decay_type={' or '.join(map(repr, _LAYERS))} and first=[...]."
            )

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", **_: Any) -> None:
        """Add one group for every trainable parameter of ``module`` to ``params``."""
        top, rate = self.paramwise_cfg["num_layers"] + 1, self.paramwise_cfg["decay_rate"]
        for name, parameter in module.named_parameters(prefix):
            if not parameter.requires_grad:
                continue
            scale = rate ** (top - self._layer(name, top))
            plain = parameter.ndim == 1 or name.endswith(".bias")
            params.append(
                {
                    "params": [parameter],
                    "lr": self.base_lr * scale,
                    "weight_decay": 0.0 if plain else self.base_wd,
                    "lr_scale": scale,
                    "name": name,
                }
            )

    def _layer(self, name: str, top: int) -> int:
        inside = name.removeprefix("backbone.body.")
        if inside == name:
            return top
        if inside.startswith("stem") or any(word in inside for word in self.paramwise_cfg.get("first", ())):
            return 0
        if not inside.startswith("stages."):
            return top
        _, stage, part, *rest = inside.split(".")
        block = int(rest[0]) if part == "blocks" else None
        return _LAYERS[self.paramwise_cfg.get("decay_type", "layer_wise")](int(stage), block, top - 1)


def _layer_wise(stage: int, block: int | None, last: int) -> int:
    return [1, 2, 3 + (block or 0) // 3, last][stage]


def _layer_wise_cab(stage: int, block: int | None, last: int) -> int:
    return [1, 0, 2, 3][stage] if block is None else _layer_wise(stage, block, last)


def _stage_wise(stage: int, block: int | None, last: int) -> int:
    return 0 if block is None else stage + 1


_LAYERS = {"layer_wise": _layer_wise, "layer_wise_cab": _layer_wise_cab, "stage_wise": _stage_wise}
