"""The Gaussian update in observation space, for a covariance C that can only be multiplied.

With J = R^-1/2 G' and residual r(z) = R^-1/2 (G(z) - y), linearised at z around the prior mean m:

    z' = m - C J' (I + J C J')^-1 (r(z) + J (m - z))

A robust likelihood weighs both, r and J, by its w^1/2 at z. The C of a learned denoiser is neither symmetric nor
positive, and conjugate gradients leave every bound with it; conjugate residuals do not.
"""

from collections.abc import Callable

from torch import Tensor

from lsda_fast.guidance.base import Context
from lsda_fast.guidance.krylov import gcr
from lsda_fast.prior import Linearization

__all__ = ["dual_optimum"]

Covariance = Callable[[Tensor], Tensor]


def dual_optimum(
    m: Tensor, context: Context, covariance: Covariance, noise: Tensor | None = None, *, outer: int, iterations: int
) -> Tensor:
    """z' (M, *latent) after ``outer`` linearisations, each at the z' before; the first at m."""
    z, offset = m, None
    for stage in context.stages():
        for _ in range(outer):
            z = m + _update(stage.linearize_residual(z, noise), covariance, offset, iterations)
            offset = m - z
    return z


def _update(residual: Linearization, covariance: Covariance, offset: Tensor | None, iterations: int) -> Tensor:
    """The increment z' - m; ``offset`` is m - z, None where the linearisation is at m itself."""
    operator = lambda u: u + residual.jvp(covariance(residual.vjp(u)))  # noqa: E731
    innovation = residual.value if offset is None else residual.value + residual.jvp(offset)
    return -covariance(residual.vjp(gcr(operator, innovation, iterations=iterations)))
