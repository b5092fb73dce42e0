"""Softmax-free attention: a Gaussian kernel of queries with themselves, of low rank through landmarks.

    out = K(q, l) J K(l, q) v,    K(a, b) = exp(-|a - b|^2 / 2),    J ~ K(l, l)^-1

Shapes: q (..., N, D), landmarks l (..., M, D), v (..., N, E); result (..., N, E). Keys are the queries.
Time O(N M (D + E) + M^3); memory O(N M), and O(N D + M^2) for the tiled and the Triton candidate. M is N / r^2 for
landmarks that sum up r x r positions: cost is linear in N where r grows with the side of the map, else quadratic with
the factor 1 / r^2.

J comes from `NEWTON_STEPS` Newton-Schulz steps V <- 2 V - V P V from V = a P, with P = K(l, l) and c the greatest row
sum of P. They do not converge for badly conditioned P, so that the start is part of the definition:

    ridge       P gets 0.01 on its diagonal; a = 1.8 / c^2                                          (SOFT)
    symmetric   a = 2 / c^2, c being the greatest of all heads, halved (ten times at most) while a column of |I - a P P|
                of any head sums to more than 1.01; J = d V d with d = 1 / sqrt(row sums of P)      (SOFT++)

With one landmark or two, c is an eigenvalue of P, which 2 / c^2 sends to zero instead of its inverse: they start
halved. In the authors' code of SOFT++, c and the halving are those of the whole batch, so that an image's answer
depends on the images beside it. Here they are those of one image, which is the same for a batch of one.
Half-precision inputs are computed in float32, as squared distances leave the range of half precision.
Served by: CUDA, Triton in float32 where no gradient is wanted; any device, the tiled candidate without a gradient for
kernels of more than four million numbers, and the channel-major one otherwise.
Sources: arXiv:2110.11945 (SOFT), arXiv:2207.03341 (SOFT++).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from .dispatch import Candidate, Op, opaque, triton_unsupported, wants_gradient
from .precision import accumulated, without_autocast

NEWTON_STEPS = 20
HALVINGS = 10
RIDGE = 0.01
TINY = 1e-30  # below it, an eigenvalue is zero
TILE = 1 << 18  # numbers of a tile of the kernel: it stays in cache
WHOLE = 1 << 22  # numbers up to which the kernel is kept whole


def gaussian_kernel(a: Tensor, b: Tensor) -> Tensor:
    """``exp(-|a - b|^2 / 2)``: (..., N, D), (..., M, D) -> (..., N, M), at most 1."""
    half_squares = (t.square().sum(-1) / 2 for t in (a, b))
    rows, columns = (half.unsqueeze(axis) for half, axis in zip(half_squares, (-1, -2), strict=True))
    return (a @ b.transpose(-2, -1) - rows - columns).clamp(max=0).exp()


def ridge_start(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix that SOFT inverts, and the scale (..., 1, 1) of the first guess."""
    scale = 1.8 / kernel.sum(-1, keepdim=True).amax(-2, keepdim=True).square()
    return kernel + RIDGE * torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device), scale


