"""How far a prior's clean estimate is from the best there is, by level.

The mean squared error of E[x | x_t] at a noise-to-signal ratio rho is the posterior's variance given every number with
an error of rho. For a known model and little noise that is the diagonal of the inverse Gauss-Newton Hessian at the
truth (Laplace's approximation): what is achievable. Errors are in units of the climate's variance.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bench.twins.reference import Residual, hessian
from lsda_fast.diffusion.schedule import Level
from lsda_fast.prior import Prior

__all__ = ["achievable", "errors"]


def errors(prior: Prior, v: Tensor, rhos: Sequence[float]) -> Iterator[Tensor]:
    """The clean estimate's mean squared error by state (T,), at each ratio, for trajectories v (n, T, *latent)."""
    noise = torch.randn(v.shape, generator=torch.Generator().manual_seed(0))
    for rho in rhos:
        alpha = (1 + rho**2) ** -0.5
        level = Level(0, prior.schedule.time(rho), alpha, rho * alpha)
        with torch.no_grad():
            yield (prior.denoise(alpha * (v + rho * noise), level) - v).square().flatten(2).mean((0, 2))


def achievable(cost: Callable[[float], Residual], near: Tensor, rhos: Sequence[float]) -> Iterator[Tensor]:
    """The least mean squared error of every unknown (n,), at each ratio: ``cost`` of all unknowns seen with its error.

    ``near`` are truths (cases, n).
    """
    for rho in rhos:
        yield torch.linalg.inv(hessian(cost(rho), near)).diagonal(dim1=1, dim2=2).mean(0)
