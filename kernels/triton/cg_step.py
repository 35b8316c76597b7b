"""cg_step in Triton: three passes, with the members' scalars left on the device.

    curvature:  parts of p'Ap
    advance:    step = rr / p'Ap;  x += step p;  r -= step Ap;  parts of r'r
    turn:       p = r + (r'r / rr) p;  rr = r'r

Each program adds up the parts of its member by itself, at most _PARTS of them, in one order; dot products are float64.
The outputs may be the inputs: a program reads and writes elements of its own, and ``turn`` takes rr from a copy.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsda_fast.kernels.triton.base import NAMES, OPTIONS, POINTERS, Signature, real, sum_of_parts

__all__ = ["SIGNATURES", "fill"]

_BLOCK, _PARTS = 1024, 512


@triton.jit
def _curvature_kernel(
    curvatures,  # (M, parts), float64
    before,  # (M), float64: rr
    p0,  # (M, n)
    Ap,  # (M, n)
    rr0,  # (M)
    n,
    parts,
    tiles,
    BLOCK: tl.constexpr,
):
    m, part, first = _place(parts, tiles, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for tile in range(tiles):
        i = first + tile * BLOCK + tl.arange(0, BLOCK)
        p = tl.load(p0 + m * n + i, mask=i < n, other=0.0).to(tl.float64)
        total += p * tl.load(Ap + m * n + i, mask=i < n, other=0.0).to(tl.float64)
    tl.store(curvatures + m * parts + part, tl.sum(total, axis=0))
    if part == 0:
        tl.store(before + m, tl.load(rr0 + m).to(tl.float64))


@triton.jit
def _advance_kernel(
    x,  # (M, n) each, out
    r,
    squares,  # (M, parts), float64
    x0,  # (M, n) each
    r0,
    p0,
    Ap,
    limit,  # (M)
    before,  # (M), float64
    curvatures,  # (M, parts), float64
    n,
    parts,
    tiles,
    REAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m, part, first = _place(parts, tiles, BLOCK)
    rr, pAp, going = _scalars(before, limit, curvatures, m, parts, REAL)
    step = (rr / pAp).to(REAL)
    total = tl.zeros([BLOCK], tl.float64)
    for tile in range(tiles):
        i = first + tile * BLOCK + tl.arange(0, BLOCK)
        at, inside = m * n + i, i < n
        x_old = tl.load(x0 + at, mask=inside, other=0.0)
        r_old = tl.load(r0 + at, mask=inside, other=0.0)
        x_new = x_old + step * tl.load(p0 + at, mask=inside, other=0.0)
        r_new = r_old - step * tl.load(Ap + at, mask=inside, other=0.0)
        tl.store(x + at, tl.where(going, x_new, x_old), mask=inside)
        tl.store(r + at, tl.where(going, r_new, r_old), mask=inside)
        total += r_new.to(tl.float64) * r_new.to(tl.float64)
    tl.store(squares + m * parts + part, tl.sum(total, axis=0))


@triton.jit
def _turn_kernel(
    p,  # (M, n), out
    rr_out,  # (M), out
    r,  # (M, n), after the step
    p0,  # (M, n)
    limit,  # (M)
    before,  # (M), float64
    curvatures,  # (M, parts), float64
    squares,  # (M, parts), float64
    n,
    parts,
    tiles,
    REAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m, part, first = _place(parts, tiles, BLOCK)
    rr, _, going = _scalars(before, limit, curvatures, m, parts, REAL)
    rr_new = sum_of_parts(squares + m * parts, parts).to(REAL)
    turn = (rr_new.to(tl.float64) / tl.where(going, rr, 1.0)).to(REAL)
    for tile in range(tiles):
        i = first + tile * BLOCK + tl.arange(0, BLOCK)
        at, inside = m * n + i, i < n
        old = tl.load(p0 + at, mask=inside, other=0.0)
        new = tl.load(r + at, mask=inside, other=0.0) + turn * old
        tl.store(p + at, tl.where(going, new, old), mask=inside)
    if part == 0:
        tl.store(rr_out + m, tl.where(going, rr_new, rr.to(REAL)))


@triton.jit
def _place(parts, tiles, BLOCK: tl.constexpr):
    """Member, part and first element of a program."""
    program = tl.program_id(0).to(tl.int64)
    part = program % parts
    return program // parts, part, part * tiles * BLOCK


@triton.jit
def _scalars(before, limit, curvatures, m, parts, REAL: tl.constexpr):
    """rr; p'Ap as REAL holds it, 1 where the member stands still; whether it goes."""
    rr = tl.load(before + m)
    pAp = sum_of_parts(curvatures + m * parts, parts).to(REAL).to(tl.float64)
    going = (rr > tl.load(limit + m).to(tl.float64)) & (pAp > 0.0)
    return rr, tl.where(going, pAp, 1.0), going


def fill(
    out: tuple[Tensor, Tensor, Tensor, Tensor],
    x0: Tensor,
    r0: Tensor,
    p0: Tensor,
    rr0: Tensor,
    Ap: Tensor,
    limit: Tensor,
) -> None:
    """See ``lsda_fast.kernels.cg_step``."""
    x, r, p, rr = out
    M, n = len(x), x[:1].numel()
    if M == 0:
        return
    tiles = max(1, triton.cdiv(n, _BLOCK * _PARTS))
    parts = max(1, triton.cdiv(n, _BLOCK * tiles))
    curvatures, squares = torch.empty(2, M, parts, dtype=torch.float64, device=x.device)
    before = torch.empty(M, dtype=torch.float64, device=x.device)
    grid, sizes, constants = (M * parts,), (n, parts, tiles), {"BLOCK": _BLOCK, **OPTIONS}
    typed = {"REAL": real(x.dtype), **constants}
    _curvature_kernel[grid](curvatures, before, p0, Ap, rr0, *sizes, **constants)
    _advance_kernel[grid](x, r, squares, x0, r0, p0, Ap, limit, before, curvatures, *sizes, **typed)
    _turn_kernel[grid](p, rr, r, p0, limit, before, curvatures, squares, *sizes, **typed)


def _signature(kernel: object, dtype: torch.dtype, names: str, typed: bool = True) -> Signature:
    doubles = dict.fromkeys(("curvatures", "before", "squares"), "*fp64")
    types = {name: doubles.get(name, POINTERS[dtype]) for name in names.split()}
    constants = {"BLOCK": _BLOCK, **({"REAL": real(dtype)} if typed else {})}
    return Signature(kernel, {**types, **dict.fromkeys(("n", "parts", "tiles"), "i32")}, constants)


SIGNATURES = {
    f"{kernel}_{NAMES[dtype]}": signature
    for dtype in (torch.float32, torch.float64)
    for kernel, signature in {
        "curvature": _signature(_curvature_kernel, dtype, "curvatures before p0 Ap rr0", typed=False),
        "advance": _signature(_advance_kernel, dtype, "x r squares x0 r0 p0 Ap limit before curvatures"),
        "turn": _signature(_turn_kernel, dtype, "p rr_out r p0 limit before curvatures squares"),
    }.items()
}
