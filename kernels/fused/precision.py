"""How Triton multiplies matrices of float32 that hold what was loaded in some type."""

from __future__ import annotations

import torch


def product_precision(dtype: torch.dtype) -> str:
    """For operands that were ``dtype``: TF32 has the bits of half precision, and the range of float32."""
    if torch.version.hip:
        return "ieee"
    return "tf32x3" if dtype == torch.float32 else "tf32"
