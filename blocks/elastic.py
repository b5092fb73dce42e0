"""Models that run at any of a few nested widths, to be trained at all of them (MatFormer, arXiv:2310.07707).

`make_elastic` changes the layers of a model in place, so that they slice what they hold by the width in use. Names and
shapes of parameters stay, and a model that it was not called on knows nothing of it. Every parameter takes part at
every width: those of hidden channels that are not in use get zero for a gradient.

What a batch norm sees depends on the width of the FFNs before it. Each norm of the model therefore has running
statistics for every width (slimmable networks, arXiv:1812.08928): its own ones for the full width, and rows of the
buffers ``narrow_mean`` and ``narrow_var`` for the others. Its weight and bias are shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ffn import Role, hidden_layers, hidden_size, nested_size
from .nested import nested_ffns

MEAN, VAR = "narrow_mean", "narrow_var"
_FROM = {MEAN: "running_mean", VAR: "running_var"}


@dataclass
class Dial:
    """How many of the ``hidden`` channels of one FFN are in use."""

    hidden: int
    used: int


class Elastic:
    """The widths of a model, and which of them is in use; at first the full one.

    Args:
        widths: shares of the hidden channels, rising, the last of them 1.
        dials: of all FFNs.
    """

    def __init__(self, widths: Sequence[float], dials: Sequence[Dial]) -> None:
        self.widths, self.dials = tuple(widths), list(dials)
        self.index = self.full = len(self.widths) - 1

    def choose(self, index: int) -> None:
        """Use the width of this number in all FFNs, and its statistics in all batch norms."""
        self.index = index
        for dial in self.dials:
            dial.used = nested_size(self.widths[index], dial.hidden)


class NestedConv2d(nn.Conv2d):
    """A convolution of the hidden channels in use."""

    dial: Dial
    role: Role

    def forward(self, x: Tensor) -> Tensor:
        count, bias = self.dial.used, self.bias
        if count == self.dial.hidden:
            return super().forward(x)
        if self.role is Role.COLUMNS:
            return self._conv_forward(x, self.weight[:, :count], bias)
        weight, bias = self.weight[:count], None if bias is None else bias[:count]
        if self.role is Role.ROWS:
            return self._conv_forward(x, weight, bias)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, count)


class NestedLinear(nn.Linear):
    """A linear layer of the hidden channels in use."""

    dial: Dial
    role: Role

    def forward(self, x: Tensor) -> Tensor:
        count, bias = self.dial.used, self.bias
        if self.role is Role.COLUMNS:
            return F.linear(x, self.weight[:, :count], bias)
        return F.linear(x, self.weight[:count], None if bias is None else bias[:count])


class _NestedNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm with statistics for each width; of hidden channels, of those in use."""

    elastic: Elastic
    dial: Dial | None
    narrow_mean: Tensor  # (widths - 1, C)
    narrow_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        count = self.num_features if self.dial is None else self.dial.used
        mean, var = self._statistics()
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        mean, var, weight, bias = (None if t is None else t[:count] for t in (mean, var, self.weight, self.bias))
        return F.batch_norm(x, mean, var, weight, bias, self.training, self.momentum or 0.0, self.eps)

    def _statistics(self) -> tuple[Tensor | None, Tensor | None]:
        index = self.elastic.index
        if index == self.elastic.full:
            return self.running_mean, self.running_var
        return self.narrow_mean[index], self.narrow_var[index]


class NestedBatchNorm1d(_NestedNorm, nn.BatchNorm1d):
    """See `_NestedNorm`."""


class NestedBatchNorm2d(_NestedNorm, nn.BatchNorm2d):
    """See `_NestedNorm`."""


_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: NestedBatchNorm1d,
    nn.BatchNorm2d: NestedBatchNorm2d,
}
_LAYERS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: NestedConv2d, nn.Linear: NestedLinear}


def make_elastic(model: nn.Module, widths: Sequence[float]) -> Elastic:
    """Let ``model`` run at any of ``widths``, in place; what comes back chooses, and is its attribute ``elastic``.

    Args:
        model: the zoo's or timm's, in training form.
        widths: shares of the hidden channels of every block's FFN, rising, the last of them 1.

    Raises:
        ValueError: the model has no FFN that can be nested, or a layer that cannot run so.
    """
    elastic = Elastic(widths, ())
    dials: dict[nn.Module, Dial] = {}
    for name, ffn in nested_ffns(model).items():
        dial = Dial(hidden_size(ffn), hidden_size(ffn))
        elastic.dials.append(dial)
        for leaf, role in hidden_layers(ffn).items():
            layer = ffn.get_submodule(leaf)
            dials[layer] = dial
            if not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                _become(layer, _kind(layer, f"{name}.{leaf}"), dial=dial, role=role)
    for name, norm in _batch_norms(model):
        _become(norm, _norm_kind(norm, name), elastic=elastic, dial=dials.get(norm))
        for buffer, source in _FROM.items():
            own = getattr(norm, source)
            norm.register_buffer(buffer, own.detach().repeat(len(elastic.widths) - 1, 1))
    model.elastic = elastic  # type: ignore[assignment]
    return elastic


def _become(layer: nn.Module, kind: type[nn.Module], **attributes: object) -> None:
    """Make ``layer`` one of ``kind``, which keeps what it holds."""
    layer.__class__ = kind
    vars(layer).update(attributes)


def _kind(layer: nn.Module, name: str) -> type[nn.Module]:
    plain = type(layer) in _LAYERS and getattr(layer, "padding_mode", "zeros") == "zeros"
    if not plain:
        raise ValueError(f"{name} ({type(layer).__name__}) cannot be run at several widths")
    return _LAYERS[type(layer)]


def _batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def _norm_kind(norm: nn.Module, name: str) -> type[nn.Module]:
    if type(norm) not in _NORMS or norm.momentum is None or norm.running_mean is None:
        raise ValueError(f"{name} ({type(norm).__name__}) cannot have statistics for several widths")
    return _NORMS[type(norm)]


# statistics by width


def without_statistics(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dict of an elastic model, as (that of the model without widths, statistics of the narrower ones)."""
    narrow = {key: tensor for key, tensor in state.items() if key.endswith((f".{MEAN}", f".{VAR}"))}
    return {key: tensor for key, tensor in state.items() if key not in narrow}, narrow


@torch.no_grad()
def use_statistics(model: nn.Module, narrow: Mapping[str, Tensor], index: int) -> None:
    """Give the batch norms of a model, which may be a narrow one, the statistics of the width of this number."""
    for key, rows in narrow.items():
        name, _, buffer = key.rpartition(".")
        own = getattr(model.get_submodule(name), _FROM[buffer])
        own.copy_(rows[index, : len(own)])
