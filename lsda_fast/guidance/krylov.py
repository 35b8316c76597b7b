"""Krylov methods on a batch of members: every member has its own scalars, and no member waits for another.

- ``cg``: conjugate gradients for symmetric positive A, a fixed number of iterations;
  members that have converged stand still. Flexible when preconditioned (Notay 2000, doi:10.1137/S1064827599362314):
  the preconditioner may be an iteration itself.
- ``restricted_cg``: the same iterates for A = I + F'F, in the space of F's rows (Gratton & Tshimanga 2009,
  doi:10.1002/qj.477): as every vector is u = F'q + a b, (q, a) and (F u, b'u) stand for it, u'u is their inner product,
  and an iteration is one product with F F'. F itself is taken of b, F' of the solution.
- ``normal``: A = I + F'F, whose curvature p'Ap = |p|^2 + |F p|^2 needs no F': the last iteration does without.
- ``gcr``: generalised conjugate residuals, for A that need be neither symmetric nor positive: the x of least residual
  in span(b, A b, ...), as of GMRES (Eisenstat, Elman & Schultz 1983, doi:10.1137/0720023), by inner products alone.
- ``lanczos_sqrt``: A^1/2 b ~ |b| V T^1/2 e_1 from k Lanczos steps with full reorthogonalisation; negative Ritz values
  (of an indefinite learned derivative) count as zero.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lsda_fast.guidance.base import dot, per_member, squared_norm
from lsda_fast.kernels.cg_step import cg_step
from lsda_fast.kernels.restricted_step import restricted_iterations

__all__ = ["cg", "gcr", "lanczos_sqrt", "matrix", "normal", "restricted_cg"]

Operator = Callable[[Tensor], Tensor]
Quadratic = Callable[[Tensor], tuple[Tensor, Callable[[], Tensor]]]
Solve = Callable[[Tensor, Tensor, Tensor, int], Tensor | None]


def matrix(A: Operator) -> Quadratic:
    """p -> (p'Ap, how to get A p), from p -> A p."""

    def product(p: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        Ap = A(p)
        return dot(p, Ap), lambda: Ap

    return product


def normal(F: Operator, adjoint: Operator) -> Quadratic:
    """The same of A = I + F'F, with F' not taken before A p is asked for."""

    def product(p: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        w = F(p)
        return squared_norm(p) + squared_norm(w), lambda: p + adjoint(w)

    return product


def cg(
    A: Quadratic, b: Tensor, *, iterations: int, tolerance: float = 1e-6, precondition: Operator | None = None
) -> Tensor:
    """Solve A x = b per member, from x = 0.

    Parameters
    ----------
    A : callable p (M, ...) -> (p'Ap (M,), callable -> A p (M, ...))
        Of ``matrix`` or ``normal``.
    b : Tensor, shape (M, ...)
    iterations : int
    tolerance : float
        A member stands still once |r| <= tolerance |b|.
    precondition : callable (M, ...) -> (M, ...), optional
        About A^-1, positive; it need not be linear.

    Returns
    -------
    Tensor, shape (M, ...)
    """
    x, limit = torch.zeros_like(b), tolerance**2 * squared_norm(b)
    if precondition:
        return _flexible(A, b, x, limit, iterations, precondition)
    r, p, rr = b, b, squared_norm(b)
    for _ in range(iterations - 1):
        x, r, p, rr = cg_step(x, r, p, rr, A(p)[1](), limit)
    return x + per_member(_length(rr, A(p)[0], rr > limit), x) * p


def gcr(A: Operator, b: Tensor, *, iterations: int, tolerance: float = 1e-6) -> Tensor:
    """Solve A x = b per member, from x = 0, with one product an iteration; |b - A x| never grows.

    Parameters
    ----------
    A : callable (M, ...) -> (M, ...)
    b : Tensor, shape (M, ...)
    iterations, tolerance
        As for ``cg``.

    Returns
    -------
    Tensor, shape (M, ...)
    """
    x, r, limit = torch.zeros_like(b), b, tolerance**2 * squared_norm(b)
    past: list[tuple[Tensor, Tensor]] = []
    for _ in range(iterations):
        p, Ap = r, A(r)
        for q, Aq in past:
            shared = per_member(dot(Ap, Aq), Ap)
            p, Ap = p - shared * q, Ap - shared * Aq
        size = squared_norm(Ap)
        going = (squared_norm(r) > limit) & (size > 0)
        unit = per_member(torch.where(going, size.clamp_min(1e-38).rsqrt(), 0.0), Ap)
        p, Ap = unit * p, unit * Ap
        step = per_member(dot(r, Ap), r)
        x, r = x + step * p, r - step * Ap
        past.append((p, Ap))
    return x


def restricted_cg(
    F: Operator,
    adjoint: Operator,
    gram: Operator,
    b: Tensor,
    *,
    iterations: int,
    tolerance: float = 1e-6,
    solve: Solve | None = None,
) -> Tensor:
    """Solve (I + F'F) x = b per member, from x = 0, as ``cg`` does.

    Parameters
    ----------
    F, adjoint, gram : callable
        F (M, ...) -> (M, P), F' and F F'.
    b : Tensor, shape (M, ...)
    iterations, tolerance
        As for ``cg``.
    solve : callable (f = F b, b'b, limit, iterations) -> (M, P + 1) or None, optional
        All between F and F' at once, where it has the means: the coordinates of x.

    Returns
    -------
    Tensor, shape (M, ...)
    """
    f, rr = F(b).double(), squared_norm(b).double()
    # In float64: lengths follow from differences of these products, which float32 loses digits of.
    limit = tolerance**2 * rr
    x = solve(f, rr, limit, iterations) if solve else None
    if x is None:
        x = restricted_iterations(lambda w: gram(w.to(b)).double(), f, rr, limit, iterations)
    return torch.addcmul(adjoint(x[:, :-1].to(b)), per_member(x[:, -1].to(b), b), b)


def _flexible(A: Quadratic, b: Tensor, x: Tensor, limit: Tensor, iterations: int, precondition: Operator) -> Tensor:
    """The same with a preconditioner; turn = z'(r - previous r) / (previous z'r) is what makes it flexible."""
    r = b
    p = z = precondition(r)
    rz = dot(r, z)
    for left in reversed(range(iterations)):
        pAp, product = A(p)
        going = squared_norm(r) > limit
        step = _length(rz, pAp, going)
        x = torch.addcmul(x, per_member(step, x), p)
        if not left:
            break
        previous, r = r, torch.addcmul(r, per_member(-step, r), product())
        z = precondition(r)
        turn = dot(r - previous, z) / rz.clamp_min(1e-38)
        going = step > 0
        p = torch.where(per_member(going, p), torch.addcmul(z, per_member(turn, p), p), p)
        rz = torch.where(going, dot(r, z), rz)
    return x


def _length(rz: Tensor, pAp: Tensor, going: Tensor) -> Tensor:
    """The step along p; none for a member that has converged or has no curvature."""
    return torch.where(going & (pAp > 0), rz / pAp, 0.0)


def lanczos_sqrt(A: Operator, b: Tensor, *, iterations: int) -> Tensor:
    """A^1/2 b per member, for symmetric A (M, ...) -> (M, ...)."""
    shape, M = b.shape, len(b)
    norm = squared_norm(b).sqrt()
    basis = [b.flatten(1) / norm.clamp_min(1e-38)[:, None]]
    k = min(iterations, basis[0].shape[1])
    T = b.new_zeros(M, k, k)
    for i in range(k):
        w = A(basis[i].reshape(shape)).flatten(1)
        V = torch.stack(basis, dim=1)
        T[:, i, i] = dot(w, basis[i])
        for _ in range(2):
            w = w - torch.einsum("mk,mkn->mn", torch.einsum("mkn,mn->mk", V, w), V)
        beta = squared_norm(w).sqrt()
        if i + 1 < k:
            alive = beta > 1e-6 * T[:, 0, 0].abs()
            T[:, i, i + 1] = T[:, i + 1, i] = torch.where(alive, beta, 0.0)
            basis.append(torch.where(alive[:, None], w / beta.clamp_min(1e-38)[:, None], 0.0))
    values, vectors = torch.linalg.eigh(T)
    weights = torch.einsum("mij,mj,mj->mi", vectors, values.clamp_min(0).sqrt(), vectors[:, 0])
    flat = torch.einsum("mi,min->mn", weights, torch.stack(basis, dim=1))
    return (per_member(norm, flat) * flat).reshape(shape)
