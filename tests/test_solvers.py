"""Transitions on Gaussian priors, where the exact flow and the exact marginals are known.

For z ~ N(0, s) the probability flow is y_t = z_t / alpha_t, y_s = y_t sqrt((s + rho_s^2) / (s + rho_t^2)).
"""

import math
from itertools import pairwise

import pytest
import torch

from lsda_fast.diffusion import DDIM, Ancestral, DPMpp2M, Heun, Langevin, Level, Renoise, Schedule
from lsda_fast.diffusion.prediction import PREDICTIONS, check_prediction, to_clean, wiener
from lsda_fast.diffusion.solvers import SOLVERS, get_solver
from lsda_fast.errors import InputError
from lsda_fast.guidance import Likelihood, ObsFree
from lsda_fast.prior import Prior
from lsda_fast.sampler import CLEAN, Sampler

VARIANCE = torch.tensor([4.0, 1.0, 0.3, 0.1], dtype=torch.float64)
SCHEDULES = [Schedule.vp_cosine(), Schedule.vp_linear(), Schedule.edm()]
IDS = [schedule.kind for schedule in SCHEDULES]


def clean(z_t, t, s=VARIANCE):
    """E[z | z_t] for z ~ N(0, s)."""
    return z_t * (t.alpha * s / (t.alpha**2 * s + t.sigma**2))


def adding(eps):
    """``combine`` with this noise."""
    return lambda terms, coefficients, noise=0.0: sum(c * z for c, z in zip(coefficients, terms)) + noise * eps


def run(solver, z, levels):
    """z at the last of the levels."""
    memory = {}
    for t, s in pairwise(levels):
        z = solver.step(clean(z, t), z, t, s, guided=clean, combine=adding(0.0), memory=memory)
    return z


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
@pytest.mark.parametrize(("solver", "order"), [(DDIM(), 1), (DPMpp2M(), 2), (Heun(), 2)], ids=["ddim", "2m", "heun"])
def test_flow_solvers_converge_at_their_order(schedule, solver, order):
    start, stop = schedule.time(5.0), schedule.time(0.2)
    z = torch.ones(1, 4, dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        levels = schedule.levels(steps, start=start, stop=stop, spacing="log_rho")
        t, s = levels[0], levels[-1]
        exact = s.alpha / t.alpha * torch.sqrt((VARIANCE + s.rho**2) / (VARIANCE + t.rho**2)) * z
        errors.append((run(solver, z, levels) / exact - 1).abs().max().item())
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert slopes == pytest.approx([order] * 2, abs=0.12), f"{errors}"
    assert errors[-1] < {1: 2e-2, 2: 5e-4}[order]


def test_multistep_between_uneven_levels_is_the_published_step():
    """Lu et al. 2022, algorithm 2: D = (1 + 1/(2 r)) z0 - 1/(2 r) z0' and r = h' / h, steps h of log(alpha / sigma)."""
    q, t, s = (Schedule.vp_linear().level(time) for time in (0.9, 0.6, 0.5))
    earlier, now, later = (math.log(level.alpha / level.sigma) for level in (q, t, s))
    h, r = later - now, (now - earlier) / (later - now)
    assert r > 1.5
    before, z0, z_t = torch.randn(3, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    memory = {}
    for estimate, start, stop in ((before, q, t), (z0, t, s)):
        z_s = DPMpp2M().step(estimate, z_t, start, stop, guided=clean, combine=adding(0.0), memory=memory)
    D = (1 + 0.5 / r) * z0 - 0.5 / r * before
    torch.testing.assert_close(z_s, s.sigma / t.sigma * z_t - s.alpha * math.expm1(-h) * D)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)])
def test_whole_runs_converge_to_the_flow_from_noise_to_clean(name, order):
    """VP-cosine has rho^2 ~ t^2 near 0: the last jump, from t = 1/steps to clean, is of second order."""
    prior = Prior(Schedule.vp_cosine(), (4,), clean, lambda z: z, dtype=torch.float64)
    empty = torch.zeros(0, dtype=torch.float64)
    likelihood = Likelihood(lambda x: x[:, :0], empty, empty, empty)
    errors = []
    for steps in (200, 400, 800):
        first = []
        sampler = Sampler(ObsFree(), solver=name, steps=steps, block=2)
        z = sampler(prior, likelihood, members=2, on_step=lambda step, first=first: first.append(step)).z
        t = first[0].level
        exact = first[0].z_t / t.alpha * torch.sqrt(VARIANCE / (VARIANCE + t.rho**2))
        errors.append((z / exact - 1).abs().max().item())
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert min(slopes) > order - 0.45, f"{errors}"
    assert errors[-1] < {1: 5e-3, 2: 3e-4}[order]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_ancestral_is_the_reverse_of_the_forward_chain(schedule):
    """q(z_s | z_t, z0) of z_t = (alpha_t / alpha_s) z_s + noise: marginals stay N(alpha z0, sigma^2)."""
    t, s = schedule.level(0.7), schedule.level(0.5)
    one = torch.ones(1, 1, dtype=torch.float64)

    def step(z0, z_t, noise):
        return Ancestral().step(z0, z_t, t, s, guided=clean, combine=adding(noise), memory={}).item()

    a, b, c = step(0 * one, one, 0 * one), step(one, 0 * one, 0 * one), step(0 * one, 0 * one, one)
    ratio = t.alpha / s.alpha
    innovation = t.sigma**2 - ratio**2 * s.sigma**2
    assert c**2 == pytest.approx(s.sigma**2 * innovation / t.sigma**2, rel=1e-10)
    assert a == pytest.approx(ratio * s.sigma**2 / t.sigma**2, rel=1e-10)
    assert b == pytest.approx(s.alpha * innovation / t.sigma**2, rel=1e-10)
    assert a**2 * t.sigma**2 + c**2 == pytest.approx(s.sigma**2, rel=1e-10)
    assert b + a * t.alpha == pytest.approx(s.alpha, rel=1e-10)


