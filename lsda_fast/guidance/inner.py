"""Inner solvers of latent optimisation: minimise, per member, over the control variable v of z = m + B v, B = C_t^1/2,

    J(v) = 1/2 |r(m + B v) - e|^2 + 1/2 |v|^2,   r(z) = R^-1/2 (G(z) - y),

with e the perturbation of the observations (0 for the mode), or with a robust cost of r - e in place of the square. The
members never mix: each has its own steps.

- ``Adam``: the papers' choice (Kingma & Ba 2015), started at v = 0.
- ``LBFGS``: limited-memory BFGS with a halving line search per member.
- ``GaussNewton``: linearise r once an outer iteration, then solve (I + B'J'JB) d = -(B'J'(r - e) + v)
  by conjugate gradients, preconditioned, if asked, by the same system with a cheap surrogate of J.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from lsda_fast.errors import InputError
from lsda_fast.guidance.base import dot, per_member, squared_norm
from lsda_fast.guidance.krylov import cg, normal, restricted_cg
from lsda_fast.kernels.adam_step import adam_step
from lsda_fast.prior import Linearization

__all__ = ["LBFGS", "Adam", "GaussNewton", "InnerSolver"]

Linearize = Callable[[Tensor], Linearization]

_LEAST = 1e-12  # curvature s'y below which a pair of LBFGS says nothing


@dataclass(frozen=True)
class InnerSolver(ABC):
    """A minimiser of J(v) given the linearisation of v -> r(m + B v) - e."""

    @property
    def needs_surrogate(self) -> bool:
        """Whether ``minimize`` has to be given the cheap stand-in."""
        return False

    @property
    def obstacle(self) -> str:
        """Why it cannot be captured as a CUDA graph; "" where it can."""
        return ""

    @abstractmethod
    def minimize(self, linearize: Linearize, v: Tensor, surrogate: Linearization | None = None) -> Tensor:
        """The minimiser (M, *latent), from the start v; ``surrogate`` is a cheap stand-in for r's derivative."""


def _cost(residual: Linearization, v: Tensor) -> Tensor:
    return residual.cost + 0.5 * squared_norm(v)


def _cost_gradient(linearize: Linearize, v: Tensor) -> tuple[Tensor, Tensor, Linearization]:
    residual = linearize(v)
    return _cost(residual, v), residual.vjp(residual.value) + v, residual


def _some(flags: Tensor) -> bool:
    """Whether one is true; where there are no values (``engine.plan``) one may be."""
    return is_fake(flags) or bool(flags.any())


def _halve_until_lower(
    linearize: Linearize, v: Tensor, step: Tensor, cost: Tensor, halvings: int, *, early: bool = False
) -> Tensor:
    """v + s step, s = 1, 1/2, ... per member until the cost falls; v where it never does.

    ``early`` asks the host whether anybody is left: fewer evaluations, the same result.
    """
    s = torch.ones_like(cost)
    for _ in range(halvings):
        trial = v + per_member(s, step) * step
        # Negated, so that a NaN cost counts as higher.
        higher = ~(_cost(linearize(trial), trial) <= cost)
        if early and not _some(higher):
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
        m, s = torch.zeros_like(v), torch.zeros_like(v)
        for t in range(1, self.steps + 1):
            residual = linearize(v)
            v, m, s = adam_step(v, m, s, residual.vjp(residual.value), t, lr=self.lr, decay=1.0)
        return v


