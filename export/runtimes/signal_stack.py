"""The stack on which a thread handles signals, kept from libraries that leave it on one that is gone.

OpenVINO's CPU plugin gives the thread that loads it such a stack of its own, and puts the one before back when it is
unloaded. Where two are loaded and the first goes first, as with two compiled models, the second one puts back the
first one's, which is freed: the next signal that Python handles, such as that of a child that ends, or what
`faulthandler` was to report, ends the process with a segmentation fault and without a word.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator


class _Stack(ctypes.Structure):
    """Linux's ``stack_t``."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give the calling thread back the stack that it had, once the body has run; only on Linux.

    What is unloaded later leaves that alone, as it is not what it put there itself.
    """
    if sys.platform != "linux":
        yield
        return
    before = _Stack()
    libc = ctypes.CDLL(None)
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
