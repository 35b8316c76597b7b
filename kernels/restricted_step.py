"""The vector updates of one iteration of ``guidance.krylov.restricted_cg``, given F F'w:

    step = rr / (p0'p1 + w'w);  x += step p0;  r -= step (p + (w, 0; F F'w, f'w));  rr' = r0'r1;  p = r + (rr' / rr) p

for (I + F'F) x = b in the space of F's rows (Gratton & Tshimanga 2009, doi:10.1002/qj.477): a vector F'q + a b is
(q, a), with its products (F u, b'u) beside it, f = F b, and w the first products of p. In torch these are a dozen
passes over vectors that are small beside the product with F F', but many. A member stands still once rr <= limit.
Nothing is differentiated through it. The dot products are summed in float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lsda_fast.errors import InputError
from lsda_fast.kernels import native
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.registry import Operation

__all__ = ["restricted_iterations", "restricted_length", "restricted_step"]

State = tuple[Tensor, Tensor, Tensor, Tensor]


def restricted_step(x: Tensor, r: Tensor, p: Tensor, rr: Tensor, Gw: Tensor, f: Tensor, limit: Tensor) -> State:
    """One iteration.

    Parameters
    ----------
    x : Tensor, shape (M, P + 1)
        Solution.
    r, p : Tensor, shape (2, M, P + 1)
        Residual and direction, each with its products.
    rr, limit : Tensor, shape (M,)
    Gw : Tensor, shape (M, P)
        F F' of the direction's products with F.
    f : Tensor, shape (M, P)
        F b.

    Returns
    -------
    tuple of Tensor
        x, r, p, rr.
    """
    M, n = x.shape
    shapes = [tuple(t.shape) for t in (x, r, p, rr, Gw, f, limit)]
    if shapes[1:] != [(2, M, n), (2, M, n), (M,), (M, n - 1), (M, n - 1), (M,)]:
        raise InputError(
            f"x, r, p, rr, Gw, f, limit of shapes {shapes}; accepted: (M, P + 1), twice (2, M, P + 1), ..."
        )
    return RESTRICTED(*(t.contiguous() for t in (x, r, p, rr, Gw, f, limit)))


def restricted_length(p: Tensor, rr: Tensor, limit: Tensor) -> Tensor:
    """The step along p, (M,); none for a member that has converged or has no curvature."""
    w = p[1, :, :-1]
    curvature = torch.linalg.vecdot(p[0], p[1]) + torch.linalg.vecdot(w, w)
    return torch.where((rr > limit) & (curvature > 0), rr / curvature, 0.0)


def restricted_iterations(
    gram: Callable[[Tensor], Tensor],
    f: Tensor,
    rr: Tensor,
    limit: Tensor,
    iterations: int,
    *,
    step: Callable[..., State] = restricted_step,
) -> Tensor:
    """All of them: the coordinates (M, P + 1) of the solution, given w -> F F'w; the last needs no product."""
    # (2, M, P + 1): what stands for a vector, its coordinates and its products with the rows and b.
    r = torch.stack([pad(torch.zeros_like(f), (0, 1), value=1.0), torch.cat([f, rr[:, None]], dim=1)])
    p, x = r, torch.zeros_like(r[0])
    for _ in range(iterations - 1):
        x, r, p, rr = step(x, r, p, rr, gram(p[1, :, :-1]), f, limit)
    return torch.addcmul(x, restricted_length(p, rr, limit)[:, None], p[0]) if iterations else x


def restricted_reference(x: Tensor, r: Tensor, p: Tensor, rr: Tensor, Gw: Tensor, f: Tensor, limit: Tensor) -> State:
    """See ``restricted_step``."""
    w, going, step = p[1, :, :-1], rr > limit, restricted_length(p, rr, limit)[:, None]
    x = torch.addcmul(x, step, p[0])
    change = torch.stack([pad(w, (0, 1)), torch.cat([Gw, torch.linalg.vecdot(f, w)[:, None]], dim=1)])
    r = torch.addcmul(r, -step, p + change)
    previous, rr = rr, torch.where(going, torch.linalg.vecdot(r[0], r[1]), rr)
    p = torch.where(going[:, None], torch.addcmul(r, (rr / previous.clamp_min(1e-38))[:, None], p), p)
    return x, r, p, rr


def _empty(x: Tensor, r: Tensor, p: Tensor, rr: Tensor, *rest: Tensor) -> State:
    return x.new_empty(x.shape), r.new_empty(r.shape), p.new_empty(p.shape), rr.new_empty(rr.shape)


def _fill(out: State, x: Tensor, *rest: Tensor) -> None:
    native.run("restricted_step", x.dtype, *out, x, *rest, *x.shape)


RESTRICTED = Operation(
    "restricted_step(Tensor x, Tensor r, Tensor p, Tensor rr, Tensor Gw, Tensor f, Tensor limit)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference=restricted_reference,
    empty=_empty,
    natives={"cpu": Native(_fill)},
)
