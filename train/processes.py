"""The devices and processes of a run, through Accelerate: `torchrun` starts several, and all else is the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..zoo.extras import require
from .recipe import RecipeError
from .schema import ComputeRecipe

T = TypeVar("T")


class UnfitError(RecipeError):
    """Settings that this machine cannot compute with, though others can.

    Args:
        message: says why.
        instead: the nearest that it can compute with.
    """

    def __init__(self, message: str, instead: ComputeRecipe) -> None:
        super().__init__(message)
        self.instead = instead


class Processes:
    """This process among those of the run.

    Attributes:
        rank, count: which of how many it is.
        main: whether it writes and speaks.
        device: where it computes.
        compute: how.
        sharded, precision: whether weights are split over the processes; and that of autocast.

    Raises:
        UnfitError: the precision is not to be had here, nor compiled recomputation on a processor.
    """

    def __init__(self, compute: ComputeRecipe) -> None:
        accelerate: Any = require("accelerate", extra="train")
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=False)  # an earlier run in this process
        processor = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
        self.accelerator = accelerate.Accelerator(cpu=processor, mixed_precision=compute.precision)
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.compute = compute
        self.main, self.device = self.accelerator.is_main_process, self.accelerator.device
        self.sharded, self.precision = compute.sharding == "fsdp" and self.count > 1, compute.precision
        if compute.precision == "fp16" and self.device.type == "cpu":
            raise UnfitError(
                "'compute.precision' is 'fp16', which a processor does not train in: set bf16 or no.",
                compute.model_copy(update={"precision": "no"}),
            )
        if compute.compile and compute.checkpointing and self.device.type == "cpu":
            raise UnfitError(
                "'compute.compile' and 'compute.checkpointing' together give wrong gradients of attention on a "
                "processor, where torch recomputes it from a layout that its kernel does not read: set only one.",
                compute.model_copy(update={"compile": False}),
            )

    def shard(self, *models: nn.Module) -> None:
        """Split the parameters of models that will be called, where the recipe wants that."""
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh

            from . import sharding

            mesh = init_device_mesh(self.device.type, (self.count,))
            for model in models:
                sharding.shard(model, mesh)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The model as it is called in training, and the optimizer that scales gradients where it must."""
        if not self.sharded:
            return self.accelerator.prepare(model, optimizer)
        from . import sharding

        if self.precision != "no":
            sharding.in_precision(model, self.autocast)
        return model, self.accelerator.prepare(optimizer)

    def gathered(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Inside, each process has the whole of a model that was split, and calls it as often as it likes."""
        if not self.sharded:
            return nullcontext()
        from . import sharding

        return sharding.gathered(model)

    def whole(self, tree: T) -> T:
        """Tensors in dicts and lists, whole in the main process where they were split; all processes call it."""
        if not self.sharded:
            return tree
        from . import sharding

        return sharding.whole(tree, self.main)

    def load(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Give a model its weights, which are whole, as its own names have them."""
        if not self.sharded:
            nn.Module.load_state_dict(model, weights)
            return
        from . import sharding

        sharding.load_weights(model, weights)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Give an optimizer its state, which is whole."""
        if self.sharded:
            from . import sharding

            state = sharding.split_state(optimizer, state)
        optimizer.load_state_dict(state)

    def joined_norms(self, model: nn.Module) -> nn.Module:
        """The model with batch norms that see the batch of all processes, where there are several.

        Raises:
            RecipeError: torch has no such norms for this device.
        """
        if self.count == 1:
            return model
        if self.device.type != "cuda":
            raise RecipeError("'compute.sync_bn' needs GPUs where there are several processes: leave it out.")
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def apart(self, model: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
        """Where ``wanted``, gradients stay in this process: more of the same step are to come."""
        if wanted and self.sharded:
            from . import sharding

            return sharding.apart(model)
        return self.accelerator.no_sync(model) if wanted else nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        return self.accelerator.autocast()

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        return self.accelerator.reduce(value, "mean") if self.count > 1 else value

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(value, "sum") if self.count > 1 else value

    def first_here(self) -> AbstractContextManager[Any]:
        """What is done inside is done by the first process of this machine before the others: it may download."""
        return self.accelerator.local_main_process_first()

    def gather(self, value: T) -> list[T]:
        """What every process has, in their order."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until all are here."""
        self.accelerator.wait_for_everyone()

    def end(self) -> None:
        if self.count > 1:
            self.accelerator.end_training()


def later(value: Tensor) -> Callable[[], float]:
    """A function that gives the number in ``value`` once the device has it, without waiting for what comes after."""
    if value.device.type != "cuda":
        return lambda: float(value)
    copy = value.detach().to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def read() -> float:
        event.synchronize()
        return float(copy)

    return read
