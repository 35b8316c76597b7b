"""Losses that agree with the sampler, and the errors that an autoencoder is said to have."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsda_fast.diffusion.prediction import to_clean
from lsda_fast.diffusion.schedule import Level, Schedule
from lsda_fast.models import FullWhitening
from lsda_fast.training.autoencoder import reconstruction
from lsda_fast.training.config import DenoiserConfig
from lsda_fast.training.losses import denoiser_loss


class Perfect(nn.Module):
    """The network that knows the one latent there is."""

    leading = 3

    def __init__(self, prediction: str, z: Tensor) -> None:
        super().__init__()
        self.prediction, self.z, self.calls = prediction, z, []  # type: ignore[var-annotated]

    def predict(self, scaled: Tensor, log_rho: Tensor, z_b: Tensor, calendar: Tensor) -> Tensor:
        rho = log_rho.exp().reshape(-1, 1, 1, 1)
        alpha, sigma = (1 + rho**2).rsqrt(), rho * (1 + rho**2).rsqrt()
        z_t = scaled / alpha if self.prediction == "wiener" else scaled
        eps = (z_t - alpha * self.z) / sigma
        F = {
            "wiener": (self.z - alpha * z_t) / sigma,
            "x0": self.z.expand_as(z_t),
            "eps": eps,
            "v": alpha * eps - sigma * self.z,
            "score": -eps / sigma,
        }[self.prediction]
        self.calls.append((F, z_t, alpha, sigma, calendar))
        return F


@pytest.mark.parametrize("prediction", ["wiener", "x0", "eps", "v", "score"])
def test_the_network_that_is_right_for_the_sampler_has_no_loss(prediction: str) -> None:
    z = torch.tensor([0.5, -1.0, 2.0]).reshape(1, 3, 1, 1).double()
    network = Perfect(prediction, z)
    seasons = torch.rand(20, 4)
    loss = denoiser_loss(
        z.expand(20, -1, -1, -1),
        z.expand(20, -1, -1, -1),
        seasons,
        Schedule.vp_linear(),  # alpha^2 + sigma^2 = 1
        DenoiserConfig(prediction=prediction),
        FullWhitening((3, 1, 1)),
        torch.device("cpu"),
    )
    indices = torch.arange(0, 20, 2)
    assert float(loss(network, indices, torch.Generator().manual_seed(0))) < 1e-4
    ((F, z_t, alpha, sigma, calendar),) = network.calls
    assert torch.equal(calendar, seasons[indices])
    for i in range(10):
        level = Level(0, 0.0, float(alpha[i]), float(sigma[i]))
        torch.testing.assert_close(to_clean(prediction, F[i], z_t[i], level), z[0], rtol=1e-4, atol=1e-4)


def test_no_correction_costs_one_for_a_gaussian_latent() -> None:
    class Nothing(nn.Module):
        leading = 3

        def predict(self, scaled: Tensor, *_: Tensor) -> Tensor:
            return torch.zeros_like(scaled)

    z = torch.randn(4000, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    loss = denoiser_loss(
        z, z, torch.zeros(4000, 4), Schedule.edm(), DenoiserConfig(), FullWhitening((3, 1, 1)), torch.device("cpu")
    )
    value = float(loss(Nothing(), torch.arange(4000), torch.Generator().manual_seed(1)))
    assert value == pytest.approx(1.0, abs=5 * (2 / 12000) ** 0.5)


class Lossy(nn.Module):
    """An autoencoder that adds known errors."""

    def __init__(self, errors: Tensor) -> None:
        super().__init__()
        self.errors, self.shape = errors, tuple(errors.shape[1:])

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, x: Tensor) -> Tensor:
        return x.nan_to_num() + self.errors


def test_reconstruction_errors_of_means() -> None:
    """White ones, some that are the same everywhere, and white ones of a state that is known in few whole blocks."""
    errors = torch.randn(64, 3, 17, 32, generator=torch.Generator().manual_seed(0))
    errors[:, 1] = errors[:, 1, :1, :1]
    x = torch.zeros_like(errors)
    x[:, 2, ::4, ::4] = torch.nan
    states: Any = SimpleNamespace(x=x, validation=np.arange(len(x)), modalities=())
    found, scores = reconstruction(Lossy(errors), states, torch.device("cpu"))
    white = 1.0 / np.array([1, 2, 4, 8])
    np.testing.assert_allclose(found[:, 0], white, rtol=0.05)
    np.testing.assert_allclose(found[:, 1], found[0, 1], rtol=1e-5)
    np.testing.assert_allclose(found[:, 2], white[[0, 1, 1, 1]], rtol=0.05)
    assert scores["reconstruction_rmse"] == pytest.approx(np.sqrt(np.mean(found[0] ** 2)))
