"""Triton's interpreter, which is chosen before Triton is imported: tests that need it run in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def run_interpreted(name: str) -> None:
    """Run the tests in ``interpreted_<name>.py`` beside this file on the CPU; fails with what they print."""
    file = Path(__file__).with_name(f"interpreted_{name}.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=file.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
