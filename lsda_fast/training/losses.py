"""The losses of training, each as a function (module, indices, generator) -> scalar for the loop.

Denoiser: the network's output F is compared with its target (``noising``) in units where a Gaussian latent has unit
variance at every level, for ``wiener``: F* = (z - D_G) / c_out (Karras et al. 2022 preconditioning around the
linear-Gaussian optimum).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.models import FullWhitening
from lsda_fast.models.convolutional import kl_divergence
from lsda_fast.models.trajectory_covariance import TrajectoryCovariance
from lsda_fast.training.config import AutoencoderConfig, DenoiserConfig, GapConfig
from lsda_fast.training.data import States
from lsda_fast.training.gaps import with_gaps
from lsda_fast.training.loop import Loss
from lsda_fast.training.noising import draw_levels, noised, noised_windows, training_weight

__all__ = [
    "autoencoder_loss", "denoiser_loss", "encoded", "forecaster_loss", "shown", "squared_error", "window_loss",
]  # fmt: skip


def autoencoder_loss(x: Tensor, train: np.ndarray, config: AutoencoderConfig, device: torch.device) -> Loss:
    """Mean squared error of what is known, with gaps in the input, noise on the latent and a KL term where asked.

    ``x`` is what the encoder takes (``training.autoencoder.inputs``), the channels that are decoded first.
    """

    def loss(module: Any, indices: Tensor, generator: torch.Generator) -> Tensor:
        batch = x[torch.from_numpy(train)[indices]].to(device)
        penalty = batch.new_zeros(())
        if config.kl > 0:
            mean, log_variance = module.moments(batch)
            penalty = config.kl * kl_divergence(mean, log_variance)
            z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator).to(mean)
        else:
            z = encoded(module, shown(module, batch, config.gaps, generator))
        if config.latent_noise > 0:
            z = z + config.latent_noise * torch.randn(z.shape, generator=generator).to(z)
        return squared_error(module, module.decode(z), batch) + penalty

    return loss


def encoded(module: Any, fields: Tensor) -> Tensor:
    """Latents of what the encoder takes."""
    return getattr(module, "encode_inputs", module.encode)(fields)


def shown(module: Any, fields: Tensor, gaps: GapConfig, generator: torch.Generator) -> Tensor:
    """What a multimodal encoder is shown of them."""
    return with_gaps(fields, list(module.inputs.places.values()), gaps, generator) if gaps.samples > 0 else fields


def squared_error(module: Any, decoded: Tensor, fields: Tensor) -> Tensor:
    """Mean squared error where the channels that are decoded are known, in the autoencoder's units."""
    target = fields[:, : decoded.shape[1]]
    known = ~target.isnan()
    error = torch.where(known, decoded - target, 0) / getattr(module, "units", 1.0)
    return error.square().sum() / known.sum()


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
    """Denoising at random levels (``noising``).

    In training every network of an ensemble has a loss of its own; what is validated is their average.
    """
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
        levels = draw_levels(schedule, config.prediction, len(z), generator)
        noise = torch.randn(z.shape, generator=generator).to(z)
        scaled, log_rho, target = noised(z, noise, levels, config.prediction)
        level_weight = training_weight(config.prediction, levels.like(z))
        season = seasons[indices].to(device)
        networks = getattr(module, "networks", [module]) if module.training else [module]
        error = sum((network.predict(scaled, log_rho, z_b, season) - target).square() for network in networks)
        return (level_weight * weight * error)[:, : module.leading].mean() / len(networks)

    return loss


def window_loss(
    v: Tensor,
    seasons: Tensor,
    windows: Tensor,
    schedule: Schedule,
    prediction: str,
    covariance: TrajectoryCovariance | None,
    device: torch.device,
) -> Loss:
    """Denoising of windows, given as indices (n, size) into v (N, *latent) and their ``seasons`` (N, 4)."""

    def loss(module: Any, indices: Tensor, generator: torch.Generator) -> Tensor:
        states = windows[indices]
        z = v[states].to(device)
        levels = draw_levels(schedule, prediction, len(z), generator)
        noise = torch.randn(z.shape, generator=generator).to(z)
        scaled, log_rho, target = noised_windows(z, noise, levels, prediction, covariance)
        season = seasons[states[:, states.shape[1] // 2]].to(device)
        error = (module.predict(scaled, log_rho, season) - target).square()
        return (training_weight(prediction, levels.like(z)) * error).mean()

    return loss
