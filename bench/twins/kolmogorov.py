"""Kolmogorov flow: turbulence on a torus from coarse, noisy averages, through the same classes.

    dw/dt + u . grad w = nu lap w - mu w - 4 cos(4 y),   u = rot^-1 w

32 x 32 points, nu = 0.01, mu = 0.1, pseudo-spectral with two thirds of the wavenumbers, Runge-Kutta steps of 0.02,
saved every 0.2, which stands for 6 hours. The posterior of 9 states is sampled from averages over 4 x 4 points at every
second time, with errors of a tenth of the climate's spread. There is no reference of the posterior: the truth judges,
and the averages spread over their points are the baseline. In units of the climate's spread. Seconds are those of the
process, one case. The package's window is the whole of the 9 states.

    python -m bench.twins.kolmogorov --work DIR --output bench/results/kolmogorov.jsonl
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

from bench.twins.rows import Rows
from lsda_fast.diffusion.solvers import Langevin
from lsda_fast.guidance import DPS, GaussNewton, LatentOptimization, Likelihood
from lsda_fast.observations.affine import SparseAffine
from lsda_fast.package import Package
from lsda_fast.sampler import Sampler
from lsda_fast.scores import crps_field
from lsda_fast.training import TrainingConfig, train

N, T, BLOCK, ERROR = 32, 9, 4, 0.1
STEP, SUBSTEPS, NU, DRAG, WAVES = 0.02, 10, 0.01, 0.1, 4

_K = torch.fft.fftfreq(N, 1 / N, dtype=torch.float64)
KY, KX = _K[:, None], _K[None, : N // 2 + 1].abs()
SQUARE = KX**2 + KY**2
KEPT = (KX.abs() < N / 3) & (KY.abs() < N / 3)
_Y = 2 * torch.pi * torch.arange(N).double()[:, None] / N
FORCING = torch.fft.rfft2(-WAVES * torch.cos(WAVES * _Y).expand(N, N))


def slope(w: Tensor) -> Tensor:
    """The vorticity's tendency, both as coefficients (..., 32, 17)."""
    stream = w / SQUARE.clamp_min(1.0)
    grid = lambda a: torch.fft.irfft2(a, s=(N, N))  # noqa: E731
    advection = grid(1j * KY * stream) * grid(1j * KX * w) - grid(1j * KX * stream) * grid(1j * KY * w)
    return -torch.fft.rfft2(advection) * KEPT - (NU * SQUARE + DRAG) * w + FORCING


def step(w: Tensor) -> Tensor:
    """The vorticity (..., 32, 32) one saved time later."""
    w = torch.fft.rfft2(w) * KEPT
    for _ in range(SUBSTEPS):
        a = slope(w)
        b = slope(w + 0.5 * STEP * a)
        c = slope(w + 0.5 * STEP * b)
        w = w + STEP / 6 * (a + 2 * b + 2 * c + slope(w + STEP * c))
    return torch.fft.irfft2(w, s=(N, N))


