"""Inner solvers of latent optimisation: minimise, per member, over the control variable v of z = m + B v, B = C_t^1/2,

    J(v) = 1/2 |r(m + B v) + e|^2 + 1/2 |v|^2,   r(z) = R^-1/2 (G(z) - y),

with e the perturbation of the observations (0 for the mode). The members never mix: each has its own steps.

- ``Adam``: the papers' choice (Kingma & Ba 2015), started at v = 0.
- ``LBFGS``: limited-memory BFGS with a halving line search per member.
- ``GaussNewton``: linearise r once an outer iteration, then solve (I + B'J'JB) d = -(B'J'(r + e) + v)
  by conjugate gradients, preconditioned, if asked, by the same system with a cheap surrogate of J.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.guidance.base import per_member, squared_norm
from lsda_fast.guidance.krylov import cg
from lsda_fast.prior import Linearization

__all__ = ["LBFGS", "Adam", "GaussNewton", "InnerSolver"]

Linearize = Callable[[Tensor], Linearization]


@dataclass(frozen=True)
class InnerSolver(ABC):
    """A minimiser of J(v) given the linearisation of v -> r(m + B v) + e."""

    @abstractmethod
    def minimize(self, linearize: Linearize, v: Tensor, surrogate: Linearization | None = None) -> Tensor:
        """The minimiser (M, *latent), from the start v; ``surrogate`` is a cheap stand-in for r's derivative."""


def _cost_gradient(linearize: Linearize, v: Tensor) -> tuple[Tensor, Tensor, Linearization]:
    residual = linearize(v)
    cost = 0.5 * (squared_norm(residual.value) + squared_norm(v))
    return cost, residual.vjp(residual.value) + v, residual


def _hessian(residual: Linearization, d: Tensor) -> Tensor:
    """The Gauss-Newton operator d + J'J d."""
    return d + residual.vjp(residual.jvp(d))


def _halve_until_lower(linearize: Linearize, v: Tensor, step: Tensor, cost: Tensor, halvings: int) -> Tensor:
    """v + s step, s = 1, 1/2, ... per member until the cost falls; v where it never does."""
    s = torch.ones_like(cost)
    for _ in range(halvings):
        trial = v + per_member(s, step) * step
        # Negated, so that a NaN cost counts as higher.
        higher = ~(0.5 * (squared_norm(linearize(trial).value) + squared_norm(trial)) <= cost)
        if not higher.any():
            return trial
        s = torch.where(higher, 0.5 * s, s)
    return torch.where(per_member(higher, v), v, v + per_member(s, step) * step)


@dataclass(frozen=True)
class Adam(InnerSolver):
    """Adam with a fixed learning rate.

    Parameters
    ----------
    steps : int
    lr : float
        In units of the prior spread at the noise level.
    """

    steps: int = 100
    lr: float = 0.1

    def minimize(self, linearize: Linearize, v: Tensor, surrogate: Linearization | None = None) -> Tensor:
        """See the module."""
        v = v.clone()
        optimizer = torch.optim.Adam([v], lr=self.lr)
        for _ in range(self.steps):
            v.grad = _cost_gradient(linearize, v)[1]
            optimizer.step()
        return v


@dataclass(frozen=True)
class LBFGS(InnerSolver):
    """Limited-memory BFGS (Nocedal & Wright 2006, algorithm 7.4).

    Parameters
    ----------
    steps : int
    history : int
        Pairs kept.
    halvings : int
        Trials of the line search.
    """

    steps: int = 20
    history: int = 8
    halvings: int = 6

    def __post_init__(self) -> None:
        if min(self.steps, self.history, self.halvings) < 1:
            raise InputError(f"{self}: accepted are numbers of at least 1")

    def minimize(self, linearize: Linearize, v: Tensor, surrogate: Linearization | None = None) -> Tensor:
        """See the module."""
        pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=self.history)
        cost, g, _ = _cost_gradient(linearize, v)
        for _ in range(self.steps):
            direction = -self._inverse_hessian(g, pairs)
            new = _halve_until_lower(linearize, v, direction, cost, self.halvings)
            cost, g_new, _ = _cost_gradient(linearize, new)
            s, y = new - v, g_new - g
            pairs.append((s, y, torch.linalg.vecdot(s.flatten(1), y.flatten(1))))
            v, g = new, g_new
        return v

    @staticmethod
    def _inverse_hessian(g: Tensor, pairs: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """The two-loop recursion; pairs without curvature count for nothing."""
        q, kept = g, []
        for s, y, sy in reversed(pairs):
            inverse = torch.where(sy > 1e-12, 1.0 / sy.clamp_min(1e-12), 0.0)
            a = inverse * torch.linalg.vecdot(s.flatten(1), q.flatten(1))
            q = q - per_member(a, y) * y
            kept.append((s, y, inverse, a))
        if pairs:
            _, y, sy = pairs[-1]
            q = per_member(torch.where(sy > 1e-12, sy / squared_norm(y).clamp_min(1e-30), 1.0), q) * q
        else:
            # The first step has no curvature to scale it: keep it inside the prior's spread.
            q = q / per_member(squared_norm(q).sqrt().clamp_min(1.0), q)
        for s, y, inverse, a in reversed(kept):
            b = inverse * torch.linalg.vecdot(y.flatten(1), q.flatten(1))
            q = q + per_member(a - b, s) * s
        return q


@dataclass(frozen=True)
class GaussNewton(InnerSolver):
    """Gauss-Newton with conjugate gradients.

    Parameters
    ----------
    outer : int
        Linearisations.
    cg : int
        Conjugate-gradient iterations a linearisation.
    halvings : int
        Trials of the line search; 0 takes the full step unseen, right for a linear decoder and operator.
    precondition : int
        Conjugate-gradient iterations with the surrogate (``models.tangent``) that precondition one of the decoder's;
        0 for none. About 20 take several times fewer derivatives of a nonlinear decoder; of a linear one, none.
    """

    outer: int = 2
    cg: int = 8
    halvings: int = 2
    precondition: int = 0

    def __post_init__(self) -> None:
        if min(self.outer, self.cg) < 1 or min(self.halvings, self.precondition) < 0:
            raise InputError(f"{self}: accepted are outer >= 1, cg >= 1, halvings >= 0, precondition >= 0")

    def minimize(self, linearize: Linearize, v: Tensor, surrogate: Linearization | None = None) -> Tensor:
        """See the module."""
        precondition = None
        if self.precondition:
            if surrogate is None:
                raise InputError(
                    f"{self} came with a prior that has no tangent of its decoder; accepted is precondition=0"
                )
            precondition = partial(cg, partial(_hessian, surrogate), iterations=self.precondition, tolerance=1e-2)
        for _ in range(self.outer):
            cost, gradient, residual = _cost_gradient(linearize, v)
            step = cg(partial(_hessian, residual), -gradient, iterations=self.cg, precondition=precondition)
            v = _halve_until_lower(linearize, v, step, cost, self.halvings) if self.halvings else v + step
        return v
