"""Randomness by counter: what is drawn follows from the seed and from where in the run it is drawn, and nothing else.

No generator's state goes from step to step. So a run that is resumed draws what it would have drawn, and an image is
augmented alike whichever process or worker reads it.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

ORDER, AUGMENT, MIX, FORWARD, ERASE, WIDTH = range(6)  # what a key is for


def key(*counters: int) -> int:
    """63 bits that depend on every one of ``counters`` (each of 64 bits with a sign)."""
    digest = hashlib.blake2b(struct.pack(f"{len(counters)}q", *counters), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def share(*counters: int) -> float:
    """A number in [0, 1) that depends on every one of ``counters``."""
    return (key(*counters) >> 10) / 2**53


def seed_all(*counters: int) -> None:
    """Set the generators of Python, numpy and torch, on all devices in use, to the key of ``counters``."""
    seed_cpu(*counters)
    _seed_accelerators(key(*counters))


def seed_cpu(*counters: int) -> None:
    """The same for what runs in the processor alone, for each of many images."""
    number = key(*counters)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    torch.default_generator.manual_seed(number)


def seed_erasing(*counters: int) -> None:
    """The same for what timm's random erasing draws from."""
    number = key(*counters)
    random.seed(number)
    torch.default_generator.manual_seed(number)
    _seed_accelerators(number)


def _seed_accelerators(number: int) -> None:
    """Devices that are in use: `torch.manual_seed` remembers a call and its whole stack for each that is not."""
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


@contextmanager
def borrowed_generators() -> Iterator[None]:
    """Give the generators of Python, numpy and torch back afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
