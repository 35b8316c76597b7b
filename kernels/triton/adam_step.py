"""adam_step in Triton: one pass, four vectors read and three written, roots and quotients correctly rounded."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsda_fast.kernels.triton.base import NAMES, OPTIONS, POINTERS, Signature, divide, real, sqrt

__all__ = ["SIGNATURES", "fill"]

_BLOCK = 1024


@triton.jit
def _kernel(
    v,  # (n) each, out; may be the inputs
    m,
    s,
    v0,  # (n) each
    m0,
    s0,
    gradient,
    n,
    rate: tl.float64,
    spread: tl.float64,
    new1: tl.float64,
    beta2: tl.float64,
    new2: tl.float64,
    eps: tl.float64,
    decay: tl.float64,
    REAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    value = tl.load(v0 + i, mask=inside, other=0.0).to(REAL)
    first = tl.load(m0 + i, mask=inside, other=0.0).to(REAL)
    second = tl.load(s0 + i, mask=inside, other=0.0).to(REAL)
    g = tl.load(gradient + i, mask=inside, other=0.0).to(REAL) + tl.cast(decay, REAL) * value
    first += tl.cast(new1, REAL) * (g - first)
    second = tl.cast(beta2, REAL) * second + tl.cast(new2, REAL) * (g * g)
    spread_of = tl.full([BLOCK], 0.0, REAL) + tl.cast(spread, REAL)
    below = divide(sqrt(second), spread_of) + tl.cast(eps, REAL)
    value -= divide(tl.cast(rate, REAL) * first, below)
    tl.store(v + i, value.to(v.dtype.element_ty), mask=inside)
    tl.store(m + i, first.to(m.dtype.element_ty), mask=inside)
    tl.store(s + i, second.to(s.dtype.element_ty), mask=inside)


def fill(
    out: tuple[Tensor, Tensor, Tensor],
    v: Tensor,
    m: Tensor,
    s: Tensor,
    gradient: Tensor,
    rate: float,
    spread: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> None:
    """See ``lsda_fast.kernels.adam_step``."""
    n = v.numel()
    if n == 0:
        return
    numbers = (rate, spread, 1.0 - beta1, beta2, 1.0 - beta2, eps, decay)
    _kernel[(triton.cdiv(n, _BLOCK),)](*out, v, m, s, gradient, n, *numbers, **_constants(v.dtype), **OPTIONS)


def _constants(dtype: torch.dtype) -> dict:
    return {"REAL": real(dtype), "BLOCK": _BLOCK}


def _signature(dtype: torch.dtype) -> Signature:
    pointers = dict.fromkeys(("v", "m", "s", "v0", "m0", "s0", "gradient"), POINTERS[dtype])
    numbers = dict.fromkeys(("rate", "spread", "new1", "beta2", "new2", "eps", "decay"), "fp64")
    return Signature(_kernel, {**pointers, "n": "i32", **numbers}, _constants(dtype))


SIGNATURES = {NAMES[dtype]: _signature(dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)}