def symmetric_start(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix that SOFT++ inverts, and the scale (..., 1, 1, 1) of the first guess, one for all heads of an image.

    ``kernel`` is (..., heads, M, M).
    """
    sums = kernel.sum(-1, keepdim=True)
    scale = 2 / sums.amax((-3, -2, -1), keepdim=True).square()
    with torch.no_grad():
        return kernel, scale * _start_factor(scale * kernel.square().sum(-1, keepdim=True), scale * (kernel @ sums))


def _start_factor(diagonal: Tensor, columns: Tensor) -> Tensor:
    """What the first guess is halved to, from the diagonal and the column sums (..., heads, M, 1) of a P P.

    The sum of a column of |I - f a P P| is convex in the factor f, and 1 for f = 0: once it is low enough, it stays so
    for every smaller f, and counting the factors for which it is too large counts the halvings.
    """
    count = torch.ones_like(diagonal[..., :1, :, :]).sum(-2, keepdim=True)  # M, also where a graph leaves it open
    first = torch.where(count < 2.5, 0.5, 1.0).to(diagonal)  # (..., 1, 1, 1): one landmark or two start halved
    factors = first * 0.5 ** torch.arange(HALVINGS).to(diagonal)  # (..., 1, 1, HALVINGS)
    error = factors * (columns - diagonal) + (1 - factors * diagonal).abs()
    halvings = (error.amax((-3, -2), keepdim=True) > 1.01).sum(-1, keepdim=True)
    return first * 0.5 ** halvings.to(diagonal)


def newton_inverse(matrix: Tensor, scale: Tensor) -> Tensor:
    """`NEWTON_STEPS` Newton-Schulz steps towards the inverse of (..., M, M) from ``scale * matrix``."""
    inverse = scale * matrix
    for _ in range(NEWTON_STEPS):
        inverse = 2 * inverse - inverse @ matrix @ inverse
    return inverse


def landmark_inverse(kernel: Tensor, symmetric: bool, newton: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """J of the module's docstring for K(l, l), with ``newton`` for its steps."""
    if not symmetric:
        return newton(*ridge_start(kernel))
    root = kernel.sum(-1, keepdim=True).rsqrt()
    return root * newton(*symmetric_start(kernel)) * root.transpose(-2, -1)


def soft_attention_reference(q: Tensor, landmarks: Tensor, v: Tensor, symmetric: bool = False) -> Tensor:
    """The equation, operator by operator."""
    dtype = v.dtype
    with without_autocast(q.device.type):
        q, landmarks, v = accumulated(q), accumulated(landmarks), accumulated(v)
        near = gaussian_kernel(q, landmarks)  # (..., N, M)
        inverse = landmark_inverse(gaussian_kernel(landmarks, landmarks), symmetric, newton_inverse)
        return (near @ (inverse @ (near.transpose(-2, -1) @ v))).to(dtype)


# everything transposed, with the squared norms as two more channels of the product


def _newton(matrix: Tensor, scale: Tensor) -> Tensor:
    """`newton_inverse` of symmetric matrices: by eigenvalues on the CPU where no gradient is asked for.

    All iterates are polynomials of the matrix, and ``1 - scale * x^2`` squares in every step for an eigenvalue x.
    """
    if matrix.device.type != "cpu" or wants_gradient(matrix):
        return _batched_newton(matrix, scale)
    values, vectors = torch.linalg.eigh(matrix)
    values = torch.where(values.abs() < TINY, TINY, values)
    square = scale.squeeze(-1) * values.square()  # at most 2
    rest = 2.0**NEWTON_STEPS * torch.log1p(-torch.minimum(square, 2 - square).clamp(min=0))
    return (vectors * (-rest.expm1() / values).unsqueeze(-2)) @ vectors.transpose(-2, -1)


def _batched_newton(matrix: Tensor, scale: Tensor) -> Tensor:
    """`newton_inverse` with each step's sum inside its second product."""
    shape = matrix.shape
    inverse, matrix = (scale * matrix).flatten(0, -3), matrix.flatten(0, -3)
    for _ in range(NEWTON_STEPS):
        inverse = torch.baddbmm(inverse, torch.bmm(inverse, matrix), inverse, beta=2, alpha=-1)
    return inverse.reshape(shape)


def _lifted(x: Tensor, axis: int, first: bool) -> Tensor:
    """``x`` with two more channels: the product of a first and a second one is minus half the squared distance."""
    half = x.square().sum(axis, keepdim=True) / -2
    extra = (half, torch.ones_like(half))
    return torch.cat((x, *(extra if first else reversed(extra))), axis)


def _kernel_of(lifted: Tensor, queries: Tensor) -> Tensor:
    """K(l, q) (n, M, N) of lifted landmarks (n, M, D + 2) and queries (n, D + 2, N)."""
    exponent = torch.bmm(lifted, queries)
    return exponent.clamp(max=0).exp() if exponent.requires_grad else exponent.clamp_(max=0).exp_()


def _channel_major(q: Tensor, landmarks: Tensor, v: Tensor, symmetric: bool = False) -> Tensor:
    lead, dtype = q.shape[:-2], v.dtype
    with without_autocast(q.device.type):
        q, landmarks, v = (accumulated(t) for t in (q, landmarks, v))
        inverse = landmark_inverse(gaussian_kernel(landmarks, landmarks), symmetric, _batched_newton)
        q, landmarks, v, inverse = (t.flatten(0, -3) for t in (q, landmarks, v, inverse))
        lifted, queries = _lifted(landmarks, 2, True), _lifted(q.transpose(1, 2), 1, False)
        near = _kernel_of(lifted, queries)
        state = torch.bmm(inverse, torch.bmm(near, v))  # (n, M, E)
        out = torch.bmm(state.transpose(1, 2), near)  # (n, E, N)
        return out.to(dtype).transpose(1, 2).unflatten(0, lead)


def _exported(q: Tensor, landmarks: Tensor, v: Tensor, symmetric: bool = False) -> Tensor:
    """The channel-major form with no axes joined, which ncnn, without a batch axis, could not take apart again."""
    dtype = v.dtype
    with without_autocast(q.device.type):
        q, landmarks, v = (accumulated(t) for t in (q, landmarks, v))
        inverse = landmark_inverse(gaussian_kernel(landmarks, landmarks), symmetric, newton_inverse)
        exponent = _lifted(landmarks, -1, True) @ _lifted(q.transpose(-2, -1), -2, False)
        near = exponent.clamp(max=0).exp()  # (..., M, N)
        state = inverse @ (near @ v)
        return (state.transpose(-2, -1) @ near).to(dtype).transpose(-2, -1)


def _channel_major_unsupported(q: Tensor, landmarks: Tensor, v: Tensor, symmetric: bool = False) -> str | None:
    if q.ndim < 3 or not q.shape[:-2] == landmarks.shape[:-2] == v.shape[:-2]:
        return "the batched products take queries, landmarks and values with the same leading axes, at least one"
    return None


_SCHEMA = "Tensor q, Tensor landmarks, Tensor v, bool symmetric=False"


def _like(q: Tensor, landmarks: Tensor, v: Tensor, symmetric: bool = False) -> Tensor:
    return v.new_empty(*v.shape[:-2], v.shape[-1], v.shape[-2]).transpose(-2, -1)


@opaque("soft_attention_tiled", _SCHEMA, _like)
def _tiled(q: Tensor, landmarks: Tensor, v: Tensor, symmetric: bool = False) -> Tensor:
    lead, dtype, count = q.shape[:-2], v.dtype, q.shape[-2]
    step = max(1, TILE // landmarks.shape[-2])
    with without_autocast(q.device.type):
        q, landmarks, v = (accumulated(t) for t in (q, landmarks, v))
        inverse = landmark_inverse(gaussian_kernel(landmarks, landmarks), symmetric, _batched_newton)
        q, landmarks, v, inverse = (t.flatten(0, -3) for t in (q, landmarks, v, inverse))
        lifted, queries = _lifted(landmarks, 2, True), _lifted(q.transpose(1, 2), 1, False)
        out = v.new_empty(v.shape[0], v.shape[2], count)
        for n in range(v.shape[0]):
            single, tiles = lifted[n : n + 1], queries[n : n + 1].split(step, 2)
            pairs = zip(tiles, v[n : n + 1].split(step, 1), strict=True)
            state = torch.stack([torch.bmm(_kernel_of(single, tile), values) for tile, values in pairs]).sum(0)
            state = torch.bmm(inverse[n : n + 1], state).transpose(1, 2)
            for tile, target in zip(tiles, out[n : n + 1].split(step, 2), strict=True):
                torch.bmm(state, _kernel_of(single, tile), out=target)
        return out.to(dtype).transpose(1, 2).unflatten(0, lead)


def _tiled_unsupported(q: Tensor, landmarks: Tensor, v: Tensor, symmetric: bool = False) -> str | None:
    if wants_gradient(q, landmarks, v):
        return "tiles keep nothing for a backward pass"
    if q.numel() // q.shape[-1] * landmarks.shape[-2] <= WHOLE:
        return "a kernel this small is faster whole"
    return _channel_major_unsupported(q, landmarks, v)


@opaque("soft_attention_triton", _SCHEMA, _like)
def _fused(q: Tensor, landmarks: Tensor, v: Tensor, symmetric: bool = False) -> Tensor:
    from .fused.soft import gaussian_product

    lead, dtype = q.shape[:-2], v.dtype
    with without_autocast(q.device.type):
        points = accumulated(landmarks)
        inverse = landmark_inverse(gaussian_kernel(points, points), symmetric, _newton).flatten(0, -3)
        q, landmarks, v = (t.flatten(0, -3) for t in (q, landmarks, v))
        state = torch.bmm(inverse, gaussian_product(landmarks, q, v))
        return gaussian_product(q, landmarks, state).to(dtype).unflatten(0, lead)


def _fused_unsupported(q: Tensor, landmarks: Tensor, v: Tensor, symmetric: bool = False) -> str | None:
    if wants_gradient(q, landmarks, v):
        return "the Triton kernel keeps nothing for a backward pass"
    reason = triton_unsupported(max(q.shape[-1], v.shape[-1]), q, landmarks, v)
    if reason is None and q.dtype != torch.float32:
        return "in half precision the transposed products are faster on tensor cores"
    return reason or _channel_major_unsupported(q, landmarks, v)


def bench_inputs(side: int, heads: int, dim: int = 64, batch: int = 1) -> tuple[tuple[Tensor, ...], dict[str, bool]]:
    """Arguments for a map of side x side tokens with 7 x 7 landmarks, in the memory order that a mixer hands over."""
    maps = torch.randn(2, batch, heads, dim // heads, side * side) / (dim // heads) ** 0.25
    return (maps[0].transpose(-2, -1), torch.randn(batch, heads, 49, dim // heads), maps[1].transpose(-2, -1)), {}


SOFT_ATTENTION_OP = Op(
    "soft_attention",
    soft_attention_reference,
    (
        Candidate("triton", _fused, _fused_unsupported),
        Candidate("tiled", _tiled, _tiled_unsupported),
        Candidate("channel_major", _channel_major, _channel_major_unsupported),
    ),
    bench_inputs,
    exported=_exported,
)


@register_notrace_function
def soft_attention(q: Tensor, landmarks: Tensor, v: Tensor, symmetric: bool = False) -> Tensor:
    """Softmax-free attention by the fastest implementation that applies; see the module's docstring.

    Args:
        q, landmarks, v: (..., heads, N, D), (..., heads, M, D), (..., heads, N, E).
        symmetric: the inverse of SOFT++, not that of SOFT.
    """
    return SOFT_ATTENTION_OP(q, landmarks, v, symmetric)
