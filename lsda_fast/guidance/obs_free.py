"""No observations: the prior alone, p(z | z_b) (Align-DA's ObsFree).

It is smooth in the noise level, so that a transition of second order keeps the prior's variance in few levels: of a
unit Gaussian 1.08 at 8 levels, where ancestral steps keep 0.43 (0.78 at 32).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lsda_fast.guidance.base import Context, Estimate, Guidance, Likelihood
from lsda_fast.prior import Prior

__all__ = ["ObsFree"]


@dataclass(frozen=True)
class ObsFree(Guidance):
    """Sample the background-conditioned prior."""

    solver: ClassVar[str] = "dpmpp_2m"
    spacing: ClassVar[str] = "log_rho"
    steps: ClassVar[int] = 16

    def prepare(self, prior: Prior, likelihood: Likelihood) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def guide(self, z_t: Tensor, context: Context) -> Estimate:
        """z0' = z0."""
        return Estimate(context.denoise(z_t))
