"""Prediction types, converted to the clean estimate once, at the boundary of a model.

With z_t = alpha z + sigma eps and a network output F:

- ``x0``:     z0 = F
- ``eps``:    z0 = (z_t - sigma F) / alpha
- ``v``:      z0 = (alpha z_t - sigma F) / (alpha^2 + sigma^2)
- ``score``:  z0 = (z_t + sigma^2 F) / alpha
- ``wiener``: z0 = D_G + c_out F, with D_G = alpha z_t / (alpha^2 + sigma^2) the linear-Gaussian optimum for a
  unit-variance latent and c_out = sigma / sqrt(alpha^2 + sigma^2) its posterior spread. F = 0 is optimal interpolation.

The inverses serve training: the target of F for a known z.
"""

from collections.abc import Callable

from torch import Tensor

from lsda_fast.diffusion.schedule import Level
from lsda_fast.errors import InputError

__all__ = ["PREDICTIONS", "TRAINED", "check_prediction", "to_clean", "wiener"]

TRAINED = (0.02, 100.0)  # noise-to-signal ratios at which networks of ``wiener`` are trained

PREDICTIONS: dict[str, Callable[[Tensor, Tensor, Level], Tensor]] = {
    "x0": lambda F, z_t, level: F,
    "eps": lambda F, z_t, level: (z_t - level.sigma * F) / level.alpha,
    "v": lambda F, z_t, level: (level.alpha * z_t - level.sigma * F) / (level.alpha**2 + level.sigma**2),
    "score": lambda F, z_t, level: (z_t + level.sigma**2 * F) / level.alpha,
    "wiener": lambda F, z_t, level: wiener(z_t, level) + level.sigma * (level.alpha**2 + level.sigma**2) ** -0.5 * F,
}


def wiener(z_t: Tensor, level: Level) -> Tensor:
    """The linear-Gaussian clean estimate of a unit-variance latent."""
    return z_t * (level.alpha / (level.alpha**2 + level.sigma**2))


def check_prediction(prediction: str) -> str:
    """Return the name, or raise InputError when it is unknown."""
    if prediction not in PREDICTIONS:
        raise InputError(f"prediction {prediction!r} is unknown; accepted: {', '.join(PREDICTIONS)}")
    return prediction


def to_clean(prediction: str, output: Tensor, z_t: Tensor, level: Level) -> Tensor:
    """Clean estimate z0 (M, *latent) of a network output of the given prediction type."""
    return PREDICTIONS[check_prediction(prediction)](output, z_t, level)
