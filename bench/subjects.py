"""What is timed: a model of the zoo, and timm's own model of the same name as its baseline, with the same weights."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model
from torch import nn

from ..export import export
from ..export.verify import relative_error as outputs_error
from ..zoo.fill import fill_
from ..zoo.registry import create_model, get_variant, timm_name
from .forms import Subject

AGAINST = ("timm",)


def ours(name: str, checkpoint: Path | None, like_timm: bool, folder: Path) -> Subject:
    """The zoo's model ``name``.

    Args:
        name: paper's name.
        checkpoint: its weights; filled deterministically where None.
        like_timm: take the weights from timm's own model instead.
        folder: where its ONNX file goes.
    """
    make = partial(make_ours, name, checkpoint, like_timm)
    return Subject(make, _export_ours, folder / name)


def timms(name: str, folder: Path) -> Subject:
    """timm's own model of the same name, filled."""
    return Subject(partial(make_timms, name), _export_timms, folder / f"timm-{name}")


def no_baseline(name: str) -> str | None:
    """Why timm has no model of its own for the paper's ``name``, or None where it has one."""
    paper_name = get_variant(name).name
    if timm_name(paper_name) != paper_name and is_model(paper_name):
        return None
    return f"timm has no {paper_name} of its own"


def make_ours(name: str, checkpoint: Path | None = None, like_timm: bool = False) -> nn.Module:
    """Our model in eval mode with the checkpoint's weights, timm's filled ones, or filled."""
    model = create_model(name, checkpoint_path=checkpoint)
    if like_timm:
        model.load_state_dict(make_timms(name).state_dict())
    elif checkpoint is None:
        fill_(model)
    return model.eval()


def make_timms(name: str) -> nn.Module:
    """timm's model in eval mode, filled: default weights would make every output nearly zero."""
    return fill_(timm.create_model(get_variant(name).name)).eval()


@torch.inference_mode()
def feature_difference_from_timm(name: str, x: torch.Tensor) -> float:
    """Relative error of our last stage's map against timm's with the same weights, for x (B, C, H, W).

    Only this can agree where timm gave a model another norm and head than its authors did (PoolFormer v1).
    """
    mine: Any = make_ours(name, like_timm=True)
    theirs: Any = make_timms(name)
    mine, theirs = (m.forward_intermediates(x, indices=1, intermediates_only=True)[-1] for m in (mine, theirs))
    return relative_error(mine, theirs)


AGREES = 1e-3  # float32, folded or not; two unrelated images differ by more than 1e-1


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Greatest absolute difference over the greatest absolute value wanted; infinite where shapes differ."""
    return outputs_error([got.numpy()], [want.numpy()])


def _export_ours(model: nn.Module, x: torch.Tensor, folder: Path) -> None:
    export(model, to=("onnx",), out=folder, sizes=[(x.shape[2], x.shape[3])], batches=[x.shape[0]])


def _export_timms(model: nn.Module, x: torch.Tensor, folder: Path) -> None:
    """As timm's own onnx_export script does it by default."""
    from timm.utils.onnx import onnx_export

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter warns at every shape that becomes a constant
        onnx_export(model, str(folder / "model.onnx"), example_input=x, check=False)
