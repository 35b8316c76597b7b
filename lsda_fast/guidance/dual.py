"""The Gaussian update in observation space, for a covariance C that can only be multiplied.

With J = R^-1/2 G' and residual r(z) = R^-1/2 (G(z) - y), linearised at z around the prior mean m:

    z' = m - C J' (I + J C J')^-1 (r(z) + J (m - z))
"""

from collections.abc import Callable

from torch import Tensor

from lsda_fast.guidance.krylov import cg, normal
from lsda_fast.prior import Linearization

__all__ = ["dual_update"]


def dual_update(
    residual: Linearization, covariance: Callable[[Tensor], Tensor], offset: Tensor | None, *, iterations: int
) -> Tensor:
    """The increment z' - m (M, *latent); ``offset`` is m - z, None where the linearisation is at m itself."""
    operator = normal(residual.vjp, residual.jvp, covariance)
    innovation = residual.value if offset is None else residual.value + residual.jvp(offset)
    return -covariance(residual.vjp(cg(operator, innovation, iterations=iterations)))
