"""head_project in Triton: a matrix product for every site, of its wanted rows and the members' patches.

A program makes one site of MEMBERS members, ROWS rows at a time: (ROWS, SIZE) of the weight times (SIZE, MEMBERS) of
the patches, which are gathered and never formed. Rows are padded to whole blocks, so a site with one row costs as much
arithmetic as one with ROWS; it is the memory that it waits for. Half precision is widened first, and float32 is IEEE
float32: no TF32. A member's sum has the order of the patch, in any company.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsda_fast.kernels.triton.base import NAMES, OPTIONS, POINTERS, Signature, real

__all__ = ["SIGNATURES", "fill"]

_ROWS, _MEMBERS, _SIZE = 32, 16, 32


@triton.jit(do_not_specialize=["M"])
def _kernel(
    values,  # (M, U)
    features,  # (M, F, S), or (M, S, F) for LAST
    weight,  # (R, T F)
    neighbour,  # (Q, T), int32
    start,  # (Q + 1), int32: where the rows of a site begin
    row,  # (U), int32
    output,  # (U), int32
    M,
    F,
    S,
    T,
    U,
    LAST: tl.constexpr,
    REAL: tl.constexpr,
    ROWS: tl.constexpr,
    MEMBERS: tl.constexpr,
    SIZE: tl.constexpr,
):
    groups = tl.cdiv(M, MEMBERS)
    q = tl.program_id(0).to(tl.int64) // groups
    m = tl.program_id(0).to(tl.int64) % groups * MEMBERS + tl.arange(0, MEMBERS)
    size = T * F
    end = tl.load(start + q + 1)
    for first in range(tl.load(start + q), end, ROWS):
        u = first + tl.arange(0, ROWS)
        wanted = u < end
        line = tl.load(row + u, mask=wanted, other=0) * size
        sum = tl.zeros([ROWS, MEMBERS], REAL)
        for k0 in range(0, size, SIZE):
            k = k0 + tl.arange(0, SIZE)
            t, f = k // F, k % F
            place = tl.load(neighbour + q * T + t, mask=k < size, other=0).to(tl.int64)
            at = place * F + f if LAST else f.to(tl.int64) * S + place
            w = tl.load(weight + line[:, None] + k[None, :], mask=wanted[:, None] & (k < size)[None, :], other=0.0)
            inside = (k < size)[:, None] & (m < M)[None, :]
            x = tl.load(features + m[None, :] * F * S + at[:, None], mask=inside, other=0.0)
            sum += tl.dot(w.to(REAL), x.to(REAL), input_precision="ieee", out_dtype=REAL)
        to = m[None, :] * U + tl.load(output + u, mask=wanted, other=0)[:, None]
        tl.store(values + to, sum.to(values.dtype.element_ty), mask=wanted[:, None] & (m < M)[None, :])


def fill(values: Tensor, features: Tensor, weight: Tensor, layout: list[Tensor], last: bool) -> None:
    """See ``lsda_fast.kernels.head_project``."""
    neighbour, start, row, output, begin, _ = layout
    Q, T = neighbour.shape
    if values.numel() == 0:
        return
    M, U = values.shape
    sizes = (M, weight.shape[1] // T, len(begin) - 1, T, U)
    grid = (Q * triton.cdiv(M, _MEMBERS),)
    index = (neighbour, start, row, output)
    _kernel[grid](values, features, weight, *index, *sizes, **_constants(features.dtype, last), **OPTIONS)


def _constants(dtype: torch.dtype, last: bool) -> dict:
    return {"LAST": last, "REAL": real(dtype), "ROWS": _ROWS, "MEMBERS": _MEMBERS, "SIZE": _SIZE}


def _signature(dtype: torch.dtype, last: bool) -> Signature:
    pointers = dict.fromkeys(("values", "features", "weight"), POINTERS[dtype])
    index = dict.fromkeys(("neighbour", "start", "row", "output"), "*i32")
    return Signature(_kernel, {**pointers, **index, **dict.fromkeys("MFSTU", "i32")}, _constants(dtype, last))


SIGNATURES = {
    "planes_f32": _signature(torch.float32, False),
    "planes_f64": _signature(torch.float64, False),
    **{NAMES[dtype]: _signature(dtype, True) for dtype in (torch.float32, torch.float64, torch.bfloat16)},
}
