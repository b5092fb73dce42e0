"""Functional ops: a plain reference, faster candidates, and the reason when one is not taken."""

from .attention import attention, attention_reference
from .dispatch import Candidate, Op, exporting
from .flow_attention import FLOW_ATTENTION_OP, flow_attention
from .linear_attention import LINEAR_ATTENTION_OP, linear_attention

__all__ = [
    "FLOW_ATTENTION_OP",
    "LINEAR_ATTENTION_OP",
    "Candidate",
    "Op",
    "attention",
    "attention_reference",
    "exporting",
    "flow_attention",
    "linear_attention",
]
