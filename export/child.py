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

_EVERY = 1.0  # s


def main() -> None:
    """Entry point of the module."""
    parent = int(sys.argv[1])
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    package = __package__.split(".")[0]
    sys.argv = [package, *sys.argv[2:]]
    runpy.run_module(package, run_name="__main__", alter_sys=True)


def _follow(parent: int) -> None:
    """Kill the own process group as soon as ``parent`` is not the parent any more."""
    while os.getppid() == parent:
        time.sleep(_EVERY)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
