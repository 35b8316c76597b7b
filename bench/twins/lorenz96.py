"""Lorenz-96: a trajectory's posterior from sparse noisy observations, against a long reference of it.

    dx_i/dt = (x_i+1 - x_i-2) x_i-1 - x_i + F,   40 variables on a circle, F = 8     (Lorenz 1996)

one Runge-Kutta step of 0.05 from one saved state to the next, and a kick of standard deviation 0.3, so that
trajectories have a density. 0.05 stands for 6 hours. A free run trains packages with ``lsda_fast.training`` (identity
autoencoder), one per window of states; their prior over 9 states is conditioned on every second variable at every
second time, with errors of 0.5 (the climate spreads by 3.7). The reference is Hamiltonian Monte Carlo
(``bench.twins.reference``) over 19 states, of which the first 10 come before the window and begin from the climate's
Gaussian. Errors of the mean are in units of the reference's spread, spreads are over the reference's, CRPS is against
the truth. Seconds are those of the process, one case. The prior alone is judged by ``bench.twins.denoising``.

    python -m bench.twins.lorenz96 --work DIR --output bench/results/lorenz96.jsonl
"""

import argparse
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from bench.twins import denoising, reference
from bench.twins.rows import Rows
from lsda_fast.diffusion.solvers import Langevin
from lsda_fast.guidance import DPS, MMPS, GaussNewton, Guidance, LatentOptimization, Likelihood
from lsda_fast.observations.affine import SparseAffine
from lsda_fast.package import Package
from lsda_fast.sampler import Sampler
from lsda_fast.scores import crps_field
from lsda_fast.training import TrainingConfig, train

N, F, STEP, T, BEFORE = 40, 8.0, 0.05, 9, 10
KICK, ERROR = 0.3, 0.5
SEEN = torch.arange(T * N).reshape(T, N)[::2, ::2].flatten()
RATIOS = (0.06, 0.1, 0.2, 0.3, 0.5)  # of noise to signal, where the prior is judged and Laplace's approximation good


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


@cache
def _whitening() -> tuple[Tensor, Tensor]:
    past = climate(20000, 5)
    return past.mean(0), torch.linalg.inv(torch.linalg.cholesky(torch.cov(past.T)))


def residual(y: Tensor, seen: Tensor, error: float = ERROR) -> Callable[[Tensor], Tensor]:
    """x (cases, chains, 19 x 40) -> what it costs: start, kicks, and observations y (cases, P) at ``seen``."""
    center, whiten = _whitening()

    def of(x: Tensor) -> Tensor:
        x = x.unflatten(-1, (BEFORE + T, N))
        start = (x[..., 0, :] - center) @ whiten.T
        kicks = (x[..., 1:, :] - step(x[..., :-1, :])) / KICK
        return torch.cat([start, kicks.flatten(-2), (_window(x)[..., seen] - y[:, None]) / error], dim=-1)

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


def package(work: Path, states: int, steps: int, window: int) -> Package:
    """Trained on a free run, or taken from ``work``."""
    folder = work / f"package_{states}_{steps}_{window}"
    if (folder / "manifest.json").exists():
        return Package.load(folder)
    optimization = {"steps": steps, "batch": 64, "lr": 2e-3, "warmup": 50, "validate_every": 200, "ema": 0.995}
    config = {
        "autoencoder": {"kind": "identity"},
        "schedule": {"kind": "vp_cosine"},
        "window": {
            "kind": "unet",
            "size": window,
            "settings": {"hidden": [64], "blocks": 3, "kernel": 5},
            "trajectory": {"rank": 1, "lags": 8},
            "optimization": optimization,
        },
    }
    return train(dataset(climate(states, 0)), TrainingConfig(**config), folder, resume=True)


Way = tuple[Callable[[], Sampler], bool]


def _optimization(covariance: str) -> LatentOptimization:
    return LatentOptimization(GaussNewton(outer=1, cg=12, halvings=0), prior_covariance=covariance)


def _to_the_end(covariance: str, steps: int) -> Callable[[], Sampler]:
    return lambda: Sampler(_optimization(covariance), steps=steps, start=0.95, stop=0.03, block=16)


def _through(guidance: Guidance, steps: int, rounds: int = 0) -> Callable[[], Sampler]:
    return lambda: Sampler(guidance, steps=steps, corrector=Langevin(rounds, 0.5) if rounds else None, block=16)


_DPS = DPS(gamma=1e-2, limit=False)

METHODS: dict[str, Way] = {
    "linear-Gaussian prior alone, 3 levels": (lambda: Sampler(_optimization("stationary"), block=16), False),
    "LatentOptimization, stationary, 3 levels": (lambda: Sampler(_optimization("stationary"), block=16), True),
    "LatentOptimization, stationary, 64 levels to the clean end": (_to_the_end("stationary", 64), True),
    "LatentOptimization, tweedie, 16 levels to the clean end": (_to_the_end("tweedie", 16), True),
    "DPS, gamma = 1e-2, 128 levels": (_through(_DPS, 128), True),
    "DPS, gamma = 1e-2, 128 levels and 1 correction": (_through(_DPS, 128, 1), True),
    "DPS, gamma = 1e-2, 128 levels and 3 corrections": (_through(_DPS, 128, 3), True),
    "MMPS, 6 iterations, 64 levels": (_through(MMPS(iterations=6), 64), True),
    "MMPS, 6 iterations, 64 levels and 1 correction": (_through(MMPS(iterations=6), 64, 1), True),
}


