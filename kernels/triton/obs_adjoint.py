"""obs_adjoint in Triton, as a gather over the columns of H (``ObservationPlan``): no atomics, the same bits every time.

A program makes BLOCK cells of MEMBERS members, zeros included; its loop is as long as the most observations that one of
its cells has.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsda_fast.kernels.triton.base import NAMES, OPTIONS, POINTERS, Signature, real

__all__ = ["SIGNATURES", "fill"]

_BLOCK, _MEMBERS = 256, 4


@triton.jit(do_not_specialize=["M"])
def _kernel(
    x,  # (M, N)
    r,  # (M, P)
    start,  # (N + 1), int32: where the entries of a cell begin
    observation,  # (entries), int32
    weight,  # (entries)
    M,
    N,
    P,
    REAL: tl.constexpr,
    MEMBERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    groups = tl.cdiv(M, MEMBERS)
    c = tl.program_id(0).to(tl.int64) // groups * BLOCK + tl.arange(0, BLOCK)
    m = tl.program_id(0).to(tl.int64) % groups * MEMBERS + tl.arange(0, MEMBERS)
    member, here = m < M, c < N
    begin = tl.load(start + c, mask=here, other=0)
    count = tl.load(start + c + 1, mask=here, other=0) - begin
    row = r + m[:, None] * P
    sum = tl.zeros([MEMBERS, BLOCK], REAL)
    for j in range(tl.max(count, axis=0)):
        more = j < count
        p = tl.load(observation + begin + j, mask=more, other=0)
        w = tl.load(weight + begin + j, mask=more, other=0.0).to(REAL)
        sum += w[None, :] * tl.load(row + p[None, :], mask=member[:, None] & more[None, :], other=0.0).to(REAL)
    tl.store(x + m[:, None] * N + c[None, :], sum.to(x.dtype.element_ty), mask=member[:, None] & here[None, :])


def fill(x: Tensor, r: Tensor, index: Tensor, weight: Tensor, transpose: list[Tensor], cells: int) -> None:
    """See ``lsda_fast.kernels.obs_project``."""
    if x.numel() == 0:
        return
    grid = (triton.cdiv(cells, _BLOCK) * triton.cdiv(len(x), _MEMBERS),)
    _kernel[grid](x, r, *transpose, len(x), cells, r.shape[1], **_constants(r.dtype), **OPTIONS)


def _constants(dtype: torch.dtype) -> dict:
    return {"REAL": real(dtype), "MEMBERS": _MEMBERS, "BLOCK": _BLOCK}


def _signature(dtype: torch.dtype) -> Signature:
    pointers = dict.fromkeys(("x", "r", "weight"), POINTERS[dtype])
    sizes = {"start": "*i32", "observation": "*i32", **dict.fromkeys("MNP", "i32")}
    return Signature(_kernel, {**pointers, **sizes}, _constants(dtype))


SIGNATURES = {NAMES[dtype]: _signature(dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)}
