"""`mixzoo train` by torchrun, that leaves in shares-RANK.json how much of each thing was in a process at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from mixzoo.train.loop import Loop
from mixzoo.zoo.cli import main
from torch import Tensor
from torch.distributed.tensor import DTensor


def share(tensors: Iterable[Tensor]) -> float:
    """How much of these tensors is here."""
    found = [(t.to_local().numel() if isinstance(t, DTensor) else t.numel(), t.numel()) for t in tensors]
    return sum(here for here, _ in found) / sum(everywhere for _, everywhere in found)


def shares(loop: Loop) -> dict[str, float]:
    states = [v for state in loop.optimizer.state.values() for v in state.values() if v.ndim]
    assert loop.ema is not None
    return {
        "weights": share(loop.model.parameters()),
        "gradients": share(p.grad for p in loop.model.parameters() if p.grad is not None),
        "optimizer": share(states),
        "average": share(loop.ema.module.parameters()),
    }


def watched(loop: Loop, run: Any = Loop.run) -> Any:
    result = run(loop)
    (loop.out / f"shares-{loop.processes.rank}.json").write_text(json.dumps(shares(loop)))
    return result


if __name__ == "__main__":
    Loop.run = watched  # type: ignore[method-assign]
    main()
