"""Losses that agree with the sampler, and the errors that an autoencoder is said to have."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsda_fast.diffusion.prediction import TRAINED, to_clean
from lsda_fast.diffusion.schedule import Level, Schedule
from lsda_fast.models import FullWhitening
from lsda_fast.training.autoencoder import reconstruction
from lsda_fast.training.config import AutoencoderConfig, DenoiserConfig
from lsda_fast.training.losses import autoencoder_loss, denoiser_loss, forecaster_loss, squared_error
from lsda_fast.training.noising import draw_levels


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


def test_levels_of_wiener_are_even_in_the_logarithm_of_the_ratios_that_networks_are_trained_at() -> None:
    alpha, sigma = draw_levels(Schedule.vp_cosine(), "wiener", 20000, torch.Generator().manual_seed(0))
    low, high = np.log(TRAINED)
    share = ((sigma / alpha).log().sort().values - low) / (high - low)
    np.testing.assert_allclose(share, np.linspace(0, 1, 20000), atol=0.02)
    assert share.min() > -1e-5
    assert share.max() < 1 + 1e-5


class Nothing(nn.Module):
    """No correction at all; it keeps what it was told of the background."""

    leading = 3

    def __init__(self) -> None:
        super().__init__()
        self.backgrounds: list[Tensor] = []

    def predict(self, scaled: Tensor, log_rho: Tensor, z_b: Tensor, calendar: Tensor) -> Tensor:
        self.backgrounds.append(z_b)
        return torch.zeros_like(scaled)


def test_no_correction_costs_one_for_a_gaussian_latent() -> None:
    z = torch.randn(4000, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    loss = denoiser_loss(
        z, z, torch.zeros(4000, 4), Schedule.edm(), DenoiserConfig(), FullWhitening((3, 1, 1)), torch.device("cpu")
    )
    value = float(loss(Nothing(), torch.arange(4000), torch.Generator().manual_seed(1)))
    assert value == pytest.approx(1.0, abs=5 * (2 / 12000) ** 0.5)


@pytest.mark.parametrize(("power", "weight"), [(0.0, [1.0, 1.0, 1.0]), (0.5, [2.0, 1.0, 0.5])])
def test_errors_count_by_a_power_of_their_variance(power: float, weight: list[float]) -> None:
    whitening = FullWhitening((3, 1, 1))
    whitening.variance.copy_(torch.tensor([4.0, 1.0, 0.25]))
    config = DenoiserConfig(prediction="eps", spread_weight=power)
    z = torch.zeros(6, 3, 1, 1)
    loss = denoiser_loss(z, z, torch.zeros(6, 4), Schedule.edm(), config, whitening, torch.device("cpu"))
    value = float(loss(Nothing(), torch.arange(6), torch.Generator().manual_seed(1)))
    generator = torch.Generator().manual_seed(1)
    torch.rand(6, generator=generator)  # the levels
    noise = torch.randn(6, 3, 1, 1, generator=generator).square().mean((0, 2, 3))
    assert value == pytest.approx(float((torch.tensor(weight) * noise).sum() / sum(weight)), rel=1e-5)


def test_backgrounds_that_are_learned_from_have_the_noise_of_the_condition() -> None:
    network, z = Nothing(), torch.zeros(4000, 3, 1, 1)
    config, whitening = DenoiserConfig(condition_noise=0.3), FullWhitening((3, 1, 1))
    loss = denoiser_loss(z, z, torch.zeros(4000, 4), Schedule.edm(), config, whitening, torch.device("cpu"))
    loss(network, torch.arange(4000), torch.Generator().manual_seed(0))
    assert float(network.backgrounds[0].std()) == pytest.approx(0.3, rel=0.05)


def test_a_forecaster_learns_from_states_that_are_perturbed_as_backgrounds_are() -> None:
    """From zeros, perturbed by half of the others, to those: 1 of the truth and 1/4 of the perturbation."""

    class Same(nn.Module):
        def forward(self, x: Tensor, season: Tensor) -> Tensor:
            return x

    x = torch.randn(400, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:200] = 0
    states: Any = SimpleNamespace(x=x, before=np.arange(400) - 200, calendar=torch.zeros(400, 4))
    loss = forecaster_loss(states, np.arange(200, 400), 0.5, torch.device("cpu"))
    value = float(loss(Same(), torch.arange(200), torch.Generator().manual_seed(0)))
    assert value == pytest.approx(1.25, rel=0.06)


def test_errors_of_fields_are_of_what_is_known_in_their_units() -> None:
    module: Any = SimpleNamespace(units=torch.tensor([1.0, 2.0])[:, None, None])
    fields = torch.tensor([[1.0, torch.nan], [2.0, 4.0]])[:, :, None, None]
    assert float(squared_error(module, torch.zeros(2, 2, 1, 1), fields)) == pytest.approx((1 + 4 + 4) / 3)


def test_latents_are_drawn_with_the_deviation_of_their_moments() -> None:
    seen: list[Tensor] = []

    class Moments(nn.Module):
        def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros(len(x), 50), torch.full((len(x), 50), float(np.log(4.0)))

        def decode(self, z: Tensor) -> Tensor:
            seen.append(z)
            return z[:, :1, None, None]

    config = AutoencoderConfig(kl=1.0)
    loss = autoencoder_loss(torch.zeros(100, 1, 1, 1), np.arange(100), config, torch.device("cpu"))
    loss(Moments(), torch.arange(100), torch.Generator().manual_seed(0))
    assert float(seen[0].std()) == pytest.approx(2.0, rel=0.05)


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
