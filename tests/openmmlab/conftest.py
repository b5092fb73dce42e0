"""What is in this folder runs where OpenMMLab's packages are installed, and says so where they are not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

MISSING = [name for name in ("mmengine", "mmcv", "mmdet", "mmseg") if importlib.util.find_spec(name) is None]
REMEDY = "MMCV_WITH_OPS=1 pip install --no-build-isolation 'mixzoo[openmmlab]'"


class Absent(pytest.Module):
    """A file of tests that is not even read."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip(f"{', '.join(MISSING)} not installed: {REMEDY}")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return Absent.from_parent(parent, path=module_path) if MISSING else None