@dataclass(frozen=True)
class LBFGS(InnerSolver):
    """Limited-memory BFGS (Nocedal & Wright 2006, algorithm 7.4).

    Every member keeps its own pairs, those with curvature. Where its line search finds nothing lower it stays, and the
    next search goes on with shorter steps.

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
        # (K, 2, M, *latent): the step s and the change y of the gradient, newest last; zeros stand for none.
        pairs = v.new_zeros(self.history, 2, *v.shape)
        cost, g, _ = _cost_gradient(linearize, v)
        length = torch.ones_like(cost)
        for _ in range(self.steps):
            step = per_member(-length, v) * self._inverse_hessian(g, pairs)
            new = _halve_until_lower(linearize, v, step, cost, self.halvings, early=True)
            cost, g_new, _ = _cost_gradient(linearize, new)
            pair = torch.stack([new - v, g_new - g])
            useful = per_member(dot(*pair) > _LEAST, v)
            pairs = torch.where(useful, torch.cat([pairs[1:], pair[None]]), pairs)
            # The same search would fail the same way: it goes on where it gave up.
            length = torch.where(squared_norm(pair[0]) > 0, 1.0, 0.5**self.halvings * length)
            v, g = new, g_new
        return v

    @property
    def obstacle(self) -> str:
        """Its line search is long, and ends when it may."""
        return "the line search of LBFGS asks the host when to end"

    @staticmethod
    def _inverse_hessian(g: Tensor, pairs: Tensor) -> Tensor:
        """The two-loop recursion."""
        q, kept = g, []
        for s, y in pairs.flip(0):
            sy = dot(s, y)
            inverse = torch.where(sy > _LEAST, 1.0 / sy.clamp_min(_LEAST), 0.0)
            a = inverse * dot(s, q)
            q = q - per_member(a, y) * y
            kept.append((s, y, inverse, a))
        sy, yy = dot(*pairs[-1]), squared_norm(pairs[-1, 1])
        # Without curvature to scale it, a step is kept inside the prior's spread.
        scale = torch.where(sy > _LEAST, sy / yy.clamp_min(1e-30), 1.0 / squared_norm(q).sqrt().clamp_min(1.0))
        q = per_member(scale, q) * q
        for s, y, inverse, a in reversed(kept):
            b = inverse * dot(y, q)
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
        Conjugate-gradient iterations with the surrogate (``models.tangent``): they find the start, which costs no
        derivative of the decoder, and precondition each iteration with it; 0 for none. About 10 take several times
        fewer derivatives of a nonlinear decoder; 20 gain nothing over that.
    """

    outer: int = 2
    cg: int = 8
    halvings: int = 2
    precondition: int = 0

    def __post_init__(self) -> None:
        if min(self.outer, self.cg) < 1 or min(self.halvings, self.precondition) < 0:
            raise InputError(f"{self}: accepted are outer >= 1, cg >= 1, halvings >= 0, precondition >= 0")

    @property
    def needs_surrogate(self) -> bool:
        """For the preconditioner."""
        return self.precondition > 0

    def minimize(self, linearize: Linearize, v: Tensor, surrogate: Linearization | None = None) -> Tensor:
        """See the module."""
        if self.needs_surrogate:
            if surrogate is None:
                raise InputError(
                    f"{self} came with a prior that has no tangent of its decoder; accepted is precondition=0"
                )
            # The surrogate's own optimum is a start that costs no derivative of the decoder.
            residual = linearize(v)
            near = surrogate.scaled(residual.slope)
            gradient = near.vjp(residual.value.to(near.value)) + v
            v = self._move(linearize, v, self._solve(near, -gradient).to(v), _cost(residual, v))
        for _ in range(self.outer):
            cost, gradient, residual = _cost_gradient(linearize, v)
            hessian = normal(residual.jvp, residual.vjp)
            precondition = None
            if surrogate is not None and self.needs_surrogate:
                precondition = partial(self._solve, surrogate.scaled(residual.slope))
            step = cg(hessian, -gradient, iterations=self.cg, precondition=precondition)
            v = self._move(linearize, v, step, cost)
        return v

    def _solve(self, near: Linearization, b: Tensor) -> Tensor:
        """In the surrogate's precision, to that of b."""
        wide = b.to(near.value)
        step = restricted_cg(
            near.jvp, near.vjp, near.gram, wide, iterations=self.precondition, tolerance=1e-2, solve=near.solve
        )
        return step.to(b)

    def _move(self, linearize: Linearize, v: Tensor, step: Tensor, cost: Tensor) -> Tensor:
        return _halve_until_lower(linearize, v, step, cost, self.halvings) if self.halvings else v + step
