"""Travelling waves: latents whose covariance in space and time is known, and a model fitted to them."""

import numpy as np
import torch
from torch import Tensor

from lsda_fast.models import StationaryTrajectories

__all__ = ["SHAPE", "dense", "fitted_waves", "waves"]

# Latents (2, 3, 8): waves that travel east, an autoregression, and noise; the same at every longitude.
SHAPE = (2, 3, 8)


def waves(N: int, seed: int = 0) -> torch.Tensor:
    """Latents (N, 2, 3, 8)."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.zeros(4, dtype=torch.complex128)
    turn = torch.tensor([0.95, 0.9 * np.exp(-0.7j), 0.9 * np.exp(-1.2j), 0.7 * np.exp(0.4j)])
    shape = torch.randn(4, 6, dtype=torch.complex128, generator=generator)
    longitude = torch.exp(2j * torch.pi * torch.arange(4).double()[:, None] * torch.arange(8) / 8)
    z = []
    for _ in range(N):
        a = turn * a + torch.randn(4, dtype=torch.complex128, generator=generator) * (1 - turn.abs() ** 2).sqrt()
        z.append(torch.einsum("w,wn,wx->nx", a, shape, longitude).real)
    noise = 0.3 * torch.randn(N, 6, 8, dtype=torch.float64, generator=generator)
    return (torch.stack(z) + noise + 2.0).reshape(N, *SHAPE)


def fitted_waves() -> tuple[StationaryTrajectories, Tensor]:
    """The model, fitted to two runs of 4,000 states in all, and these states standardised."""
    z = waves(4000)
    model = StationaryTrajectories(SHAPE, rank=2, lags=3).double()
    model.fit(z, [torch.arange(1500), torch.arange(1500, 4000)])
    return model, model.standardize(z)


def dense(covariance, T: int, shape=SHAPE) -> torch.Tensor:
    """S as a matrix, (T n, T n)."""
    n = T * int(np.prod(shape))
    return covariance.apply(torch.eye(n, dtype=torch.float64).reshape(n, T, *shape), lambda s: s).reshape(n, n)
