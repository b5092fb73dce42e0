"""Multiply-accumulates of one forward pass.

torch's own FlopCounterMode counts matrix products, convolutions and attention as they are dispatched; a MAC is two of
its FLOPs. It has no entry for the CPU's fused attention, nor for matrix-vector and dot products: these are added here.
Norms, activations, pooling, biases and resizing are not multiply-accumulates by anybody's convention and stay out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Shape = tuple[int, ...]


def _attention_flops(q: Shape, k: Shape, v: Shape, *_: object, out_shape: object = None, **__: object) -> int:
    """q (B, heads, N, D), k (B, heads, M, D), v (B, heads, M, Dv)."""
    return int(sdpa_flop_count(q, k, v))


def _matrix_vector_flops(matrix: Shape, vector: Shape, *_: object, out_shape: object = None, **__: object) -> int:
    """matrix (N, M), vector (M,)."""
    return 2 * matrix[0] * vector[0]


def _dot_flops(a: Shape, b: Shape, *_: object, out_shape: object = None, **__: object) -> int:
    """a, b (N,)."""
    return 2 * a[0]


MISSED_BY_TORCH = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.mv: _matrix_vector_flops,
    torch.ops.aten.dot: _dot_flops,
}


@torch.no_grad()
def count_macs(model: nn.Module, *shape: int) -> int:
    """MACs of ``model(x)`` for ``x`` of ``shape`` (B, C, H, W), counted by running it once in eval mode on the CPU.

    The model's own mode is put back afterwards.
    """
    training = model.training
    model.eval()
    try:
        with FlopCounterMode(display=False, custom_mapping=MISSED_BY_TORCH) as counter:
            x = torch.zeros(shape, dtype=_dtype(model))
            functional_call(model, _detached(model), (x,))  # torch cannot hook a module that returns its parameter
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // 2


def _detached(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters()), torch.float32)