@pytest.mark.parametrize("kind", ["isotropic", "correlated"])
def test_renoising_a_draw_reproduces_the_prior(toy, tolerances, kind):
    """Decoupled annealing: z0 ~ p(z | z_t), then fresh noise, gives the prior in any number of levels."""
    problem = toy.build(kind, n=20, P=2)
    E, M = problem.prior.covariance, 4096
    levels = problem.prior.schedule.levels(4)
    generator = torch.Generator().manual_seed(3)

    def draw():
        return torch.randn(M, 20, dtype=torch.float64, generator=generator)

    z = levels[0].sigma * draw()
    for t, s in zip(levels, [*levels[1:], CLEAN]):
        z0 = problem.prior.denoise(z, t) + E.apply(draw(), lambda v, r=t.rho**2: (v * r / (v + r)).sqrt())
        z = Renoise().step(z0, z, t, s, guided=clean, combine=adding(draw()), memory={})
    tolerances.assert_samples(z, torch.zeros(20, dtype=torch.float64), problem.S)


def test_ancestral_reproduces_the_prior_as_steps_grow(toy):
    problem = toy.build("correlated", n=20, P=2)
    errors = []
    for steps in (50, 100, 200):
        mean, covariance = toy.moments(ObsFree(), problem, steps=steps, solver="ancestral", spacing="time")
        assert mean.abs().max() == 0
        errors.append(1 - float(covariance.trace() / problem.S.trace()))
    assert 0 < errors[2] < 0.06
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_transition_to_the_clean_level_returns_the_clean_estimate(name):
    z0, z_t = torch.randn(2, 4), torch.randn(2, 4)
    t = Schedule().level(0.3)
    step = get_solver(name).step(z0, z_t, t, CLEAN, guided=clean, combine=None, memory={})
    assert torch.equal(step, z0)


def test_langevin_leaves_the_marginal_invariant_to_first_order():
    """One step takes a variance V to V + delta^2 sigma^4 / V: of second order, and no other."""
    level = Schedule().level(0.5)
    V = level.alpha**2 * VARIANCE + level.sigma**2
    n = 20000
    generator = torch.Generator().manual_seed(0)
    z = V.sqrt().repeat(n // 4) * torch.randn(1, n, dtype=torch.float64, generator=generator)
    guided = lambda v, t: clean(v, t, VARIANCE.repeat(n // 4))  # noqa: E731
    eps = (z - level.alpha * guided(z, level)) / level.sigma
    changes = []
    for tau in (0.02, 0.04):
        delta = tau / float(eps.square().mean())
        corrector = Langevin(rounds=1, tau=tau)
        still = corrector.correct(z, level, guided=guided, noise=lambda i: torch.zeros_like(z))
        moved = corrector.correct(z, level, guided=guided, noise=lambda i: torch.ones_like(z)) - still
        contraction = (still / z).reshape(-1, 4)[0]
        torch.testing.assert_close(contraction, 1 - delta * level.sigma**2 / V, rtol=1e-10, atol=1e-12)
        after = contraction**2 * V + moved[0, 0] ** 2
        torch.testing.assert_close(after - V, delta**2 * level.sigma**4 / V, rtol=1e-6, atol=1e-12)
        changes.append((after / V - 1).max().item())
    assert changes[1] / changes[0] == pytest.approx(4, rel=1e-3)


def test_langevin_draws_each_round_by_its_number():
    asked = []
    Langevin(rounds=3).correct(
        torch.ones(2, 4).double(),
        Schedule().level(0.5),
        guided=clean,
        noise=lambda i: asked.append(i) or torch.zeros(2, 4),
    )
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_prediction_types_agree(schedule, t):
    level = schedule.level(t)
    a, s = level.alpha, level.sigma
    z_t = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4)
    z0 = clean(z_t, level)
    eps = (z_t - a * z0) / s
    outputs = {
        "x0": z0,
        "eps": eps,
        "v": (a * z_t - (a**2 + s**2) * z0) / s,
        "score": -z_t / (a**2 * VARIANCE + s**2),
        "wiener": (z0 - wiener(z_t, level)) * math.sqrt(a**2 + s**2) / s,
    }
    assert set(outputs) == set(PREDICTIONS)
    for prediction, output in outputs.items():
        torch.testing.assert_close(to_clean(prediction, output, z_t, level), z0, rtol=1e-8, atol=1e-10)
    if schedule.kind == "vp_linear":
        torch.testing.assert_close(outputs["v"], a * eps - s * z0, rtol=1e-9, atol=1e-12)


def test_wiener_of_zero_is_the_optimum_of_a_unit_variance_latent():
    level, z_t = Level(0, 0.5, 0.7, 0.6), torch.ones(1, 4, dtype=torch.float64)
    torch.testing.assert_close(
        to_clean("wiener", torch.zeros_like(z_t), z_t, level), clean(z_t, level, torch.ones(4).double())
    )


def test_bad_names_get_a_sentence():
    with pytest.raises(InputError, match="'euler' is unknown; accepted: renoise, ancestral, ddim, dpmpp_2m, heun"):
        get_solver("euler")
    with pytest.raises(InputError, match="'noise' is unknown; accepted: x0, eps, v, score, wiener"):
        check_prediction("noise")
    assert get_solver(Heun()) == Heun()
