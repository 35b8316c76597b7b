"""C_t, the covariance of the clean latent given z_t, by four approximations.

With rho = sigma_t / alpha_t:

- ``isotropic``:  C_t = rho^2 / (1 + rho^2) I, exact for a unit-variance uncorrelated latent (a whitened one).
- ``diagonal``:   C_t = diag(s rho^2 / (s + rho^2)), s the variance of each latent given the background.
- ``stationary``: C_t = (S^-1 + rho^-2 I)^-1, S the covariance of the latent given the background. Exact for N(z_b, S).
- ``tweedie``:    C_t = sigma_t^2 / alpha_t (J + J') / 2, J the derivative of the clean estimate. Exact for any
  Gaussian, at the price of a denoiser JVP and VJP a product (Finzi et al. 2023; Rozet et al. 2024, arXiv:2405.13712),
  or of the whole J at once, from which C_t^1/2 comes exactly: quicker for latents of some hundred numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.guidance.base import Context
from lsda_fast.guidance.krylov import lanczos_sqrt
from lsda_fast.prior import Covariance, Linearization, Scaling

__all__ = ["PRIOR_COVARIANCES", "LatentCovariance", "latent_covariance"]

PRIOR_COVARIANCES = ("isotropic", "diagonal", "stationary", "tweedie")
_SMALL, _LARGEST = 256, 1024  # numbers of a latent whose derivative is taken in full by itself, or when asked


@dataclass(frozen=True)
class LatentCovariance:
    """C_t as products: ``apply`` C v; ``half`` C^1/2 v, symmetric and cheap, or None where only ``sample`` exists."""

    apply: Callable[[Tensor], Tensor]
    sample: Callable[[Tensor], Tensor]
    half: Callable[[Tensor], Tensor] | None = None


def latent_covariance(
    name: str, context: Context, denoiser: Linearization | None = None, *, lanczos: int | None = None
) -> LatentCovariance:
    """C_t by name.

    Parameters
    ----------
    name : {"isotropic", "diagonal", "stationary", "tweedie"}
    context : Context
    denoiser : Linearization
        The clean estimate at z_t; ``tweedie`` alone needs it.
    lanczos : int, optional
        Lanczos steps of a ``tweedie`` sample; 0 takes J in full. When not given: 0 for latents of up to 256 numbers,
        16 for others.

    Raises
    ------
    InputError
        Unknown name, a latent too large for J in full, or a prior that does not hold what the choice needs.
    """
    rho2, prior = context.level.rho**2, context.prior
    if name == "isotropic":
        return _from_half(Scaling((rho2 / (1.0 + rho2)) ** 0.5))
    if name == "diagonal":
        if prior.variance is None:
            raise InputError("prior_covariance='diagonal' needs a prior with a variance per latent; this one has none")
        half = (prior.variance * rho2 / (prior.variance + rho2)).sqrt()
        return _from_half(lambda v: half * v)
    if name == "stationary":
        covariance = prior.covariance
        if covariance is None:
            raise InputError("prior_covariance='stationary' needs a prior with a full covariance; this one has none")
        left = lambda s: s * rho2 / (s + rho2)  # noqa: E731
        root = _function(covariance, lambda s: left(s).sqrt())
        return LatentCovariance(_function(covariance, left), root, root)
    if name == "tweedie":
        if denoiser is None:
            raise InputError("prior_covariance='tweedie' needs the derivative of the denoiser")
        factor = 0.5 * context.level.sigma**2 / context.level.alpha
        if lanczos is None:
            lanczos = 0 if denoiser.value[0].numel() <= _SMALL else 16
        if lanczos == 0:
            return _from_half(_dense_half(factor, denoiser))
        apply = lambda v: factor * (denoiser.jvp(v) + denoiser.vjp(v))  # noqa: E731
        return LatentCovariance(apply, lambda v: lanczos_sqrt(apply, v, iterations=lanczos))
    raise InputError(f"prior_covariance {name!r} is unknown; accepted: {', '.join(PRIOR_COVARIANCES)}")


def _function(covariance: Covariance, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """f(S), in the covariance's own way for many products where it has one."""
    own = getattr(covariance, "of", None)
    return own(function) if own else lambda v: covariance.apply(v, function)


def _dense_half(factor: float, denoiser: Linearization) -> Callable[[Tensor], Tensor]:
    """(factor (J + J'))^1/2 per member; negative eigenvalues of a learned derivative count as zero."""
    n = denoiser.value[0].numel()
    if n > _LARGEST:
        raise InputError(f"lanczos=0 takes a derivative of {n} x {n} in full; accepted is a latent of up to {_LARGEST}")
    J = denoiser.jacobian()
    values, vectors = torch.linalg.eigh(factor * (J + J.mT))
    half = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT
    return lambda v: (half @ v.flatten(1)[..., None]).reshape(v.shape)


def _from_half(half: Callable[[Tensor], Tensor]) -> LatentCovariance:
    return LatentCovariance(lambda v: half(half(v)), half, half)
