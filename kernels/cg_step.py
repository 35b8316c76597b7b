"""The vector updates of one conjugate-gradient iteration for A x = b, given A p; every member has its own scalars:

    step = rr / p'Ap;  x += step p;  r -= step Ap;  p = r + (r'r / rr) p;  rr = r'r

A member stands still, bit for bit, once rr <= limit or where p'Ap <= 0: the number of iterations is fixed and nothing
is asked of the host. It starts at x = 0, r = p = b, rr = b'b. In torch these are 7 passes over four vectors; here a
member is read and written once while it is in cache. The dot products are summed in float64, in an order that depends
on neither threads nor company. Nothing is differentiated through it.
"""

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels import native, triton
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.registry import Operation

__all__ = ["cg_step"]

State = tuple[Tensor, Tensor, Tensor, Tensor]

# A GPU without clusters gives a member one block: beyond this Triton, with many, is sooner done.
_ONE_BLOCK = 32768


def cg_step(
    x: Tensor, r: Tensor, p: Tensor, rr: Tensor, Ap: Tensor, limit: Tensor, *, out: State | None = None
) -> State:
    """One iteration.

    Parameters
    ----------
    x, r, p : Tensor, shape (M, ...)
        Solution, residual b - A x, direction.
    rr : Tensor, shape (M,)
        r'r.
    Ap : Tensor, shape (M, ...)
        A p.
    limit : Tensor, shape (M,)
        Of rr.
    out : tuple of Tensor, optional
        Where to put the results; may be (x, r, p, rr) themselves. Not under torch.compile.

    Returns
    -------
    tuple of Tensor
        x, r, p, rr.
    """
    if not x.shape == r.shape == p.shape == Ap.shape or not rr.shape == limit.shape == x.shape[:1]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, r, p, rr, Ap, limit))
        raise InputError(f"x, r, p, rr, Ap, limit of shapes {shapes}; accepted: (M, ...), rr and limit (M,)")
    if out is None:
        return CG(*(t.contiguous() for t in (x, r, p, rr, Ap, limit)))
    return CG.into(out, [x.shape, x.shape, x.shape, rr.shape], x, r, p, rr, Ap, limit)


def cg_reference(x: Tensor, r: Tensor, p: Tensor, rr: Tensor, Ap: Tensor, limit: Tensor) -> State:
    """See ``cg_step``."""
    pAp = _dot(p, Ap)
    going = (rr > limit) & (pAp > 0)
    step = torch.where(going, rr / pAp, 0.0)
    x = torch.where(_wide(going, x), x + _wide(step, x) * p, x)
    r = torch.where(_wide(going, x), r - _wide(step, x) * Ap, r)
    rr_new = _dot(r, r)
    p = torch.where(_wide(going, x), r + _wide(rr_new / rr, x) * p, p)
    return x, r, p, torch.where(going, rr_new, rr)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _empty(x: Tensor, r: Tensor, p: Tensor, rr: Tensor, Ap: Tensor, limit: Tensor) -> State:
    like = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, r, p, rr)]
    return like[0], like[1], like[2], like[3]


def _fill(out: State, x: Tensor, r: Tensor, p: Tensor, rr: Tensor, Ap: Tensor, limit: Tensor) -> None:
    native.run("cg_step", x.dtype, *out, x, r, p, rr, Ap, limit, len(x), x[:1].numel())


def _cuda_limits(x: Tensor, *rest: Tensor) -> str:
    """Of a member's size alone, so that it is computed the same in any company."""
    size, (major, minor) = x[:1].numel(), torch.cuda.get_device_capability(x.device)
    if major >= 9 or size <= _ONE_BLOCK:
        return ""
    return f"a member of {size} numbers on compute capability {major}.{minor}; CUDA C++ takes {_ONE_BLOCK} below 9.0"


CG = Operation(
    "cg_step(Tensor x, Tensor r, Tensor p, Tensor rr, Tensor Ap, Tensor limit) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=cg_reference,
    empty=_empty,
    natives={"cpu": Native(_fill), "cuda": Native(_fill, _cuda_limits), "triton": Native(triton.fill("cg_step"))},
)
