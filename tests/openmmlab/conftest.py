"""These tests need mmdetection and mmsegmentation, which `make test-openmmlab` installs; elsewhere they are skipped."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

NEEDED = ("mmengine", "mmcv", "mmdet", "mmseg")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


class Absent(pytest.Module):
    """A file of tests that is not even read."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip(f"{', '.join(MISSING)} not installed: `make test-openmmlab` installs what these tests need")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return Absent.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Without the thousands of lines that MMEngine logs of every parameter, and without a scope left behind."""
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope

    logger = MMLogger.get_current_instance()
    level, instances = logger.level, dict(DefaultScope._instance_dict)
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(instances)
