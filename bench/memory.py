"""Peak memory of inference, each candidate alone in a process of its own.

What is reported is what holding and running the inference form costs: the highest resident set while a few calls run,
less the resident set of the same process before the model was built. Whatever building alone needed (a second copy
while folding, a compiler) is let go before the peak is taken. The processes are forked from one clean server that has
done the imports, so that library code is counted for nobody.

The peak is the kernel's own (VmHWM, reset before the calls) on Linux. Where the kernel cannot be asked to reset it, a
thread samples the resident set instead; where there is no /proc at all, the figure is the process's all-time peak,
which includes the building.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import resource
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
SAMPLE_SECONDS = 0.001
FAREWELL_SECONDS = 10.0

Run = Callable[[], object]


def peak_memory(build: Callable[[], Run], calls: int = 3, timeout: float = 600.0) -> int | None:
    """Bytes that the form ``build()`` returns needs at its peak, or None where the process failed or took too long.

    Args:
        build: makes the callable to measure; must be picklable (a module-level function, or a partial of one).
        calls: how often the callable runs while the peak is watched.
        timeout: seconds after which the process is given up.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "mixzoo", "timm"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(build, calls, sender), daemon=True)
    process.start()
    sender.close()
    try:
        peak = receiver.recv() if receiver.poll(timeout) else None
        process.join(FAREWELL_SECONDS)  # time to clean up after itself
        return peak
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def peak_tensor_memory(run: Run, device: str = "cpu") -> int:
    """Most bytes of tensors that one call of ``run`` holds at once on ``device``, beyond what lived before it.

    Counted from the allocator's own events, so that the figure is exact and the same every time; by the allocator
    itself on an accelerator, in its blocks of 512 bytes.
    """
    run()  # what is made once and kept is not counted
    if torch.device(device).type != "cpu":
        return _peak_of_accelerator(run, device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else the profiler reports that a machine has no GPU as an error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's remarks on its own cycles
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            run()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(live, default=0)


def _peak_of_accelerator(run: Run, device: str) -> int:
    torch.accelerator.synchronize(device)
    before = torch.accelerator.memory_allocated(device)
    torch.accelerator.reset_peak_memory_stats(device)
    result = run()  # held, so that what it takes is counted with all else
    torch.accelerator.synchronize(device)
    del result
    return torch.accelerator.max_memory_allocated(device) - before


def _child(build: Callable[[], Run], calls: int, sender: Connection) -> None:
    before = _resident()
    run = build()
    _trim()
    with _watch() as peak:
        for _ in range(calls):
            run()
    sender.send(max(0, peak() - before))


@dataclass
class _Sampler:
    """Highest resident set seen by a thread that looks every millisecond."""

    highest: int = 0

    def watch(self, stop: threading.Event) -> None:
        while not stop.wait(SAMPLE_SECONDS):
            self.highest = max(self.highest, _resident())


@contextmanager
def _watch() -> Iterator[Callable[[], int]]:
    """Yield a function that tells the peak resident set in bytes since the block was entered."""
    if _reset_peak():
        yield lambda: _status("VmHWM")
        return
    if not STATUS.exists():
        yield _all_time_peak
        return
    sampler, stop = _Sampler(_resident()), threading.Event()
    thread = threading.Thread(target=sampler.watch, args=(stop,), daemon=True)
    thread.start()
    try:
        yield lambda: sampler.highest
    finally:
        stop.set()
        thread.join()


def _reset_peak() -> bool:
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _resident() -> int:
    return _status("VmRSS") if STATUS.exists() else _all_time_peak()


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _all_time_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux


def _trim() -> None:
    """Give freed memory back to the system, where the C library knows how."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return
