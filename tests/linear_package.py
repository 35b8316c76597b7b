"""A linear package whose analyses are known: principal components, a full whitening, an untrained denoiser."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.guidance import GaussNewton, LatentOptimization, Likelihood
from lsda_fast.models import Forecaster, FullWhitening, LinearAutoencoder, TransformerDenoiser
from lsda_fast.package import Architecture, Package
from lsda_fast.sampler import Sampler

__all__ = ["CLIMATE", "ERRORS", "LAYOUT", "NORMALIZATION", "SHAPE", "SIZE", "analysed", "observed", "shaken", "trained"]

SHAPE = (3, 8, 10)
SIZE = 240
LAYOUT = StateLayout(
    Grid(np.linspace(50.0, 36.0, 8), np.linspace(0.0, 18.0, 10)),
    (Channel("z", 500.0, "m2 s-2"), Channel("t", 850.0, "K"), Channel("msl", None, "Pa")),
)
NORMALIZATION = Normalization(np.array([5e4, 280.0, 1e5]), np.array([1e3, 10.0, 1e3]))


def correlated(count: int, length: float, seed: int) -> Tensor:
    """Fields (count, 3, 8, 10) of unit variance, correlated over ``length`` grid points and between channels."""
    place = np.stack(np.meshgrid(np.arange(8.0), np.arange(10.0), indexing="ij"), axis=-1).reshape(-1, 2)
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
    covariance = np.kron(0.5 + 0.5 * np.eye(3), np.exp(-distance / length))
    noise = np.random.default_rng(seed).standard_normal((count, SIZE))
    return torch.tensor(noise @ np.linalg.cholesky(covariance).T, dtype=torch.float32).reshape(-1, *SHAPE)


CLIMATE = correlated(400, 6.0, 0)
ERRORS = 0.3 * correlated(400, 2.0, 1)


def trained(latents: int = 24, **changes: Any) -> Package:
    """A linear package of these errors, its denoiser untrained."""
    torch.manual_seed(0)
    specifications = {
        "autoencoder": Architecture("linear", {"shape": list(SHAPE), "latent_channels": latents}),
        "whitening": Architecture("full", {"latent_shape": [latents, 1, 1]}),
        "forecaster": Architecture("unet", {"shape": list(SHAPE), "modes": 4, "width": 0}),
        "denoiser": Architecture("transformer", {"latent_shape": [latents, 1, 1], "width": 16, "depth": 1, "heads": 2}),
    }
    autoencoder = LinearAutoencoder(SHAPE, latents)
    autoencoder.fit(CLIMATE)
    whitening = FullWhitening((latents, 1, 1))
    whitening.fit(autoencoder.encode(ERRORS) - autoencoder.encode(torch.zeros_like(ERRORS)))
    values: dict[str, Any] = {
        "layout": LAYOUT,
        "normalization": NORMALIZATION,
        "schedule": Schedule.edm(sigma_max=2000.0),
        "prediction": "wiener",
        "modules": {
            "autoencoder": autoencoder,
            "whitening": whitening,
            "forecaster": Forecaster(SHAPE, modes=4, width=0),
            "denoiser": TransformerDenoiser((latents, 1, 1), width=16, depth=1, heads=2),
        },
        "architectures": specifications,
        "reconstruction_error": np.array([0.1, 0.2, 1.0 / 3.0], np.float32),
        "block_errors": (np.array([0.1, 0.1, 1.0 / 7.0], np.float32), np.array([0.1, 0.0, 0.1], np.float32)),
        "observation_std": {"z500": 100.0, "t850": 1.0, "msl": 0.1},
        "provenance": {"train": ["2000", "2001"], "note": "ü"},
    }
    return Package(**(values | changes))


def shaken(package: Package) -> Package:
    """The same with random weights in the denoiser."""
    generator = torch.Generator().manual_seed(3)
    for parameter in package.modules["denoiser"].parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return package


def observed(places: int = 40) -> tuple[Likelihood, Tensor, Tensor, Tensor]:
    """Observations of the normalised state at random numbers of it: likelihood, H, y, R."""
    generator = torch.Generator().manual_seed(5)
    where = torch.randperm(SIZE, generator=generator)[:places]
    H = torch.eye(SIZE)[where]
    y = torch.randn(places, generator=generator)
    R = 0.02 + 0.1 * torch.rand(places, generator=generator)
    return Likelihood(lambda x: x.flatten(1)[:, where], y, R, torch.ones(places)), H, y, R


def analysed(package: Package, background: Tensor, *, correction: bool) -> Tensor:
    """Mean of 16 recentred members of one level, as a state."""
    prior = package.prior(background, correction=correction)
    sampler = Sampler(LatentOptimization(GaussNewton(outer=1, cg=60, halvings=0)), steps=1, block=16)
    samples = sampler(prior, observed()[0], members=16, seed=0)
    return prior.decode(samples.z.mean(0, keepdim=True))[0]
