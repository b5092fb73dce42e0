"""The command `mixzoo` in a process that ends itself when the process that started it is gone.

``python -m mixzoo.export.child PARENT WORDS...``: the parent's process id, then the words of the command.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from types import FrameType

_EVERY, _PATIENCE = 1.0, 10.0  # s


def main() -> None:
    """Entry point of the module."""
    parent = int(sys.argv[1])
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    package = __package__.split(".")[0]
    sys.argv = [package, *sys.argv[2:]]
    try:
        runpy.run_module(package, run_name="__main__", alter_sys=True)
    finally:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)  # what it started, too


def _leave(number: int, frame: FrameType | None) -> None:
    """End as by an exception, which removes what is half-written."""
    sys.exit(128 + number)


def _follow(parent: int) -> None:
    """As soon as ``parent`` is not the parent any more, ask the own process to end, and kill its group if it stays."""
    while os.getppid() == parent:
        time.sleep(_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
