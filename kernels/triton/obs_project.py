"""obs_project in Triton, and the pass of obs_residual over the state.

A program makes BLOCK observations of MEMBERS members: it reads the stencil once, and keeps MEMBERS gathers in flight a
thread. Programs of the same observations run side by side, so that the stencil stays in the L2 cache. The tile is the
same for any number of members, and with it the order of the cost's sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsda_fast.kernels.triton.base import NAMES, OPTIONS, POINTERS, Signature, real

__all__ = ["SIGNATURES", "blocks_of", "fill", "launch", "signature"]

_BLOCK, _MEMBERS = 256, 4


@triton.jit(do_not_specialize=["M"])
def _kernel(
    y,  # (M, P)
    squares,  # (M, blocks), float64: the sum of y^2 over a block
    x,  # (M, N)
    index,  # (K, P), int32
    weight,  # (K, P)
    target,  # (P)
    M,
    N,
    P,
    K,
    RESIDUAL: tl.constexpr,
    REAL: tl.constexpr,
    MEMBERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    groups = tl.cdiv(M, MEMBERS)
    block = tl.program_id(0).to(tl.int64) // groups
    m = tl.program_id(0).to(tl.int64) % groups * MEMBERS + tl.arange(0, MEMBERS)
    p = block * BLOCK + tl.arange(0, BLOCK)
    member, here = m < M, p < P
    inside = member[:, None] & here[None, :]
    row = x + m[:, None] * N
    sum = tl.zeros([MEMBERS, BLOCK], REAL)
    for k in range(K):
        cell = tl.load(index + k * P + p, mask=here, other=0)
        w = tl.load(weight + k * P + p, mask=here, other=0.0).to(REAL)
        sum += w[None, :] * tl.load(row + cell[None, :], mask=inside, other=0.0).to(REAL)
    if RESIDUAL:
        sum -= tl.load(target + p, mask=here, other=0.0).to(REAL)[None, :]
        wide = tl.where(inside, sum, 0.0).to(tl.float64)
        tl.store(squares + m * tl.cdiv(P, BLOCK) + block, tl.sum(wide * wide, axis=1), mask=member)
    tl.store(y + m[:, None] * P + p[None, :], sum.to(y.dtype.element_ty), mask=inside)


def fill(y: Tensor, x: Tensor, index: Tensor, weight: Tensor, *rest: object) -> None:
    """See ``lsda_fast.kernels.obs_project``."""
    launch(y, None, x, index, weight, None)


def launch(y: Tensor, squares: Tensor | None, x: Tensor, index: Tensor, weight: Tensor, target: Tensor | None) -> None:
    """The residual where there is a target, else the projection."""
    if y.numel() == 0:
        return
    K, P = index.shape
    grid = (blocks_of(P) * triton.cdiv(len(x), _MEMBERS),)
    constants = _constants(x.dtype, target is not None)
    # Triton takes no absent tensors; y is never read as one of them.
    squares, target = (y if t is None else t for t in (squares, target))
    _kernel[grid](y, squares, x, index, weight, target, *x.shape, P, K, **constants, **OPTIONS)


def blocks_of(observations: int) -> int:
    """Partial sums of the cost, a member."""
    return triton.cdiv(observations, _BLOCK)


def signature(dtype: torch.dtype, residual: bool) -> Signature:
    """See ``launch``."""
    pointers = dict.fromkeys(("y", "x", "weight", "target"), POINTERS[dtype])
    return Signature(
        _kernel,
        {**pointers, "squares": "*fp64", "index": "*i32", **dict.fromkeys("MNPK", "i32")},
        _constants(dtype, residual),
    )


def _constants(dtype: torch.dtype, residual: bool) -> dict:
    return {"RESIDUAL": residual, "REAL": real(dtype), "MEMBERS": _MEMBERS, "BLOCK": _BLOCK}


SIGNATURES = {
    NAMES[dtype]: signature(dtype, residual=False) for dtype in (torch.float32, torch.float64, torch.bfloat16)
}
