"""Classification heads."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from .act import SquaredReLU
from .affine import affine_before, batch_norm_affine
from .tokens import TokenPool

Factory = Callable[[int], nn.Module]


def mlp_hidden(dim: int, ratio: float = 4.0) -> nn.Sequential:
    """Hidden layer of the MLP head of ConvFormer and CAFormer: linear, squared ReLU, LayerNorm (arXiv:2210.13452)."""
    hidden = int(ratio * dim)
    return nn.Sequential(OrderedDict(fc=nn.Linear(dim, hidden), act=SquaredReLU(), norm=nn.LayerNorm(hidden)))


class ClassifierHead(nn.Module):
    """Pool, norm, hidden layer, dropout, linear classifier: (B, C, H, W) -> (B, num_classes).

    With ``num_classes=0`` the result is the pooled vector that would enter the classifier (B, hidden_size); with
    ``global_pool=''`` as well, the map itself. A distilled head has a second norm and classifier: evaluation returns
    the mean of both, and training too unless `distilled_training` asks for the pair (DeiT, arXiv:2012.12877).

    Args:
        dim: channels of the map.
        num_classes: outputs; 0 for none.
        global_pool: timm's name of a global pooling ('avg', 'max', 'avgmax', ...), or '' for none.
        norm: factory of the norm of the pooled vector.
        hidden: factory of what runs between norm and classifier.
        drop_rate: dropout before the classifier.
        distilled: whether there is a second classifier for a teacher's labels.
        prefix: class tokens; with any, the input is (B, prefix + N, C) and the poolings those of `TokenPool`.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        global_pool: str = "avg",
        norm: Factory | None = None,
        hidden: Factory | None = None,
        drop_rate: float = 0.0,
        distilled: bool = False,
        prefix: int = 0,
    ) -> None:
        super().__init__()
        self.distilled_training = False
        self.prefix = prefix
        self.global_pool = _pool(global_pool, prefix)
        features = dim * self.global_pool.feat_mult()
        self.norm = norm(features) if norm else nn.Identity()
        self.hidden = hidden(features) if hidden else nn.Identity()
        self.hidden_size = _out_features(self.hidden, features)
        self.drop = nn.Dropout(drop_rate)
        self.norm_dist = norm(features) if norm and distilled else nn.Identity()
        self.distilled = distilled
        self.reset(num_classes)

    def reset(self, num_classes: int, global_pool: str | None = None, like: Tensor | None = None) -> None:
        """Replace the classifiers, on the device and of the type of ``like``, and the pooling if one is named.

        Raises:
            ValueError: the pooling makes vectors of another width.
        """
        if global_pool is not None:
            pool = _pool(global_pool, self.prefix)
            if global_pool and pool.feat_mult() != self.global_pool.feat_mult():
                raise ValueError(f"global_pool={global_pool!r} makes vectors of another width: build the model with it")
            self.global_pool = pool
        self.fc = _classifier(self.hidden_size, num_classes, like).train(self.training)
        self.fc_dist = _classifier(self.hidden_size, num_classes, like).train(self.training) if self.distilled else None

    def folded(self) -> nn.Module:
        """The head with its batch norm, and with a second classifier if it has one, in one linear layer."""
        linear = isinstance(self.fc, nn.Linear) and isinstance(self.hidden, nn.Identity)
        return FoldedHead(self) if linear and isinstance(self.norm, nn.BatchNorm1d) else self

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        x = self.global_pool(x)
        if self.global_pool.is_identity():
            if not isinstance(self.fc, nn.Identity) and not pre_logits:
                raise ValueError("global_pool='' leaves a map, which the classifier cannot take: name a pooling")
            return x
        features = self.drop(self.hidden(self.norm(x)))
        if self.fc_dist is None:
            return features if pre_logits else self.fc(features)
        distilled = self.drop(self.norm_dist(x))
        if pre_logits:
            return (features + distilled) / 2
        logits, teacher = self.fc(features), self.fc_dist(distilled)
        if self.distilled_training and self.training:
            return logits, teacher
        return (logits + teacher) / 2


class FoldedHead(nn.Module):
    """Pool and one linear layer: (B, C, H, W) -> (B, num_classes). The norms stay for ``pre_logits`` alone."""

    distilled = False

    def __init__(self, source: ClassifierHead) -> None:
        super().__init__()
        self.global_pool, self.hidden_size = source.global_pool, source.hidden_size
        self.norm, self.norm_dist = source.norm, source.norm_dist if source.distilled else None
        self.fc = _with_norm(source.fc, source.norm)
        if source.distilled:
            second = _with_norm(source.fc_dist, source.norm_dist)
            self.fc.weight.data = (self.fc.weight + second.weight) / 2
            self.fc.bias.data = (self.fc.bias + second.bias) / 2

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if not pre_logits:
            return self.fc(x)
        return self.norm(x) if self.norm_dist is None else (self.norm(x) + self.norm_dist(x)) / 2


def _with_norm(fc: nn.Module | None, norm: nn.Module) -> nn.Linear:
    """A copy of the classifier that takes what enters its batch norm."""
    assert isinstance(fc, nn.Linear) and isinstance(norm, nn.BatchNorm1d)
    result = copy.deepcopy(fc)
    affine_before(result, *batch_norm_affine(norm))
    return result


def _pool(name: str, prefix: int) -> SelectAdaptivePool2d | TokenPool:
    return TokenPool(name, prefix) if prefix else SelectAdaptivePool2d(pool_type=name, flatten=bool(name))


def _classifier(features: int, num_classes: int, like: Tensor | None) -> nn.Module:
    """A fresh linear classifier on the device and of the type of ``like``."""
    if not num_classes:
        return nn.Identity()
    fc = nn.Linear(features, num_classes)
    if like is not None:
        fc = fc.to(like.device, like.dtype)
    nn.init.trunc_normal_(fc.weight, std=0.02)
    nn.init.zeros_(fc.bias)
    return fc


def _out_features(module: nn.Module, features: int) -> int:
    for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
        features = linear.out_features
    return features
