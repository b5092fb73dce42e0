"""By torchrun: how far gradients of split models are from those of whole ones, as JSON in the file that is named.

Each process has its part of a batch; batch norms are fixed, so that the parts make what the whole batch makes.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
from mixzoo.train.sharding import shard
from small import KINDS, images, shallow
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.modules.batchnorm import _BatchNorm


def gradients(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model(batch).square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}


def error(name: str, rank: int, count: int) -> float:
    """The greatest relative error of a gradient; infinite where one is missing."""
    model = shallow(name).train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    batch = images(2 * count, 3, 64, 64)
    expected = gradients(copy.deepcopy(model), batch)
    shard(model, init_device_mesh("cpu", (count,)))
    found = gradients(model, batch[2 * rank : 2 * rank + 2])
    if found.keys() != expected.keys():
        return float("inf")
    least = 1e-5 * max(float(value.abs().max()) for value in expected.values())  # below are those that should be 0
    return max(float((found[k] - v).abs().max() / v.abs().max().clamp(min=least)) for k, v in expected.items())


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    rank, count = distributed.get_rank(), distributed.get_world_size()
    errors = {name: error(name, rank, count) for name in KINDS}
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(errors))
    distributed.destroy_process_group()