def climate(runs: int, states: int, seed: int) -> Tensor:
    """Free runs side by side, (runs, states, 32, 32), after 150 states of settling."""
    w = torch.randn(runs, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    kept = []
    for i in range(states + 150):
        w = step(w)
        if i >= 150:
            kept.append(w)
    return torch.stack(kept, dim=1)


def package(work: Path, states: int, steps: int) -> Package:
    """Trained on free runs, or taken from ``work``."""
    folder = work / f"kolmogorov_{states}_{steps}"
    if (folder / "manifest.json").exists():
        return Package.load(folder)
    runs = climate(8, states, 0)
    # A gap of a day lies between one run and the next.
    hours = (np.arange(8)[:, None] * (states + 4) + np.arange(states)) * 6
    data = xr.Dataset(
        {"w": (("time", "latitude", "longitude"), runs.flatten(0, 1).float().numpy(), {"units": "s-1"})},
        {
            "time": pd.Timestamp("2001-01-01") + pd.to_timedelta(hours.ravel(), "h"),
            "latitude": np.linspace(60.0, -60.0, N),
            "longitude": np.arange(N) * 360.0 / N,
        },
    )
    optimization = {"steps": steps, "batch": 16, "lr": 2e-3, "warmup": 30, "validate_every": 100, "ema": 0.99}
    settings = {"hidden": [24, 48], "blocks": 2}
    window = {"kind": "unet", "size": T, "settings": settings, "trajectory": {"rank": 32}, "optimization": optimization}
    config = {"autoencoder": {"kind": "identity"}, "schedule": {"kind": "vp_cosine"}, "window": window}
    return train(data, TrainingConfig(**config), folder, resume=True)


def averages() -> SparseAffine:
    """Averages of the normalised vorticity over blocks at every second time."""
    number = torch.arange(T * N * N).reshape(T, N // BLOCK, BLOCK, N // BLOCK, BLOCK)[::2]
    index = number.permute(0, 1, 3, 2, 4).reshape(-1, BLOCK * BLOCK)
    weight = torch.full(index.shape, 1 / BLOCK**2)
    return SparseAffine(index, weight, torch.zeros(len(index)), (T, N, N))


METHODS: dict[str, tuple[Callable[[], Sampler], bool]] = {
    "linear-Gaussian prior alone, 3 levels": (lambda: Sampler(_optimization()), False),
    "LatentOptimization, 3 levels": (lambda: Sampler(_optimization()), True),
    "LatentOptimization, 16 levels to the clean end": (
        lambda: Sampler(_optimization(), steps=16, start=0.8, stop=0.05),
        True,
    ),
    "DPS, gamma = 1e-2, 64 levels": (lambda: Sampler(DPS(gamma=1e-2, limit=False), steps=64), True),
    "DPS, gamma = 1e-2, 64 levels and 1 correction": (
        lambda: Sampler(DPS(gamma=1e-2, limit=False), steps=64, corrector=Langevin(1, 0.5)),
        True,
    ),
}


def _optimization() -> LatentOptimization:
    return LatentOptimization(GaussNewton(outer=1, cg=20, halvings=0), prior_covariance="stationary")


def main() -> None:
    """Train, sample, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--states", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--members", type=int, default=8)
    arguments = parser.parse_args()
    rows = Rows("kolmogorov")
    tell = rows.tell
    start = time.process_time()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = package(arguments.work, arguments.states, arguments.steps)
    tell(method="training", seconds=time.process_time() - start, **model.provenance["scores"])
    truth = model.normalize(climate(arguments.cases, T, 99)[:, :, None].numpy())[:, :, 0]
    operator = averages()
    noise = torch.randn(arguments.cases, operator.size, generator=torch.Generator().manual_seed(7))
    y = operator(truth) + ERROR * noise
    full = lambda value: torch.full((operator.size,), value)  # noqa: E731
    blocks = y.reshape(arguments.cases, -1, N // BLOCK, N // BLOCK)
    spread_out = blocks.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    tell(method="averages at their own times", rmse=float((spread_out - truth[:, ::2]).square().mean().sqrt()))
    for name, (sampler, correction) in METHODS.items():
        start = time.process_time()
        prior = model.trajectory(T, correction=correction)
        likelihoods = [Likelihood(operator, values, full(ERROR**2), full(1.0)) for values in y]
        samples = [sampler()(prior, each, members=arguments.members) for each in likelihoods]
        drawn = [prior.decode(each.z) for each in samples]
        seconds = (time.process_time() - start) / arguments.cases
        errors = torch.stack(drawn) - truth[:, None]
        tell(
            method=name,
            rmse=float(errors.mean(1).square().mean().sqrt()),
            rmse_at_observed_times=float(errors[:, :, ::2].mean(1).square().mean().sqrt()),
            crps=float(np.mean([crps_field(e.numpy(), samples[0].ensemble) for e in errors])),
            spread=float(errors.var(1).mean().sqrt()),
            seconds=seconds,
        )
    rows.write(arguments.output)


if __name__ == "__main__":
    main()
