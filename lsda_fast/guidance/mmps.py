"""Moment-matching posterior sampling: the Gaussian update of the clean estimate with its Tweedie covariance.

z0' = z0 + C_t J' (R + J C_t J')^-1 (y - G(z0)),  C_t = sigma_t^2 / alpha_t d z0 / d z_t

solved by conjugate residuals, which are GMRES (Rozet et al. 2024, arXiv:2405.13712, with conjugate gradients; a learned
C_t is neither symmetric nor positive).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lsda_fast.guidance.base import Context, Estimate, Guidance
from lsda_fast.guidance.dual import dual_optimum

__all__ = ["MMPS"]


@dataclass(frozen=True)
class MMPS(Guidance):
    """Moment matching with the denoiser's derivative.

    Parameters
    ----------
    iterations : int
        Iterations a level.
    """

    steps: ClassVar[int] = 16
    iterations: int = 4

    def guide(self, z_t: Tensor, context: Context) -> Estimate:
        """See the module's equation; C_t acts by one denoiser VJP, as published."""
        denoiser = context.linearize_denoiser(z_t)
        factor = context.level.sigma**2 / context.level.alpha
        covariance = lambda v: factor * denoiser.vjp(v)  # noqa: E731
        return Estimate(dual_optimum(denoiser.value, context, covariance, outer=1, iterations=self.iterations))
