"""Repaint in a latent: decode, put the observed values at the observed places, encode again.

z0' = E(D(z0) + W (y - H D(z0))), where W spreads an innovation over the stencil of its observation, normalised so
that a grid point that is observed itself, and touched by no other observation, takes the observed value (Lugmayr et al.
2022, arXiv:2201.09865; Align-DA's latent adaptation, arXiv:2505.22008, without its use of the encoded truth).
Observations without weight (infinite variance) have no part in it.
"""

from dataclasses import dataclass

from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.guidance.base import Context, Estimate, Guidance, Likelihood
from lsda_fast.prior import Prior

__all__ = ["Repaint"]


@dataclass(frozen=True)
class Repaint(Guidance):
    """Replace the decoded estimate by the observations where there are any."""

    def prepare(self, prior: Prior, likelihood: Likelihood) -> tuple[Tensor, ...]:
        """Nothing: the whole state is decoded."""
        return ()

    def guide(self, z_t: Tensor, context: Context) -> Estimate:
        """See the module's equation; needs an encoder and an operator with a stencil."""
        prior, likelihood = context.prior, context.likelihood
        if likelihood.robust is not None:
            raise InputError(
                f"Repaint takes observed values as they are, and came with {likelihood.robust}; accepted: None"
            )
        spread = getattr(likelihood.operator, "spread", None)
        if prior.encode is None or spread is None:
            raise InputError("Repaint needs a model with an encoder and an observation operator with a stencil")
        x = prior.decode(context.denoise(z_t))
        used = likelihood.variance.isfinite()
        blended = x + spread((likelihood.y - likelihood.operator(x)).where(used, 0.0), used)
        prior.evaluations["decoder"] += len(z_t)
        prior.evaluations["encoder"] += len(z_t)
        return Estimate(prior.encode(blended))
