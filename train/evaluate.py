"""How good a model is on labelled images."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Batch, Finish
from .processes import Processes


@dataclass(frozen=True)
class Scores:
    """Of ``images`` labelled images: shares that are right at first and among five guesses, mean cross-entropy."""

    images: int
    top1: float
    top5: float
    loss: float
    seconds: float

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "images_per_s": self.images_per_s}


@torch.no_grad()
def evaluate(model: nn.Module, loader: Iterable[Batch], finish: Finish, processes: Processes) -> Scores:
    """Measure a model in eval mode on what all processes load."""
    start, sums = time.perf_counter(), torch.zeros(4, dtype=torch.float64)  # images, top1, top5, loss
    for batch in loader:
        if batch.places:
            images, labels = finish(batch)
            with processes.autocast():
                logits = model(images)
            sums = sums.to(logits.device) + _sums(logits.float(), labels)
    total, top1, top5, loss = processes.total(sums.to(processes.device)).tolist()
    total = total or float("nan")
    return Scores(int(total), top1 / total, top5 / total, loss / total, time.perf_counter() - start)


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """(images, right at first, right among five, sum of cross-entropy) of logits (B, classes)."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = best == labels[:, None]
    loss = F.cross_entropy(logits.double(), labels, reduction="sum")
    counts = torch.stack([right[:, 0].sum(), right.sum()]).double()
    return torch.cat([counts.new_tensor([len(labels)]), counts, loss[None]])
