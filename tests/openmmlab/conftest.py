"""The tests of the plugin for MMEngine; each file begins by skipping itself where its packages are not installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
