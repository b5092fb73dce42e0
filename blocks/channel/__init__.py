"""Channel mixers: what follows a token mixer in a block."""

from .mlp import ChannelFactory, depthwise_mlp, local_mlp, mlp, norm_mlp, residual_depthwise_mlp

__all__ = ["ChannelFactory", "depthwise_mlp", "local_mlp", "mlp", "norm_mlp", "residual_depthwise_mlp"]
