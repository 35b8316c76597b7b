"""Latent optimisation (LO-SDA, arXiv:2510.22562), made a sampler by randomise-then-optimise.

    z0' = argmin_z 1/2 |R^-1/2 (y + R^1/2 e - G(z))|^2 + 1/2 |C_t^-1/2 (z - z0 - C_t^1/2 x)|^2

With e = x = 0 this is the published step: every member is an optimum. Randomised, with e, x ~ N(0, I) of its own for
each member (Bardsley et al. 2014, doi:10.1137/140964023), z0' is a draw from p(z0 | z_t, y) whenever the problem is
Gaussian with covariance C_t, and re-noising it to the next level keeps every level's marginal exact, however few
levels there are. The derivative of the denoiser is not needed, unless C_t is ``tweedie``. With a robust likelihood its
cost stands in place of the first square, and e still perturbs the departure, before the weight.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.guidance.base import STREAMS, Context, Estimate, Guidance, Likelihood, prepared
from lsda_fast.guidance.covariance import LatentCovariance, latent_covariance
from lsda_fast.guidance.dual import dual_optimum
from lsda_fast.guidance.inner import GaussNewton, InnerSolver
from lsda_fast.prior import Prior, observe

__all__ = ["LatentOptimization"]


@dataclass(frozen=True)
class LatentOptimization(Guidance):
    """Optimise the clean latent against the observations.

    Parameters
    ----------
    inner : InnerSolver
        ``GaussNewton``, ``Adam`` or ``LBFGS``.
    prior_covariance : {"isotropic", "diagonal", "stationary", "tweedie"}
        C_t; ``tweedie`` goes with ``GaussNewton`` alone.
    randomize : bool
        Members as samples (True) or as optima (False, the papers).
    lanczos : int, optional
        Lanczos steps of a ``tweedie`` sample; 0 takes the denoiser's derivative in full. When not given: 0 for latents
        of up to 256 numbers, 16 for others.
    antithetic : bool
        Members in pairs of opposite noise, see ``Guidance``.
    """

    solver: ClassVar[str] = "renoise"
    spacing: ClassVar[str] = "log_rho"
    steps: ClassVar[int] = 3
    stop_rho: ClassVar[float] = 2.0

    inner: InnerSolver = field(default_factory=GaussNewton)
    prior_covariance: str = "isotropic"
    randomize: bool = True
    lanczos: int | None = None
    antithetic: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if self.prior_covariance == "tweedie" and not isinstance(self.inner, GaussNewton):
            raise InputError(f"prior_covariance='tweedie' came with {self.inner}; accepted is GaussNewton")
        if self.lanczos is not None and self.lanczos < 0:
            raise InputError(f"lanczos = {self.lanczos}; accepted is a number of at least 0, or None")

    def prepare(self, prior: Prior, likelihood: Likelihood) -> tuple[Tensor, ...]:
        """The observed decoder, and the observed tangent where the inner solver takes it."""
        tensors = super().prepare(prior, likelihood)
        if not self.inner.needs_surrogate or prior.tangent is None:
            return tensors
        return tensors + prepared(observe(prior.tangent(prior.evaluations), likelihood.operator))

    @property
    def obstacle(self) -> str:
        """The eigenvalues of a learned derivative, and the inner solver's own."""
        if self.prior_covariance == "tweedie":
            return "the eigenvalues of prior_covariance='tweedie' are asked of the host"
        return self.inner.obstacle

    @property
    def exact(self) -> bool:
        """As the inner solver's."""
        return not self.inner.obstacle

    def guide(self, z_t: Tensor, context: Context) -> Estimate:
        """A draw (or the optimum); at the last level the conditional mean too."""
        denoiser = context.linearize_denoiser(z_t) if self.prior_covariance == "tweedie" else None
        z0 = denoiser.value if denoiser else context.denoise(z_t)
        covariance = latent_covariance(self.prior_covariance, context, denoiser, lanczos=self.lanczos)
        if not self.randomize:
            return Estimate(self._optimum(z0, None, context, covariance))
        e = context.noise(tuple(context.likelihood.y.shape), STREAMS.observations)
        x = context.noise(tuple(z_t.shape[1:]), STREAMS.latent)
        start = z0 + covariance.sample(x)
        if not context.last:
            return Estimate(self._optimum(start, e, context, covariance))
        if denoiser:  # C_t is each member's own
            draw, mean = (self._optimum(m, noise, context, covariance) for m, noise in ((start, e), (z0, None)))
        else:
            both = torch.cat([start, z0]), torch.cat([e, torch.zeros_like(e)])
            draw, mean = self._optimum(*both, context, covariance).chunk(2)
        return Estimate(draw, mean=mean)

    def _optimum(self, m: Tensor, e: Tensor | None, context: Context, covariance: LatentCovariance) -> Tensor:
        """The minimiser of the module's cost for prior mean ``m`` and observation perturbation ``e``."""
        if covariance.half is None:
            assert isinstance(self.inner, GaussNewton)
            return dual_optimum(m, context, covariance.apply, e, outer=self.inner.outer, iterations=self.inner.cg)
        half, square, v = covariance.half, covariance.apply, torch.zeros_like(m)
        surrogate = context.linearize_surrogate(v, m) if self.inner.needs_surrogate else None
        surrogate = surrogate and surrogate.after(half, square)
        for stage in context.stages():
            linearize = lambda v, at=stage: at.linearize_residual(m + half(v), e).after(half, square)  # noqa: E731
            v = self.inner.minimize(linearize, v, surrogate)
        return m + half(v)
