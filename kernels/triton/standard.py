"""What the normalisations share in Triton: the two factors of dy/dx = D P, see ``lsda_fast.kernels.standard``.

A tile holds float32 or float64, its sums are float64. The tile is one slice, or one slice a row for EACH; outside the
slice its numbers are 0.
"""

import triton
import triton.language as tl

from lsda_fast.kernels.triton.base import divide

__all__ = ["project", "silu", "slope", "standardize"]


@triton.jit
def standardize(x, inside, size, eps, EACH: tl.constexpr):
    """n, mean, and scale = 1 / sqrt(variance + eps)."""
    mean = (_total(x.to(tl.float64), EACH) / size).to(x.dtype)
    centred = tl.where(inside, x - mean, 0.0)
    wide = centred.to(tl.float64)
    scale = (1.0 / tl.sqrt(_total(wide * wide, EACH) / size + eps)).to(x.dtype)
    return centred * scale, mean, scale


@triton.jit
def project(v, n, scale, size, EACH: tl.constexpr):
    """P v."""
    wide = v.to(tl.float64)
    m1 = (_total(wide, EACH) / size).to(v.dtype)
    m2 = (_total(wide * n.to(tl.float64), EACH) / size).to(v.dtype)
    return scale * (v - m1 - n * m2)


@triton.jit
def silu(p):
    """p sigmoid(p)."""
    return divide(p, 1.0 + tl.exp(-p))


@triton.jit
def slope(p):
    """silu'(p)."""
    s = divide(tl.full(p.shape, 1.0, p.dtype), 1.0 + tl.exp(-p))
    return s * (1.0 + p * (1.0 - s))


@triton.jit
def _total(tile, EACH: tl.constexpr):
    rows = tl.sum(tile, axis=1)
    return rows[:, None] if EACH else tl.sum(rows, axis=0)
