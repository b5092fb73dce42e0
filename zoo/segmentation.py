"""Backbones for segmentation_models_pytorch's decoders: Unet, UPerNet, DeepLabV3Plus, FPN, ...

    import segmentation_models_pytorch as smp

    smp.Unet(register_encoder("shvit_s4", pretrained=True), encoder_weights=None, classes=3)

Models whose maps begin at stride 4 also work by timm's name: ``smp.Unet("tu-van_b2", encoder_weights=None)``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .dense import DenseBackbone, probe
from .errors import MixzooError
from .extras import require

DEPTH = 5


def register_encoder(model: str, name: str | None = None, **options: Any) -> str:
    """Make ``model`` known to segmentation_models_pytorch, and return the name to build its decoders with.

    The decoders get maps at strides 2, 4, 8, 16 and 32, as many as they ask for. Those from 4 on that the model does
    not have are made, see `DenseBackbone`; one at stride 2 has no channels then, as in the library's own encoders.

    Args:
        model: a model or family of the zoo, or a model of timm.
        name: to register it under; ``mixzoo-<model>`` by default. An older encoder of that name is replaced.
        options: those of `DenseBackbone` (checkpoint, pretrained, norm_eval, ...) and of the model.

    Raises:
        MissingExtraError: segmentation_models_pytorch is not installed.
    """
    smp = require("segmentation_models_pytorch", "segmentation")
    name = name or f"mixzoo-{model}"
    smp.encoders.encoders[name] = {
        "encoder": _encoder_class(smp),
        "params": {"model": model, "options": options},
        "pretrained_settings": {},
    }
    return name


def _encoder_class(smp: Any) -> type[nn.Module]:
    mixin = smp.encoders._base.EncoderMixin

    class Encoder(nn.Module, mixin):  # type: ignore[misc, valid-type]
        """Images (B, C, H, W) -> [images, maps at strides 2, 4, ...], ``depth`` of them."""

        def __init__(self, model: str, options: dict[str, Any], depth: int = DEPTH, output_stride: int = 32) -> None:
            super().__init__()
            if output_stride != 2**DEPTH:
                raise MixzooError(
                    f"{model} cannot be dilated to output_stride={output_stride}, which DeepLabV3 and others want: "
                    "take another decoder."
                )
            strides = [2**level for level in range(1, depth + 1)]
            self.halved = 2 in probe(model, **options).strides
            self.body = DenseBackbone(model, strides=strides if self.halved else strides[1:], **options)
            self._depth, self._output_stride, self._in_channels = depth, output_stride, 3
            self._out_channels = [3, *(() if self.halved else (0,)), *self.body.channels]

        def forward(self, x: Tensor) -> list[Tensor]:
            batch, _, height, width = x.shape
            none = () if self.halved else (x.new_zeros(batch, 0, (height + 1) // 2, (width + 1) // 2),)
            return [x, *none, *self.body(x)]

    return Encoder
