"""Noised latents and what a denoiser should answer to them: the part that training and alignment share.

At a level (alpha, sigma), z_t = alpha z + sigma eps. The network reads z_t scaled to about unit variance, and its
target F* for the prediction type is the inverse of ``diffusion.prediction``; for ``wiener`` F* = (z - D_G) / c_out.

Every squared error is that of eps up to a factor of the level (``eps_weight``),
|eps - eps_theta|^2 = w |F* - F_theta|^2, by eps = (z_t - alpha z0) / sigma:

- ``eps``: 1;  ``score``: sigma^2;  ``x0``: (alpha / sigma)^2
- ``v``: alpha^2 / (alpha^2 + sigma^2)^2
- ``wiener``: alpha^2 / (alpha^2 + sigma^2)
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lsda_fast.diffusion.prediction import TRAINED
from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.models.trajectory_covariance import TrajectoryCovariance
from lsda_fast.models.window_input import window_input

__all__ = ["Levels", "Noised", "draw_levels", "eps_weight", "noised", "noised_windows", "training_weight"]


class Levels(NamedTuple):
    """One noise level per sample, (B,) each."""

    alpha: Tensor
    sigma: Tensor

    def like(self, z: Tensor) -> "Levels":
        """On the device of z (B, ...), shaped to multiply it."""
        return Levels(*(c.to(z.device).reshape(-1, *[1] * (z.ndim - 1)) for c in self))


class Noised(NamedTuple):
    """What the network reads (B, *latent), the logarithm of its noise-to-signal ratio (B,), and F* (B, *latent)."""

    scaled: Tensor
    log_rho: Tensor
    target: Tensor


def draw_levels(schedule: Schedule, prediction: str, n: int, generator: torch.Generator) -> Levels:
    """Random levels of n samples: log rho uniform for ``wiener``, t uniform for the published predictions."""
    u = torch.rand(n, generator=generator)
    if prediction == "wiener":
        low, high = math.log(max(schedule.rho(0.0), TRAINED[0])), math.log(min(schedule.rho(1.0), TRAINED[1]))
        rho = torch.exp(low + (high - low) * u)
        return Levels((1 + rho**2).rsqrt(), rho * (1 + rho**2).rsqrt())
    t = u.tolist()
    return Levels(torch.tensor([schedule.alpha(s) for s in t]), torch.tensor([schedule.sigma(s) for s in t]))


def noised(z: Tensor, noise: Tensor, levels: Levels, prediction: str) -> Noised:
    """z (B, *latent) with noise of the same shape at its levels."""
    log_rho = (levels.sigma / levels.alpha).log().to(z.device)
    alpha, sigma = levels.like(z)
    z_t = alpha * z + sigma * noise
    norm2 = alpha**2 + sigma**2
    scaled = alpha / norm2 * z_t if prediction == "wiener" else norm2.rsqrt() * z_t
    target = {
        "wiener": lambda: (z - scaled) / (sigma * norm2.rsqrt()),
        "x0": lambda: z,
        "eps": lambda: noise,
        "v": lambda: alpha * noise - sigma * z,
        "score": lambda: -noise / sigma,
    }[prediction]()
    return Noised(scaled, log_rho, target)


def noised_windows(
    z: Tensor, noise: Tensor, levels: Levels, prediction: str, covariance: TrajectoryCovariance | None
) -> Noised:
    """Windows z (B, size, *latent) likewise; ``wiener`` goes by their ``covariance`` (``models.window_input``)."""
    if covariance is None:
        return noised(z, noise, levels, prediction)
    alpha, sigma = levels.like(z)
    given = window_input(alpha * z + sigma * noise, alpha.flatten(), sigma.flatten(), covariance)
    return Noised(given.scaled, given.log_rho, (z - given.base) / given.spread)


def training_weight(prediction: str, levels: Levels) -> Tensor:
    """The weight of training's squared error in F per level, (B,): ``score`` is compared in units of its noise."""
    return levels.sigma**2 if prediction == "score" else torch.ones_like(levels.sigma)


def eps_weight(prediction: str, levels: Levels) -> Tensor:
    """The weight that makes the squared error in F that of eps, (B,); see the module."""
    alpha, sigma = levels
    norm2 = alpha**2 + sigma**2
    return {
        "wiener": lambda: alpha**2 / norm2,
        "x0": lambda: (alpha / sigma) ** 2,
        "eps": lambda: torch.ones_like(sigma),
        "v": lambda: (alpha / norm2) ** 2,
        "score": lambda: sigma**2,
    }[prediction]()
