"""The prior, the steps and the guidances against azula's implementations of the same."""

from itertools import pairwise

import pytest
import torch

from lsda_fast.diffusion import DDIM, Ancestral
from lsda_fast.guidance import DPS, MMPS, ObsFree, Repaint
from lsda_fast.sampler import Sampler


def peer(azula, problem):
    """azula's exact denoiser of the same prior, on the same schedule."""

    class OurSchedule(azula.noise.Schedule):
        def __call__(self, t):
            schedule = problem.prior.schedule
            values = [(schedule.alpha(float(v)), schedule.sigma(float(v))) for v in t.reshape(-1)]
            alpha, sigma = torch.tensor(values, dtype=torch.float64).T
            return alpha.reshape(t.shape), sigma.reshape(t.shape)

    E = problem.prior.covariance
    cov = azula.covariance.FullCovariance(E.vectors, E.variance)
    return azula.denoise.GaussianDenoiser(torch.zeros(50, dtype=torch.float64), cov, OurSchedule())


def adding(eps):
    """``combine`` of a transition with this noise."""
    return lambda terms, coefficients, noise=0.0: sum(c * z for c, z in zip(coefficients, terms)) + noise * eps


def times(t, s):
    return torch.tensor(t, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)


@pytest.fixture
def same_noise(monkeypatch):
    """One noise for both sides: azula draws with ``torch.randn_like``, this package does not."""
    noise = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(torch, "randn_like", lambda v: noise.clone())
    return noise


def test_the_exact_denoiser_is_azulas(azula, problem):
    for t in (0.05, 0.5, 1.0):
        z_t = problem.noisy(t)
        theirs = peer(azula, problem)(z_t, times(t, 0)[0]).mean
        torch.testing.assert_close(
            problem.prior.denoise(z_t, problem.prior.schedule.level(t)), theirs, rtol=1e-7, atol=1e-8
        )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.8), (0.4, 0.1)])
def test_ddim_and_ddpm_steps_are_azulas(azula, problem, same_noise, eta, t, s):
    """azula's eta multiplies the variance of the fresh noise, Song et al.'s its standard deviation."""
    z_t = problem.noisy(t)
    here, there = problem.prior.schedule.level(t), problem.prior.schedule.level(s)
    denoiser = peer(azula, problem)

    def ours(solver):
        return solver.step(
            problem.prior.denoise(z_t, here),
            z_t,
            here,
            there,
            guided=None,
            combine=adding(same_noise),
            memory={},
        )

    theirs = azula.sample.DDIMSampler(denoiser, eta=eta**2).step(z_t, *times(t, s))
    torch.testing.assert_close(ours(DDIM(eta)), theirs, rtol=1e-7, atol=1e-8)
    if eta == 1.0:
        theirs = azula.sample.DDPMSampler(denoiser).step(z_t, *times(t, s))
        torch.testing.assert_close(ours(Ancestral()), theirs, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_whole_runs_of_the_flow_are_azulas(azula, problem, name):
    """The same levels, 1 to 1/8: azula's samplers step to its end, ours to the same level."""
    schedule = problem.prior.schedule
    levels = [schedule.level(i / 8) for i in range(8, 0, -1)]
    theirs = azula.sample.DDIMSampler if name == "ddim" else azula.sample.HeunSampler
    z = problem.noisy(1.0)
    expected = theirs(peer(azula, problem), start=1.0, stop=0.125, steps=7, silent=True, dtype=torch.float64)(z)
    solver = Sampler(ObsFree(), solver=name).solver
    for t, s in pairwise(levels):
        z = solver.step(
            problem.prior.denoise(z, t), z, t, s, guided=problem.prior.denoise, combine=adding(0.0), memory={}
        )
    torch.testing.assert_close(z, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.8), (0.4, 0.1)])
def test_dps_step_is_azulas(azula, problem, same_noise, monkeypatch, t, s):
    """With R = 0.01 I the whitened norm is ten times azula's."""
    z_t = problem.noisy(t)
    here, there = problem.prior.schedule.level(t), problem.prior.schedule.level(s)
    estimate = DPS(norm=True, scale=0.05).guide(z_t, problem.context(t))
    ours = Ancestral().step(estimate.z0, z_t, here, there, guided=None, combine=adding(same_noise), memory={})
    denoiser, y = peer(azula, problem), problem.likelihood.y
    # azula's norm runs over the whole batch: one member at a time.
    for m in range(3):
        sampler = azula.dps.DPSSampler(denoiser, y, lambda z: z @ problem.G.T, zeta=0.5)
        monkeypatch.setattr(torch, "randn_like", lambda v, m=m: same_noise[m : m + 1].clone())
        theirs = sampler.step(z_t[m : m + 1], *times(t, s))
        torch.testing.assert_close((ours + estimate.shift)[m : m + 1], theirs, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("iterations", [1, 4, 40])
def test_mmps_is_azulas(azula, problem, t, iterations):
    """With few iterations too: R is a multiple of I, so that both have the same Krylov space."""
    z_t = problem.noisy(t)
    mmps = azula.mmps.MMPSDenoiser(
        peer(azula, problem),
        problem.likelihood.y,
        lambda z: z @ problem.G.T,
        azula.covariance.DiagonalCovariance(problem.likelihood.variance),
        solver="gmres",
        iterations=iterations,
    )
    theirs = mmps(z_t, times(t, 0)[0]).mean
    ours = MMPS(iterations=iterations).guide(z_t, problem.context(t)).z0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_repaint_is_azulas_in_distribution(azula, toy):
    """Identity decoder and mask. azula pastes alpha_s y + sigma_s noise into z_s, here y goes into z0.

    The marginals at the observed places and the mean everywhere are the same, in any number of steps. azula's
    noise there is fresh at every step, so that less of it reaches the others: a few per cent less variance.
    """
    problem = toy.build("correlated", n=50, P=20, decoder="identity")
    M, steps = 2048, 32
    observed = problem.likelihood.operator.observed
    ours = Sampler(Repaint(), steps=steps, solver="ancestral", block=M)(problem.prior, problem.likelihood, members=M).z
    mask = torch.zeros(50, dtype=torch.bool)
    mask[observed] = True
    values = torch.zeros(50, dtype=torch.float64)
    values[observed] = problem.likelihood.y
    torch.manual_seed(0)
    sampler = azula.repaint.RePaintSampler(
        peer(azula, problem),
        values.expand(M, -1),
        mask,
        iterations=1,
        eta=1.0,
        steps=steps,
        silent=True,
        dtype=torch.float64,
    )
    theirs = sampler(torch.randn(M, 50, dtype=torch.float64))
    assert (ours[:, mask] - problem.likelihood.y).abs().max() < 1e-12
    assert (theirs[:, mask] - problem.likelihood.y).abs().max() < 6e-3
    a, b = ours[:, ~mask], theirs[:, ~mask]
    standard_error = ((a.var(0) + b.var(0)) / M).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() / standard_error).max() < 4.5
    assert 0.97 < a.var(0).sum() / b.var(0).sum() < 1.12
