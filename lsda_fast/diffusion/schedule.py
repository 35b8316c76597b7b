"""Noise schedules: z_t = alpha_t z + sigma_t eps, t from 0 (clean) to 1 (noise).

- VP-cosine (Rozet & Louppe 2023, arXiv:2306.10574, as in LO-SDA and Align-DA):
  alpha_t = cos^2(arccos(sqrt(eta)) t),  sigma_t^2 = 1 - alpha_t^2 + eta^2
- VP-linear (Song et al. 2021, arXiv:2011.13456):
  alpha_t = exp(-t^2 (beta_1 - beta_0) / 4 - t beta_0 / 2),  sigma_t^2 = 1 - alpha_t^2
- EDM (Karras et al. 2022, arXiv:2206.00364): alpha_t = 1,
  sigma_t = (sigma_min^(1/7) + t (sigma_max^(1/7) - sigma_min^(1/7)))^7

``rho_t = sigma_t / alpha_t`` is the noise-to-signal ratio, the only thing that a Gaussian posterior sees.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lsda_fast.errors import InputError

__all__ = ["Level", "Schedule"]


@dataclass(frozen=True)
class Level:
    """One noise level: its index in the run, its time and its two coefficients."""

    index: int
    t: float
    alpha: float
    sigma: float

    @property
    def rho(self) -> float:
        """Noise-to-signal ratio sigma_t / alpha_t."""
        return self.sigma / self.alpha


@dataclass(frozen=True)
class Schedule:
    """A noise schedule by name and numbers, as it stands in a package's manifest.

    Parameters
    ----------
    kind : {"vp_cosine", "vp_linear", "edm"}
    eta : float
        VP-cosine: residual signal at t = 1.
    beta_min, beta_max : float
        VP-linear: rates at t = 0 and t = 1.
    sigma_min, sigma_max : float
        EDM: noise at t = 0 and t = 1.

    Raises
    ------
    InputError
        Unknown kind, or numbers outside their range.
    """

    kind: str = "vp_cosine"
    eta: float = 1e-3
    beta_min: float = 0.1
    beta_max: float = 20.0
    sigma_min: float = 2e-3
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if self.kind not in ("vp_cosine", "vp_linear", "edm"):
            raise InputError(f"schedule {self.kind!r} is unknown; accepted: vp_cosine, vp_linear, edm")
        if not (0 < self.eta < 1 and 0 < self.beta_min < self.beta_max and 0 < self.sigma_min < self.sigma_max):
            raise InputError(f"{self}: accepted are 0 < eta < 1, 0 < beta_min < beta_max, 0 < sigma_min < sigma_max")

    @classmethod
    def vp_cosine(cls, eta: float = 1e-3) -> "Schedule":
        """The papers' schedule."""
        return cls("vp_cosine", eta=eta)

    @classmethod
    def vp_linear(cls, beta_min: float = 0.1, beta_max: float = 20.0) -> "Schedule":
        """Variance preserving, with a linear rate."""
        return cls("vp_linear", beta_min=beta_min, beta_max=beta_max)

    @classmethod
    def edm(cls, sigma_min: float = 2e-3, sigma_max: float = 80.0) -> "Schedule":
        """Variance exploding, in the spacing of Karras et al."""
        return cls("edm", sigma_min=sigma_min, sigma_max=sigma_max)

    def alpha(self, t: float) -> float:
        """Signal coefficient at time t."""
        if self.kind == "vp_cosine":
            return math.cos(math.acos(math.sqrt(self.eta)) * t) ** 2
        if self.kind == "vp_linear":
            return math.exp(-0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min)
        return 1.0

    def sigma(self, t: float) -> float:
        """Noise coefficient at time t."""
        if self.kind == "vp_cosine":
            return math.sqrt(1.0 - self.alpha(t) ** 2 + self.eta**2)
        if self.kind == "vp_linear":
            return math.sqrt(-math.expm1(-0.5 * t * t * (self.beta_max - self.beta_min) - t * self.beta_min))
        low, high = self.sigma_min ** (1 / 7), self.sigma_max ** (1 / 7)
        return (low + t * (high - low)) ** 7

    def rho(self, t: float) -> float:
        """Noise-to-signal ratio at time t, increasing in t."""
        return self.sigma(t) / self.alpha(t)

    def time(self, rho: float) -> float:
        """The time at which the noise-to-signal ratio is ``rho`` (clipped to [0, 1]), by bisection."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.rho(middle) < rho else (low, middle)
        return 0.5 * (low + high)

    def level(self, t: float, index: int = 0) -> Level:
        """The noise level at time t."""
        return Level(index, t, self.alpha(t), self.sigma(t))

    def levels(self, steps: int, *, start: float = 1.0, stop: float = 0.0, spacing: str = "time") -> list[Level]:
        """Noise levels of a run, from high to low.

        Parameters
        ----------
        steps : int
            Number of levels, at least 1.
        start : float
            Time of the first level, 0 < start <= 1; below 1 is a warm start.
        stop : float
            Time of the end. With ``"time"`` spacing it is not itself a level: a level at the end would only
            repeat the clean estimate. With ``"log_rho"`` it is the last level, of several.
        spacing : {"time", "log_rho"}
            Uniform in t, or geometric in the noise-to-signal ratio.

        Raises
        ------
        InputError
            Numbers outside these ranges.
        """
        if steps < 1:
            raise InputError(f"steps = {steps}; accepted is a whole number of at least 1")
        if not 0.0 <= stop < start <= 1.0:
            raise InputError(f"levels from t = {start} to t = {stop}; accepted is 0 <= stop < start <= 1")
        if spacing == "time":
            times = np.linspace(start, stop, steps + 1)[:-1]
        elif spacing == "log_rho":
            if self.rho(stop) <= 0:
                raise InputError(
                    f"spacing 'log_rho' down to t = {stop}, where this schedule has no noise; accepted is stop > 0"
                )
            ratios = np.geomspace(self.rho(start), self.rho(stop), steps)
            times = np.array([start] + [self.time(r) for r in ratios[1:]])
        else:
            raise InputError(f"spacing {spacing!r} is unknown; accepted: time, log_rho")
        return [self.level(float(t), index) for index, t in enumerate(times)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)
