"""A long reference of a posterior exp(-|r(x)|^2 / 2), by Hamiltonian Monte Carlo (Neal 2011, arXiv:1206.1901).

Coordinates are those in which the Gauss-Newton Hessian at a point near by is the identity. Chains begin twice as far
from it as the Gauss-Newton posterior spreads. What two halves of the chains differ in says how far the reference has
converged.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Reference", "hessian", "run"]

Residual = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reference:
    """The draws of all chains (cases, chains, draws, n), and the share of proposals that were accepted."""

    x: Tensor
    acceptance: float

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        """The draws (cases, draws, n) of the first half of the chains and of the second."""
        first, second = self.x.chunk(2, dim=1)
        return first.flatten(1, 2), second.flatten(1, 2)


def run(
    residual: Residual, near: Tensor, *, chains: int = 16, draws: int = 200, warmup: int = 100, leaps: int = 10
) -> Reference:
    """Sample every case.

    Parameters
    ----------
    residual : callable x (cases, chains, n) -> r (cases, chains, P)
    near : Tensor, shape (cases, n)
        The truth, or another point near the mode.
    leaps : int
        Leapfrog steps of a proposal.
    """
    generator = torch.Generator().manual_seed(0)
    cases, n = near.shape
    draw = lambda *shape: torch.randn(*shape, dtype=near.dtype, generator=generator)  # noqa: E731
    # root root' is the inverse of the Hessian.
    root = torch.linalg.inv(torch.linalg.cholesky(hessian(residual, near))).mT
    x = near[:, None] + 2.0 * draw(cases, chains, n) @ root.mT
    value, pull = _evaluate(residual, x, root)
    kept, accepted, step = [], 0.0, 0.2
    for i in range(warmup + draws):
        p = draw(cases, chains, n)
        length = step * (0.7 + 0.6 * torch.rand(cases, chains, 1, dtype=x.dtype, generator=generator))
        begin = value + 0.5 * p.square().sum(-1)
        new, new_value, new_pull = x, value, pull
        for _ in range(leaps):
            p = p + 0.5 * length * new_pull
            new = new + (length * p) @ root.mT
            new_value, new_pull = _evaluate(residual, new, root)
            p = p + 0.5 * length * new_pull
        change = begin - new_value - 0.5 * p.square().sum(-1)
        yes = torch.rand(change.shape, dtype=x.dtype, generator=generator).log() < change
        x, pull = (torch.where(yes[..., None], a, b) for a, b in ((new, x), (new_pull, pull)))
        value = torch.where(yes, new_value, value)
        rate = float(yes.double().mean())
        if i < warmup:
            step *= 1.05 if rate > 0.8 else 0.95
        else:
            kept.append(x)
            accepted += rate / draws
    return Reference(torch.stack(kept, dim=2), accepted)


def _evaluate(residual: Residual, x: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """|r|^2 / 2, and the force in the coordinates of the root."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        energy = 0.5 * residual(x).square().sum(-1)
        (gradient,) = torch.autograd.grad(energy.sum(), x)
    return energy.detach(), -(gradient @ root)


def hessian(residual: Residual, x: Tensor) -> Tensor:
    """The Gauss-Newton Hessian (cases, n, n) at x (cases, n), all columns of the Jacobian in one pass."""
    cases, n = x.shape
    columns = torch.eye(n, dtype=x.dtype).expand(cases, n, n).contiguous()
    rows = torch.func.jvp(residual, (x[:, None].repeat(1, n, 1),), (columns,))[1]
    return rows @ rows.mT
