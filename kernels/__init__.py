"""Functional ops: a plain reference, faster candidates, and the reason when one is not taken."""

from .attention import attention, attention_reference
from .dispatch import Candidate, Op, exporting

__all__ = ["Candidate", "Op", "attention", "attention_reference", "exporting"]
