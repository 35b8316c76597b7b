"""Krylov methods on a batch of members: every member has its own scalars, and no member waits for another.

- ``cg``: conjugate gradients for symmetric positive A, a fixed number of iterations;
  members that have converged stand still.
- ``lanczos_sqrt``: A^1/2 b ~ |b| V T^1/2 e_1 from k Lanczos steps with full reorthogonalisation; negative Ritz values
  (of an indefinite learned derivative) count as zero.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lsda_fast.guidance.base import per_member, squared_norm

__all__ = ["cg", "lanczos_sqrt"]

Operator = Callable[[Tensor], Tensor]


def cg(A: Operator, b: Tensor, *, iterations: int, tolerance: float = 1e-6) -> Tensor:
    """Solve A x = b per member, from x = 0.

    Parameters
    ----------
    A : callable (M, ...) -> (M, ...)
    b : Tensor, shape (M, ...)
    iterations : int
    tolerance : float
        A member stands still once |r| <= tolerance |b|.

    Returns
    -------
    Tensor, shape (M, ...)
    """
    x = torch.zeros_like(b)
    r = p = b
    rr = squared_norm(r)
    limit = tolerance**2 * rr
    for _ in range(iterations):
        Ap = A(p)
        pAp = torch.linalg.vecdot(p.flatten(1), Ap.flatten(1))
        going = (rr > limit) & (pAp > 0)
        step = torch.where(going, rr / pAp, 0.0)
        x = x + per_member(step, x) * p
        r = r - per_member(step, r) * Ap
        rr_new = squared_norm(r)
        p = torch.where(per_member(going, p), r + per_member(rr_new / rr.clamp_min(1e-38), p) * p, p)
        rr = torch.where(going, rr_new, rr)
    return x


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
        T[:, i, i] = torch.linalg.vecdot(w, basis[i])
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
