"""Training of priors over trajectories: whole windows, the same weights after an interruption, a better score."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from lsda_fast.cli.describe import describe
from lsda_fast.diffusion import Schedule
from lsda_fast.errors import InputError
from lsda_fast.guidance import LatentOptimization, Likelihood
from lsda_fast.models import WINDOWS, IdentityAutoencoder, StationaryTrajectories, build
from lsda_fast.observations.affine import SparseAffine
from lsda_fast.package import Package
from lsda_fast.sampler import Sampler
from lsda_fast.training import train
from lsda_fast.training.config import PRESETS, Optimization, TrainingConfig, load_config
from lsda_fast.training.data import load_states
from lsda_fast.training.loop import Log, fit
from lsda_fast.training.losses import window_loss
from lsda_fast.training.noising import Levels, noised_windows
from lsda_fast.trajectory import Window


def archive(hours: np.ndarray) -> xr.Dataset:
    """Waves that travel, on a globe of 4 x 8 points, at these hours."""
    rng = np.random.default_rng(0)
    row, column = np.deg2rad(90.0 - 45.0 * (np.arange(4) + 0.5))[:, None], np.arange(8) * np.pi / 4
    amplitude, state = np.zeros(3, complex), {}
    for hour in range(0, int(hours.max()) + 1, 6):
        amplitude = np.exp(-0.5j * np.arange(3)) * (0.95 * amplitude + 0.3 * rng.standard_normal((2, 3)).T @ [1, 1j])
        waves = [(a * np.exp(1j * m * column)).real * np.cos((m + 1) * row) for m, a in enumerate(amplitude)]
        state[hour] = np.sum(waves, 0) + 0.05 * rng.standard_normal((4, 8))
    values = np.stack([state[h] for h in hours])[:, None].repeat(2, 1)
    values[:, 1] = values[:, 1] ** 2 + 0.1 * rng.standard_normal(values[:, 1].shape)
    names, dims = {"t850": "K", "olr": "W m-2"}, ("time", "latitude", "longitude")
    data = {
        name: (dims, values[:, i].astype(np.float32), {"units": unit}) for i, (name, unit) in enumerate(names.items())
    }
    times = pd.Timestamp("2001-01-01") + pd.to_timedelta(hours, "h")
    return xr.Dataset(data, {"time": times, "latitude": np.rad2deg(row[:, 0]), "longitude": np.rad2deg(column)})


# Day 20 is missing.
HOURS = np.delete(np.arange(0, 24 * 60, 6), slice(80, 84))
STATES = archive(HOURS)
FEW: dict[str, Any] = {"steps": 6, "batch": 8, "warmup": 2, "validate_every": 3, "ema": 0.9}


def config(**changes: Any) -> TrainingConfig:
    network = {"settings": {"width": 16, "depth": 1, "heads": 2, "dropout": 0.2, "calendar": 4}, "optimization": FEW}
    settings = {"checkpoint_minutes": 1e-9, "window": {"trajectory": {"rank": 2, "lags": 2}, **network}}
    return TrainingConfig(**({"autoencoder": {"kind": "identity"}} | settings | changes))


def test_runs_end_where_a_state_is_missing():
    states = load_states(STATES, config())
    runs = states.runs(states.train)
    assert [(int(run[0]), len(run)) for run in runs] == [(0, 80), (80, len(states.train) - 80)]
    assert all((run.diff() == 1).all() for run in runs)
    daily = load_states(STATES, config(window={"hours": 24.0})).runs(states.train)
    assert len(daily) == 8
    assert sorted(torch.cat(daily).tolist()) == states.train.tolist()


def test_the_tiny_preset_makes_a_package_that_analyses_a_trajectory(tmp_path: Path):
    assert "slams_tiny" in PRESETS
    changes: dict[str, Any] = {"variables": ["t850", "olr"], "modalities": {}, "autoencoder": {"latent_channels": 12}}
    tiny = load_config("slams_tiny", **changes)
    package = train(STATES, tiny, tmp_path / "package")
    assert package.window == Window(5, 6.0)
    assert describe(package)["trajectories"] == "windows of 5 states, 6 h apart"
    assert not {"forecaster", "whitening", "denoiser"} & package.modules.keys()
    scores = package.provenance["scores"]
    assert scores["window_validation"] < scores["window_validation_at_start"]
    T, (C, H, W) = 9, package.layout.shape
    states = load_states(STATES, tiny)
    truth = states.x[states.validation[:T]].reshape(1, T * C, H, W)
    index = torch.randperm(T * C * H * W, generator=torch.Generator().manual_seed(0))[:200, None]
    operator = SparseAffine(index, torch.ones(200, 1), torch.zeros(200), (T * C, H, W))
    likelihood = Likelihood(operator, operator(truth)[0], torch.full((200,), 0.05), torch.ones(200))
    prior = package.trajectory(T, season=states.calendar[states.validation[:T]])
    z = Sampler(LatentOptimization(prior_covariance="stationary"))(prior, likelihood, members=4).z
    error = (prior.decode(z).mean(0) - truth[0]).square().mean()
    assert error < 0.6 * truth.square().mean()


def test_a_run_that_was_interrupted_ends_with_the_same_weights(tmp_path: Path):
    whole = train(STATES, config(), tmp_path / "whole")

    def stop(stage: str, done: int, total: int, values: dict[str, Any]) -> None:
        if (stage, done) == ("window", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(STATES, config(), tmp_path / "parts", progress=stop)
    assert (tmp_path / "parts.work" / "trajectory.pt").exists()
    parts = train(STATES, config(), tmp_path / "parts", resume=True)
    for name, module in whole.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, parts.modules[name].state_dict()[key]), (name, key)
    assert Package.load(tmp_path / "whole").window == whole.window


@pytest.mark.parametrize("kind", ["unet", "transformer"])
@pytest.mark.parametrize("prediction", ["eps", "wiener"])
def test_what_is_learned_is_what_the_sampler_is_given(kind: str, prediction: str):
    """The target, put through the prior of a trajectory that is one window, is the clean window."""
    states = load_states(STATES, config())
    latents, shape = states.x, states.layout.shape
    model = StationaryTrajectories(shape, rank=4, lags=2)
    model.fit(latents, states.runs(states.train))
    network = build(WINDOWS, kind, {"latent_shape": shape, "prediction": prediction})
    network.predict = lambda scaled, log_rho, season=None: target  # type: ignore[method-assign, assignment]
    z, noise = model.standardize(latents[None, :5]), torch.randn(1, 5, *shape)
    schedule, level = Schedule.vp_cosine(), Schedule.vp_cosine().level(0.4)
    levels = Levels(torch.tensor([level.alpha]), torch.tensor([level.sigma]))
    covariance = model.covariance(5) if prediction == "wiener" else None
    target = noised_windows(z, noise, levels, prediction, covariance).target
    modules = {"autoencoder": IdentityAutoencoder(shape), "trajectory": model, "window": network}
    package = Package(
        states.layout,
        states.normalization,
        schedule,
        prediction,
        modules,
        {},
        np.zeros(shape[0]),
        window=Window(5, 6.0),
    )
    got = package.trajectory(5).denoise(level.alpha * z + level.sigma * noise, level)
    torch.testing.assert_close(got, z, atol=1e-4, rtol=1e-4)


def test_a_window_learns_with_the_season_of_its_middle():
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def predict(self, scaled: Tensor, log_rho: Tensor, season: Tensor) -> Tensor:
            seen.append(season)
            return torch.zeros_like(scaled)

    seasons, windows = torch.arange(36.0).reshape(9, 4), torch.arange(9).unfold(0, 5, 1)
    v, cpu = torch.randn(9, 2, 3, 8), torch.device("cpu")
    loss = window_loss(v, seasons, windows, Schedule.vp_cosine(), "eps", None, cpu)
    loss(Spy(), torch.tensor([0, 3]), torch.Generator().manual_seed(0))
    assert torch.equal(seen[0], seasons[[2, 5]])


SETTINGS = {"latent_shape": (1, 1, 4), "size": 3, "prediction": "x0", "width": 32, "depth": 1}


@torch.no_grad()
def test_a_network_finds_the_linear_gaussian_estimate():
    """``x0`` trained on a chain whose best estimate is known comes close to it."""
    torch.manual_seed(0)
    steps = torch.randn(4000, 1, 1, 4)
    v = torch.zeros_like(steps)
    for t in range(1, 4000):
        v[t] = 0.9 * v[t - 1] + 0.19**0.5 * steps[t]
    windows = torch.arange(4000).unfold(0, 3, 1)
    network = build(WINDOWS, "transformer", SETTINGS)
    loss = window_loss(v, torch.zeros(4000, 4), windows, Schedule.vp_cosine(), "x0", None, torch.device("cpu"))
    optimization = Optimization(steps=300, batch=48, warmup=20, lr=3e-3, ema=0.99)
    with torch.enable_grad():
        fit(network, loss, len(windows), optimization, stage="window", seed=0, log=Log(None))
    level = Schedule.vp_cosine().level(0.5)
    z = v[windows[::50]]
    z_t = level.alpha * z + level.sigma * torch.randn_like(z)
    lag = torch.arange(3)
    S = 0.9 ** (lag[:, None] - lag).abs()
    gain = level.alpha * S @ torch.linalg.inv(level.alpha**2 * S + level.sigma**2 * torch.eye(3))
    best = torch.einsum("ts,ns...->nt...", gain, z_t)
    norm = (level.alpha**2 + level.sigma**2) ** -0.5
    got = network.predict(norm * z_t, torch.full((len(z),), np.log(level.rho)))
    error = lambda z0: float((z0 - z).square().mean())  # noqa: E731
    assert error(best) < error(got) < 1.15 * error(best)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": {"size": 4}}, "size 4 is even"),
        ({"window": {}, "forecaster": {"modes": 3}}, "`window` came with forecaster"),
        ({"window": {"size": 41}}, "no 41 states of validation follow one another"),
        ({"window": {"hours": 5.0}}, "no training states lie 5 h apart"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises((InputError, ValueError), match=message):
        train(STATES, config(**changes), tmp_path / "package")
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_the_whole_of_a_configuration_is_one_sentence():
    with pytest.raises(InputError) as caught:
        load_config("slams_tiny", lead_hours=12.0)
    assert str(caught.value).startswith(
        "configuration slams_tiny: Value error, `window` came with lead_hours; accepted"
    )
    assert "modalities" not in str(caught.value)