def values(truth: Tensor) -> Tensor:
    """What is observed (cases, P) of states (cases, T, 40)."""
    noise = torch.randn(len(truth), len(SEEN), dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return truth.flatten(1)[:, SEEN] + ERROR * noise


def likelihoods(y: Tensor, model: Package) -> list[Likelihood]:
    """Of values y (cases, P), in the model's units."""
    mean, std = float(model.normalization.mean[0]), float(model.normalization.std[0])
    full = lambda value: torch.full((len(SEEN),), value)  # noqa: E731
    operator = SparseAffine(SEEN[:, None], full(std)[:, None], full(mean), (T, 1, N))
    return [Likelihood(operator, each.float(), full(ERROR**2), full(std)) for each in y]


def judge(samples: Tensor, truth: Tensor, mean: Tensor, std: Tensor, kind: str = "independent") -> dict[str, float]:
    """Samples (cases, M, T, 40), of a kind (``scores.ENSEMBLES``), against moments and truth (cases, T, 40)."""
    samples = samples.double()
    fair = crps_field((samples - truth[:, None]).transpose(0, 1).numpy(), kind)
    return {
        "mean_error": float(((samples.mean(1) - mean) / std).square().mean().sqrt()),
        "spread_ratio": float((samples.var(1).mean() / std.square().mean()).sqrt()),
        "crps": float(np.mean(fair)),
        "rmse": float((samples.mean(1) - truth).square().mean().sqrt()),
    }


def posterior(work: Path, cases: int, draws: int, tell: Callable[..., None]) -> list[Tensor]:
    """Truth, mean, standard deviation (cases, T, 40), and draws (cases, draws, T, 40), or taken from ``work``."""
    free = climate(cases * 100, 99)
    truth = torch.stack([free[100 * i :][: BEFORE + T] for i in range(cases)])
    near, truth = truth.flatten(1), truth[:, BEFORE:]
    file = work / f"reference_{cases}_{draws}.pt"
    if not file.exists():
        start = time.process_time()
        found = reference.run(residual(values(truth), SEEN), near, draws=draws)
        torch.save([found.x, found.acceptance, time.process_time() - start], file)
    x, acceptance, seconds = torch.load(file)
    first, second = (_window(part).flatten(1, 2).unflatten(-1, (T, N)) for part in x.unflatten(-1, (-1, N)).chunk(2, 1))
    both = torch.cat([first, second], dim=1)
    std = both.std(1)
    tell(
        method="reference",
        seconds=seconds,
        acceptance=acceptance,
        draws=both.shape[1],
        halves_mean_difference=float(((first.mean(1) - second.mean(1)) / std).square().mean().sqrt()),
        halves_spread_ratio=float((first.var(1).mean() / second.var(1).mean()).sqrt()),
        spread=float(std.square().mean().sqrt()),
    )
    return [truth, both.mean(1), std, both]


def _prior(model: Package, tell: Callable[..., None], cases: int = 200) -> None:
    """The errors of its clean estimate, of the linear-Gaussian one, and the least there are, by level."""
    free = climate(20 * cases + BEFORE + T, 98)
    x = torch.stack([free[20 * i :][: BEFORE + T] for i in range(cases)])
    std = float(model.normalization.std[0])
    learned, linear = (model.trajectory(T, correction=correction, chunk=10**6) for correction in (True, False))
    v = learned.encode(model.normalize(x[:, BEFORE:, None, None].numpy()).reshape(cases, T, 1, N))  # type: ignore[misc]
    all_seen = lambda rho: residual(_window(x[:8]), torch.arange(T * N), rho * std)  # noqa: E731
    best = denoising.achievable(all_seen, x[:8].flatten(1), RATIOS)
    found = zip(RATIOS, best, denoising.errors(learned, v, RATIOS), denoising.errors(linear, v, RATIOS))
    for rho, all_times, error, base in found:
        least = float(all_times.unflatten(-1, (-1, N))[BEFORE:].mean()) / std**2
        tell(method="clean estimate", rho=rho, learned=float(error.mean()), linear=float(base.mean()), least=least)


def main() -> None:
    """Train, judge the priors, sample, judge the samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--states", type=int, default=20000)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--windows", type=int, nargs="+", default=[9])
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    rows = Rows("lorenz96")
    arguments.work.mkdir(parents=True, exist_ok=True)
    truth, mean, std, draws = posterior(arguments.work, arguments.cases, arguments.draws, rows.tell)
    y = values(truth)
    some = draws[:, :: draws.shape[1] // arguments.members][:, : arguments.members]
    rows.tell(method="reference, as many draws", **judge(some, truth, mean, std))
    for window in arguments.windows:
        tell = partial(rows.tell, window=window, steps=arguments.steps)
        start = time.process_time()
        model = package(arguments.work, arguments.states, arguments.steps, window)
        tell(method="training, or reading", seconds=time.process_time() - start, **model.provenance["scores"])
        _prior(model, tell)
        for name in arguments.methods:
            make, correction = METHODS[name]
            start = time.process_time()
            prior = model.trajectory(T, correction=correction, chunk=10**6)
            drawn = [make()(prior, each, members=arguments.members) for each in likelihoods(y, model)]
            samples = torch.stack([torch.from_numpy(model.denormalize(prior.decode(s.z)[:, :, None])) for s in drawn])
            row: dict[str, Any] = judge(samples.flatten(3), truth, mean, std, drawn[0].ensemble)
            row |= {"evaluations": dict(drawn[0].evaluations)}
            tell(method=name, **row, seconds=(time.process_time() - start) / arguments.cases)
    rows.write(arguments.output)


if __name__ == "__main__":
    main()
