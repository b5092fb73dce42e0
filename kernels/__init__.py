"""Functional ops: a plain reference, faster candidates, and the reason when one is not taken."""

from .agent_attention import AGENT_ATTENTION_OP
from .attention import ATTENTION_OP, attention, attention_reference
from .bilevel_routing_attention import BILEVEL_ROUTING_ATTENTION_OP
from .depthwise_conv2d import DEPTHWISE_CONV2D_OP
from .dispatch import Candidate, Op, exporting
from .dynamic_conv import DYNAMIC_DEPTHWISE_CONV_OP
from .flow_attention import FLOW_ATTENTION_OP, flow_attention
from .frequency_filter import FREQUENCY_FILTER_OP
from .halo_attention import HALO_ATTENTION_OP
from .linear_attention import LINEAR_ATTENTION_OP, linear_attention
from .neighborhood_attention import NEIGHBORHOOD_ATTENTION_OP
from .soft_attention import SOFT_ATTENTION_OP
from .window_attention import WINDOW_ATTENTION_OP

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        AGENT_ATTENTION_OP,
        ATTENTION_OP,
        BILEVEL_ROUTING_ATTENTION_OP,
        DEPTHWISE_CONV2D_OP,
        DYNAMIC_DEPTHWISE_CONV_OP,
        FLOW_ATTENTION_OP,
        FREQUENCY_FILTER_OP,
        HALO_ATTENTION_OP,
        LINEAR_ATTENTION_OP,
        NEIGHBORHOOD_ATTENTION_OP,
        SOFT_ATTENTION_OP,
        WINDOW_ATTENTION_OP,
    )
}

__all__ = [
    "OPS",
    "Candidate",
    "Op",
    "attention",
    "attention_reference",
    "exporting",
    "flow_attention",
    "linear_attention",
]
