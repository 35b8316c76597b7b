"""Lorenz-96: a trajectory's posterior from sparse noisy observations, against a long reference of it.

    dx_i/dt = (x_i+1 - x_i-2) x_i-1 - x_i + F,   40 variables on a circle, F = 8     (Lorenz 1996)

one Runge-Kutta step of 0.05 from one saved state to the next, and a kick of standard deviation 0.3, so that
trajectories have a density. 0.05 stands for 6 hours. A free run trains a package with ``lsda_fast.training`` (identity
autoencoder, windows of 5 states); its prior over 9 states is conditioned on every second variable at every second time,
with errors of 0.5 (the climate spreads by 3.7). The reference is Hamiltonian Monte Carlo (``bench.twins.reference``)
over 19 states, of which the first 10 come before the window and begin from the climate's Gaussian. Errors of the mean
are in units of the reference's spread, variances are over the reference's, CRPS is against the truth.

    python -m bench.twins.lorenz96 --work DIR --output bench/results/lorenz96.jsonl
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from bench.twins import reference
from bench.twins.rows import Rows
from lsda_fast.diffusion.solvers import Langevin
from lsda_fast.guidance import DPS, MMPS, GaussNewton, LatentOptimization, Likelihood
from lsda_fast.observations.affine import SparseAffine
from lsda_fast.package import Package
from lsda_fast.sampler import Sampler
from lsda_fast.scores import crps_field
from lsda_fast.training import TrainingConfig, train

N, F, STEP, T, BEFORE = 40, 8.0, 0.05, 9, 10
KICK, ERROR = 0.3, 0.5


def step(x: Tensor) -> Tensor:
    """The state (..., 40) one saved time later: one Runge-Kutta step of fourth order."""
    slope = lambda x: (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + F  # noqa: E731
    a = slope(x)
    b = slope(x + 0.5 * STEP * a)
    c = slope(x + 0.5 * STEP * b)
    return x + STEP / 6 * (a + 2 * b + 2 * c + slope(x + STEP * c))


def climate(states: int, seed: int) -> Tensor:
    """A free run, (states, 40), after 500 steps of settling."""
    generator = torch.Generator().manual_seed(seed)
    kicks = torch.randn(states + 500, N, dtype=torch.float64, generator=generator)
    x, run = F + kicks[0], []
    for kick in kicks:
        x = step(x) + KICK * kick
        run.append(x)
    return torch.stack(run[500:])


def residual(y: Tensor, seen: Tensor) -> Callable[[Tensor], Tensor]:
    """x (cases, chains, 19 x 40) -> what it costs: start, kicks, and observations y (cases, P) at ``seen``."""
    past = climate(20000, 5)
    center, whiten = past.mean(0), torch.linalg.inv(torch.linalg.cholesky(torch.cov(past.T)))

    def of(x: Tensor) -> Tensor:
        x = x.unflatten(-1, (BEFORE + T, N))
        start = (x[..., 0, :] - center) @ whiten.T
        kicks = (x[..., 1:, :] - step(x[..., :-1, :])) / KICK
        return torch.cat([start, kicks.flatten(-2), (_window(x)[..., seen] - y[:, None]) / ERROR], dim=-1)

    return of


def _window(x: Tensor) -> Tensor:
    """The window's numbers of trajectories (..., 19, 40)."""
    return x[..., BEFORE:, :].flatten(-2)


def dataset(states: Tensor) -> xr.Dataset:
    """The states as fields on a circle of latitude, six-hourly."""
    times = pd.date_range("2001-01-01", periods=len(states), freq="6h")
    values = states.float().numpy()[:, None, :]
    coords = {"time": times, "latitude": [0.0], "longitude": np.arange(N) * 360.0 / N}
    return xr.Dataset({"x": (("time", "latitude", "longitude"), values, {"units": "1"})}, coords)


def package(work: Path, states: int, steps: int) -> Package:
    """Trained on a free run, or taken from ``work``."""
    folder = work / f"package_{states}_{steps}"
    if (folder / "manifest.json").exists():
        return Package.load(folder)
    optimization = {"steps": steps, "batch": 64, "lr": 2e-3, "warmup": 50, "validate_every": 200, "ema": 0.995}
    config = {
        "autoencoder": {"kind": "identity"},
        "schedule": {"kind": "vp_cosine"},
        "window": {
            "kind": "unet",
            "settings": {"hidden": [48, 96], "blocks": 2},
            "trajectory": {"rank": 1, "lags": 8},
            "optimization": optimization,
        },
    }
    return train(dataset(climate(states, 0)), TrainingConfig(**config), folder, resume=True)


Way = tuple[Callable[[], Sampler], bool]

