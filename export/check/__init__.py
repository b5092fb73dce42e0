"""Which operators of a model a target does not take, told from its graph alone: no converter need be installed."""

from __future__ import annotations

from .api import check, explain
from .findings import Finding, Verdict, render
from .targets import RULES

__all__ = ["RULES", "Finding", "Verdict", "check", "explain", "render"]
