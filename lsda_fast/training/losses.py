"""The losses of training, each as a function (module, indices, generator) -> scalar for the loop.

Denoiser: the network's output F is compared with its target in units where a Gaussian latent has unit variance at
every level, for ``wiener``: F* = (z - D_G) / c_out (Karras et al. 2022 preconditioning around the linear-Gaussian
optimum).
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.models import FullWhitening
from lsda_fast.models.convolutional import kl_divergence
from lsda_fast.training.config import AutoencoderConfig, DenoiserConfig
from lsda_fast.training.data import States
from lsda_fast.training.loop import Loss

__all__ = ["autoencoder_loss", "denoiser_loss", "forecaster_loss"]


def autoencoder_loss(x: Tensor, train: np.ndarray, config: AutoencoderConfig, device: torch.device) -> Loss:
    """Mean squared error, with noise on the latent and a KL term where asked."""

    def loss(module: Any, indices: Tensor, generator: torch.Generator) -> Tensor:
        batch = x[torch.from_numpy(train)[indices]].to(device)
        penalty = batch.new_zeros(())
        if config.kl > 0:
            mean, log_variance = module.moments(batch)
            penalty = config.kl * kl_divergence(mean, log_variance)
            z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator).to(mean)
        else:
            z = module.encode(batch)
        if config.latent_noise > 0:
            z = z + config.latent_noise * torch.randn(z.shape, generator=generator).to(z)
        return (module.decode(z) - batch).square().mean() + penalty

    return loss


def forecaster_loss(states: States, pairs: np.ndarray, perturbation: float, device: torch.device) -> Loss:
    """Mean squared error of the forecast from the (perturbed) state one lead earlier."""
    before, season, target = states.before[pairs], states.calendar, pairs

    def loss(module: Any, indices: Tensor, generator: torch.Generator) -> Tensor:
        source = torch.from_numpy(before)[indices]
        x = states.x[source]
        if perturbation > 0:
            i, j = torch.from_numpy(pairs)[torch.randint(len(pairs), (2, len(indices)), generator=generator)]
            x = x + perturbation * (states.x[i] - states.x[j]) / 2**0.5
        truth = states.x[torch.from_numpy(target)[indices]]
        return (module(x.to(device), season[source].to(device)) - truth.to(device)).square().mean()

    return loss


def denoiser_loss(
    latents: Tensor,
    backgrounds: Tensor,
    seasons: Tensor,
    schedule: Schedule,
    config: DenoiserConfig,
    whitening: nn.Module,
    device: torch.device,
) -> Loss:
    """Denoising at random levels: log rho uniform for ``wiener``, t uniform for the published predictions.

    In training every network of an ensemble has a loss of its own; what is validated is their average.
    """
    low, high = math.log(max(schedule.rho(0.0), 0.02)), math.log(min(schedule.rho(1.0), 100.0))
    weight = torch.ones(())
    if config.spread_weight > 0 and isinstance(whitening, FullWhitening):
        weight = whitening.variance.pow(config.spread_weight).reshape(latents.shape[1:])
        weight = weight / weight.mean()
    weight = weight.to(device)

    def loss(module: Any, indices: Tensor, generator: torch.Generator) -> Tensor:
        z = latents[indices].to(device)
        z_b = backgrounds[indices].to(device)
        if config.condition_noise > 0:
            z_b = z_b + config.condition_noise * torch.randn(z_b.shape, generator=generator).to(z_b)
        u = torch.rand(len(z), generator=generator)
        if config.prediction == "wiener":
            rho = torch.exp(low + (high - low) * u)
            alpha, sigma = (1 + rho**2).rsqrt(), rho * (1 + rho**2).rsqrt()
        else:
            t = u.tolist()
            alpha, sigma = torch.tensor([schedule.alpha(s) for s in t]), torch.tensor([schedule.sigma(s) for s in t])
        log_rho = (sigma / alpha).log().to(device)
        alpha, sigma = (c.to(device).reshape(-1, *[1] * (z.ndim - 1)) for c in (alpha, sigma))
        noise = torch.randn(z.shape, generator=generator).to(z)
        z_t = alpha * z + sigma * noise
        norm2 = alpha**2 + sigma**2
        scaled = alpha / norm2 * z_t if config.prediction == "wiener" else norm2.rsqrt() * z_t
        target = {
            "wiener": lambda: (z - scaled) / (sigma * norm2.rsqrt()),
            "x0": lambda: z,
            "eps": lambda: noise,
            "v": lambda: alpha * noise - sigma * z,
            "score": lambda: -noise / sigma,
        }[config.prediction]()
        level_weight = sigma**2 if config.prediction == "score" else 1.0
        season = seasons[indices].to(device)
        networks = getattr(module, "networks", [module]) if module.training else [module]
        error = sum((network.predict(scaled, log_rho, z_b, season) - target).square() for network in networks)
        return (level_weight * weight * error)[:, : module.leading].mean() / len(networks)

    return loss
