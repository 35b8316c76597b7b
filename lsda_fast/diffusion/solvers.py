"""Transitions from one noise level to the next, given the (guided) clean estimate z0 of z_t.

- ``Renoise``:   z_s = alpha_s z0 + sigma_s eps. Exact when z0 is a draw from p(z0 | z_t, y) (decoupled annealing).
- ``DDIM``:      z_s = alpha_s z0 + sqrt(sigma_s^2 - tau^2) (z_t - alpha_t z0) / sigma_t + tau eps,
                 tau^2 = eta^2 sigma_s^2 (1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)
                 (Song et al. 2021, arXiv:2010.02502).
- ``Ancestral``: DDIM with eta = 1, the reverse of the forward chain (Ho et al. 2020, arXiv:2006.11239).
- ``DPMpp2M``:   DPM-Solver++(2M), second-order multistep in log(alpha / sigma) (Lu et al. 2022, arXiv:2211.01095).
- ``Heun``:      second-order Runge-Kutta of the probability flow d(z/alpha)/d rho = (z/alpha - z0)/rho
                 (Karras et al. 2022).

``Langevin`` corrects a level after arriving there (predictor-corrector, Song et al. 2021; step size of SDA).
The end of a run is the clean level alpha = 1, sigma = 0, where every transition returns z0. All of them are linear in
z0, z_t and noise: a step says the coefficients, and ``combine`` makes the sum in one pass over memory
(``lsda_fast.kernels.sampler_step``).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from lsda_fast.diffusion.schedule import Level
from lsda_fast.errors import InputError

__all__ = ["DDIM", "SOLVERS", "Ancestral", "DPMpp2M", "Heun", "Langevin", "Renoise", "Solver", "get_solver"]

Guided = Callable[[Tensor, Level], Tensor]


class Combine(Protocol):
    """sum_j coefficient_j term_j + noise eps, with fresh eps."""

    def __call__(self, terms: Sequence[Tensor], coefficients: Sequence[float], noise: float = 0.0) -> Tensor:
        """Terms (M, *latent) to (M, *latent)."""


@dataclass(frozen=True)
class Solver(ABC):
    """A transition. ``memory`` is a dictionary that lives as long as the run: multistep solvers keep their past there.

    ``smooth`` says that the step needs z0 to be a smooth function of z_t.
    """

    smooth: ClassVar[bool] = False

    @abstractmethod
    def step(
        self, z0: Tensor, z_t: Tensor, t: Level, s: Level, *, guided: Guided, combine: Combine, memory: dict
    ) -> Tensor:
        """z_s (M, *latent) from z_t and its clean estimate z0."""


@dataclass(frozen=True)
class Renoise(Solver):
    """Fresh noise on the clean estimate."""

    def step(
        self, z0: Tensor, z_t: Tensor, t: Level, s: Level, *, guided: Guided, combine: Combine, memory: dict
    ) -> Tensor:
        """See the module's equations."""
        return z0 if s.sigma == 0 else combine([z0], [s.alpha], s.sigma)


@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM; ``eta`` = 0 is deterministic, 1 is ancestral; InputError beyond."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta = {self.eta}; accepted is 0 <= eta <= 1")

    def step(
        self, z0: Tensor, z_t: Tensor, t: Level, s: Level, *, guided: Guided, combine: Combine, memory: dict
    ) -> Tensor:
        """See the module's equations."""
        if s.sigma == 0:
            return z0
        tau = self.eta * s.sigma * math.sqrt(max(0.0, 1.0 - (s.rho / t.rho) ** 2))
        k = math.sqrt(s.sigma**2 - tau**2) / t.sigma
        return combine([z0, z_t], [s.alpha - k * t.alpha, k], tau)


@dataclass(frozen=True)
class Ancestral(DDIM):
    """The reverse of the forward Markov chain."""

    eta: float = 1.0


@dataclass(frozen=True)
class DPMpp2M(Solver):
    """DPM-Solver++(2M): second order with one evaluation a step."""

    smooth: ClassVar[bool] = True

    def step(
        self, z0: Tensor, z_t: Tensor, t: Level, s: Level, *, guided: Guided, combine: Combine, memory: dict
    ) -> Tensor:
        """See the module's equations."""
        if s.sigma == 0:
            return z0
        h = math.log(t.rho / s.rho)
        terms, gain = [z_t, z0], -s.alpha * math.expm1(-h)
        coefficients = [s.sigma / t.sigma, gain]
        if "z0" in memory:
            slope = 0.5 * h / memory["h"]
            terms.append(memory["z0"])
            coefficients = [s.sigma / t.sigma, gain * (1.0 + slope), -gain * slope]
        memory["z0"], memory["h"] = z0, h
        return combine(terms, coefficients)


@dataclass(frozen=True)
class Heun(Solver):
    """Second-order Runge-Kutta: two evaluations a step, one at the last."""

    smooth: ClassVar[bool] = True

    def step(
        self, z0: Tensor, z_t: Tensor, t: Level, s: Level, *, guided: Guided, combine: Combine, memory: dict
    ) -> Tensor:
        """See the module's equations."""
        if s.sigma == 0:
            return z0
        euler = combine([z_t, z0], [s.sigma / t.sigma, s.alpha * (1.0 - s.rho / t.rho)])
        z0_s = guided(euler, s)
        begin, end = 0.5 * (s.rho / t.rho - 1.0), 0.5 * (1.0 - t.rho / s.rho)
        coefficients = [s.alpha / t.alpha * (1.0 + begin), -s.alpha * begin, end, -s.alpha * end]
        return combine([z_t, z0, euler, z0_s], coefficients)


@dataclass(frozen=True)
class Langevin:
    """Langevin corrector: ``rounds`` steps of z += delta score + sqrt(2 delta) noise at one level.

    As in SDA, delta = tau / mean(eps^2) in units of the level's noise, eps = (z_t - alpha_t z0) / sigma_t, so that
    z_t <- z_t - sigma_t (delta eps + sqrt(2 delta) noise).
    """

    rounds: int = 2
    tau: float = 0.1

    def correct(self, z_t: Tensor, level: Level, *, guided: Guided, noise: Callable[[int], Tensor]) -> Tensor:
        """z_t (M, *latent) after the rounds; ``noise(i)`` draws the noise of round i."""
        for i in range(self.rounds):
            eps = (z_t - level.alpha * guided(z_t, level)) / level.sigma
            delta = self.tau / eps.square().flatten(1).mean(1).clamp_min(1e-12)
            delta = delta.reshape(-1, *[1] * (z_t.ndim - 1))
            z_t = z_t - level.sigma * (delta * eps + (2.0 * delta).sqrt() * noise(i))
        return z_t


SOLVERS: dict[str, Solver] = {
    "renoise": Renoise(),
    "ancestral": Ancestral(),
    "ddim": DDIM(),
    "dpmpp_2m": DPMpp2M(),
    "heun": Heun(),
}


def get_solver(solver: "str | Solver") -> Solver:
    """A solver by name or as it is; InputError when the name is unknown."""
    if isinstance(solver, Solver):
        return solver
    if solver not in SOLVERS:
        raise InputError(f"solver {solver!r} is unknown; accepted: {', '.join(SOLVERS)}")
    return SOLVERS[solver]
