"""The twins' own parts: the reference finds a known posterior, the models are what their equations say."""

from pathlib import Path

import pytest
import torch

from bench.twins import denoising, kolmogorov, lorenz96, reference
from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.guidance import LatentOptimization
from lsda_fast.prior import Prior
from lsda_fast.sampler import Sampler


def test_the_reference_samples_a_gaussian(tolerances):
    """8 unknowns, an ill-conditioned posterior; thinned draws of many chains."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(12, 8, dtype=torch.float64, generator=generator) * torch.logspace(-1, 1, 8).double()
    y = torch.randn(2, 12, dtype=torch.float64, generator=generator)
    covariance = torch.linalg.inv(A.T @ A)
    mean = y @ A @ covariance
    found = reference.run(lambda x: x @ A.T - y[:, None], mean + 0.1, chains=64, draws=40, warmup=30, leaps=6)
    assert 0.6 < found.acceptance < 1
    for case in range(2):
        tolerances.assert_samples(found.x[case, :, ::4].flatten(0, 1), mean[case], covariance)
    first, second = found.halves
    assert (first.mean(1) - second.mean(1)).abs().max() < 0.2 * covariance.diagonal().max().sqrt()


def test_the_least_error_of_a_clean_estimate_is_the_posterior_variance_of_a_gaussian():
    """Three unknowns of variances 1, 4, 0.25, all seen; the exact estimate has that error, the identity rho^2."""
    s, rhos = torch.tensor([1.0, 4.0, 0.25]).double(), (0.1, 1.0)
    cost = lambda rho: lambda x: torch.cat([x / s.sqrt(), x / rho], dim=-1)  # noqa: E731
    v = torch.randn(20000, 3, 1, generator=torch.Generator().manual_seed(1)) * s.sqrt().float()[:, None]
    wiener = lambda z, level: z * level.alpha * s[:, None] / (level.alpha**2 * s[:, None] + level.sigma**2)  # noqa: E731
    exact, plain = (
        Prior(Schedule(), (3, 1), denoise, lambda z: z) for denoise in (wiener, lambda z, level: z / level.alpha)
    )
    least = list(denoising.achievable(cost, torch.zeros(1, 3).double(), rhos))
    for rho, want, got, raw in zip(rhos, least, denoising.errors(exact, v, rhos), denoising.errors(plain, v, rhos)):
        torch.testing.assert_close(want, s * rho**2 / (s + rho**2))
        torch.testing.assert_close(got, want, rtol=0.05, atol=0)
        torch.testing.assert_close(raw.double(), torch.full_like(s, rho**2), rtol=0.05, atol=0)


def test_lorenz_96_is_its_equation():
    """One step against many small ones; the advection neither makes nor loses energy."""
    x = lorenz96.climate(1, 0)[0]
    slope = (x.roll(-1) - x.roll(2)) * x.roll(1)
    assert abs(float(x @ slope)) < 1e-10
    i = 7
    assert float(slope[i]) == pytest.approx(float((x[i + 1] - x[i - 2]) * x[i - 1]))
    fine = x
    for _ in range(500):
        fine = fine + lorenz96.STEP / 500 * ((fine.roll(-1) - fine.roll(2)) * fine.roll(1) - fine + lorenz96.F)
    assert (lorenz96.step(x) - fine).abs().max() < 0.02


def test_lorenz_96_goes_through_the_same_classes(tmp_path: Path):
    """A few steps of training: the draws of its package are near what was observed."""
    model = lorenz96.package(tmp_path, 300, 2, window=5)
    truth = lorenz96.climate(40, 1)[None, : lorenz96.T]
    y = lorenz96.values(truth)
    (likelihood,) = lorenz96.likelihoods(y, model)
    operator = likelihood.operator
    torch.testing.assert_close(y[0].float(), likelihood.y)
    seen = operator(model.normalize(truth.numpy()[:, :, None, None]).reshape(1, lorenz96.T, 1, lorenz96.N))  # type: ignore[operator]
    torch.testing.assert_close(seen[0], truth.flatten()[operator.index[:, 0]].float(), atol=1e-4, rtol=1e-4)  # type: ignore[attr-defined]
    prior = model.trajectory(lorenz96.T)
    z = Sampler(LatentOptimization(prior_covariance="stationary"))(prior, likelihood, members=4).z
    assert likelihood.residual(prior)(z).square().mean() < 4


def test_kolmogorov_flow_is_its_equation():
    """Advection conserves energy and enstrophy; a laminar flow is driven and damped, not moved."""
    w = torch.fft.irfft2(torch.fft.rfft2(torch.randn(32, 32, dtype=torch.float64)) * kolmogorov.KEPT, s=(32, 32))
    spectral = torch.fft.rfft2(w)
    damping = (kolmogorov.NU * kolmogorov.SQUARE + kolmogorov.DRAG) * spectral
    advection = torch.fft.irfft2(kolmogorov.slope(spectral) - kolmogorov.FORCING + damping, s=(32, 32))
    stream = torch.fft.irfft2(spectral / kolmogorov.SQUARE.clamp_min(1), s=(32, 32))
    assert advection.square().mean() > 0.01
    assert abs(float((w * advection).mean())) < 1e-10
    assert abs(float((stream * advection).mean())) < 1e-10
    laminar = kolmogorov.FORCING / (kolmogorov.NU * kolmogorov.WAVES**2 + kolmogorov.DRAG)
    assert kolmogorov.slope(laminar).abs().max() < 1e-8


def test_kolmogorov_s_averages_are_those_of_blocks():
    operator = kolmogorov.averages()
    x = torch.randn(2, kolmogorov.T, 32, 32)
    want = torch.nn.functional.avg_pool2d(x[:, ::2], kolmogorov.BLOCK).flatten(1)
    torch.testing.assert_close(operator(x), want, atol=1e-6, rtol=1e-5)