METHODS: dict[str, Way] = {
    "linear-Gaussian prior alone, 3 levels": (lambda: Sampler(_optimization(), block=16), False),
    "LatentOptimization, 3 levels": (lambda: Sampler(_optimization(), block=16), True),
    "LatentOptimization, 64 levels to the clean end": (
        lambda: Sampler(_optimization(), steps=64, start=0.8, stop=0.03, block=16),
        True,
    ),
    "DPS, gamma = 1e-2, 128 levels": (lambda: Sampler(_dps(), steps=128, block=16), True),
    "DPS, gamma = 1e-2, 128 levels and 1 correction": (
        lambda: Sampler(_dps(), steps=128, corrector=Langevin(1, 0.5), block=16),
        True,
    ),
    "MMPS, 64 levels": (lambda: Sampler(MMPS(iterations=6), steps=64, block=16), True),
}


def _dps() -> DPS:
    return DPS(gamma=1e-2, limit=False)


def _optimization() -> LatentOptimization:
    return LatentOptimization(GaussNewton(outer=1, cg=12, halvings=0), prior_covariance="stationary")


def observe(truth: Tensor, model: Package) -> tuple[Tensor, list[Likelihood]]:
    """Values y (cases, P) of states (cases, T, 40), and the likelihoods."""
    number = torch.arange(T * N).reshape(T, N)[::2, ::2].reshape(-1, 1)
    noise = torch.randn(len(truth), len(number), dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    y = truth.flatten(1)[:, number[:, 0]] + ERROR * noise
    mean, std = float(model.normalization.mean[0]), float(model.normalization.std[0])
    P = len(number)
    operator = SparseAffine(number, torch.full((P, 1), std), torch.full((P,), mean), (T, 1, N))
    full = lambda value: torch.full((P,), value)  # noqa: E731
    return y, [Likelihood(operator, values.float(), full(ERROR**2), full(std)) for values in y]


def judge(samples: Tensor, truth: Tensor, mean: Tensor, std: Tensor) -> dict[str, float]:
    """Samples (cases, M, T, 40) against the reference's moments and the truth (cases, T, 40)."""
    samples = samples.double()
    fair = crps_field((samples - truth[:, None]).transpose(0, 1).numpy())
    return {
        "mean_error": float(((samples.mean(1) - mean) / std).square().mean().sqrt()),
        "variance_ratio": float(samples.var(1).mean() / std.square().mean()),
        "crps": float(np.mean(fair)),
        "rmse": float((samples.mean(1) - truth).square().mean().sqrt()),
    }


def _reference(cost: Callable[[Tensor], Tensor], near: Tensor, draws: int, tell: Callable[..., None]) -> list[Tensor]:
    """Mean, standard deviation (cases, T, 40) and draws (cases, draws, T, 40) of the posterior."""
    start = time.perf_counter()
    found = reference.run(cost, near, draws=draws)
    first, second = (_window(x.unflatten(-1, (BEFORE + T, N))).unflatten(-1, (T, N)) for x in found.halves)
    both = torch.cat([first, second], dim=1)
    std = both.std(1)
    tell(
        method="reference",
        seconds=time.perf_counter() - start,
        acceptance=found.acceptance,
        draws=both.shape[1],
        halves_mean_difference=float(((first.mean(1) - second.mean(1)) / std).square().mean().sqrt()),
        halves_variance_ratio=float(first.var(1).mean() / second.var(1).mean()),
        spread=float(std.square().mean().sqrt()),
    )
    return [both.mean(1), std, both]


def main() -> None:
    """Train, sample, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--states", type=int, default=20000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--draws", type=int, default=300)
    arguments = parser.parse_args()
    rows = Rows("lorenz96")
    tell = rows.tell
    start = time.perf_counter()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = package(arguments.work, arguments.states, arguments.steps)
    tell(method="training, or reading", seconds=time.perf_counter() - start, **model.provenance["scores"])
    free = climate(arguments.cases * 100, 99)
    truth = torch.stack([free[100 * i :][: BEFORE + T] for i in range(arguments.cases)])
    near, truth = truth.flatten(1), truth[:, BEFORE:]
    y, likelihoods = observe(truth, model)
    mean, std, draws = _reference(residual(y, likelihoods[0].operator.index[:, 0]), near, arguments.draws, tell)  # type: ignore[attr-defined]
    every = max(1, draws.shape[1] // arguments.members)
    tell(method="reference, as many draws", **judge(draws[:, ::every][:, : arguments.members], truth, mean, std))
    for name in arguments.methods or METHODS:
        sampler, correction = METHODS[name]
        start = time.perf_counter()
        prior = model.trajectory(T, correction=correction, chunk=10**6)
        drawn = [sampler()(prior, likelihood, members=arguments.members) for likelihood in likelihoods]
        samples = torch.stack([torch.from_numpy(model.denormalize(prior.decode(s.z)[:, :, None])) for s in drawn])
        seconds = (time.perf_counter() - start) / arguments.cases
        tell(method=name, **judge(samples.flatten(3), truth, mean, std), seconds=seconds)
    rows.write(arguments.output)


if __name__ == "__main__":
    main()
