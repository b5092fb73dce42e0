"""What a measurement was taken on: the machine, and the versions of everything that was timed."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .errors import MixzooError

PACKAGES = ("mixzoo", "torch", "timm", "numpy", "onnx", "onnxruntime")


def describe_machine() -> dict[str, Any]:
    """A flat record that fits JSON: processor, cores, memory in GiB, GPU, load, system, Python and package versions."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_1min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "python": platform.python_version(),
        "versions": versions(),
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def check_device(name: str) -> None:
    """See that torch can compute on the device called ``name``.

    Raises:
        MixzooError: no such device here; the message names those that there are.
    """
    try:
        torch.zeros(1, device=name).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(kind for kind in ("cuda", "mps", "xpu") if getattr(torch, kind).is_available())]
        cause = str(error).strip().splitlines()[0]
        raise MixzooError(f"Device {name!r} cannot be used here ({cause}). There are: {', '.join(there)}.") from None


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed version of each of ``packages``; those that are absent are left out."""
    return {name: version for name in packages if (version := _version(name))}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        return names[0] if names else platform.machine()
    try:
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return platform.processor() or platform.machine()
    return asked.stdout.strip()


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
