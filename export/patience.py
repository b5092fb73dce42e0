"""An end to arithmetic on symbolic shapes that would not come to one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from .errors import ExportError

_AGAIN = 1.0  # s after which one that was swallowed is raised again


class _OutOfTime(BaseException):
    """Not an `Exception`, which libraries catch and take for something else."""


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Let the body use so many seconds of processor time at most; None for no limit.

    Only the main thread can be interrupted, and only where the system has such timers: elsewhere there is no limit. The
    handler takes the place of the system's own for good: a signal can still be on its way to another thread when the
    timer is stopped, and would then end the process without a word.

    Raises:
        ExportError: they are used up.
    """
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _interrupt)
    try:
        _Clock.runs = True
        signal.setitimer(signal.ITIMER_VIRTUAL, max(seconds, 1e-3), _AGAIN)
        try:
            yield
        finally:
            _stop()
    except _OutOfTime:
        raise ExportError(f"no graph was found in {seconds:g} s of processor time") from None
    finally:
        _stop()  # again, where the time ran out in the midst of stopping
        if callable(before):
            signal.signal(signal.SIGVTALRM, before)


class _Clock:
    runs = False


def _stop() -> None:
    _Clock.runs = False
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _Clock.runs:
        raise _OutOfTime
