"""The posterior is right: samples against closed forms of linear-Gaussian problems, and the bias of the rest.

50 latents, a linear decoder, an exact denoiser, an isotropic and a strongly correlated prior. 4,096 samples
are held to the sampling error of mean and covariance; ``moments`` follows such runs without that noise.
"""

import math

import pytest
import torch

from lsda_fast.diffusion import Schedule
from lsda_fast.guidance import DPS, MMPS, GaussNewton, LatentOptimization, ObsFree, Repaint
from lsda_fast.sampler import Sampler

M = 4096
MATCHING = {"isotropic": "isotropic", "correlated": "stationary"}
LINEAR = GaussNewton(outer=1, cg=11, halvings=0)
FEW = GaussNewton(outer=1, cg=7, halvings=0)
LEVELS = [steps if steps in (1, 2, 5, 12) else pytest.param(steps, marks=pytest.mark.slow) for steps in range(1, 13)]


@pytest.fixture(scope="module")
def problems(toy):
    return {kind: toy.build(kind, n=50, P=10) for kind in MATCHING}


@pytest.fixture(scope="module")
def few(toy):
    """Of fewer observations, for the tests that draw 4,096 members."""
    return {kind: toy.build(kind, n=50, P=6) for kind in MATCHING}


def sample(guidance, problem, *, members=M, recenter=False, **settings):
    sampler = Sampler(guidance, block=members, **settings)
    return sampler(problem.prior, problem.likelihood, members=members, recenter=recenter).z


@pytest.mark.parametrize("steps", LEVELS)
@pytest.mark.parametrize("kind", MATCHING)
def test_latent_optimization_samples_the_posterior(few, tolerances, kind, steps):
    """Randomised members and the matching covariance: exact at every number of levels."""
    problem = few[kind]
    z = sample(LatentOptimization(FEW, prior_covariance=MATCHING[kind], antithetic=False), problem, steps=steps)
    tolerances.assert_samples(z, problem.mean, problem.covariance)


@pytest.mark.parametrize("kind", MATCHING)
def test_antithetic_members_are_samples_and_their_mean_is_the_posterior_s(few, tolerances, kind):
    problem = few[kind]
    z = sample(LatentOptimization(FEW, prior_covariance=MATCHING[kind]), problem, steps=2)
    tolerances.assert_samples(z[::2], problem.mean, problem.covariance)
    assert problem.error(z[:2].mean(0)) < 1e-4


@pytest.mark.parametrize("members", [range(16), [0, 1, 2, 5, 6]])
def test_recentred_pairs_have_the_usual_variance(few, members):
    """Averaged over seeds, the sample variance (M - 1) of recentred members is the posterior's, whoever is paired."""
    problem, members = few["isotropic"], list(members)
    sampler = Sampler(LatentOptimization(FEW, prior_covariance="isotropic"), block=16, steps=1)
    runs = [sampler(problem.prior, problem.likelihood, members=members, seed=seed).z for seed in range(60)]
    variance = torch.stack([run.var(0) for run in runs]).mean(0)
    # 60 seeds x 50 latents: the mean of the ratios is known to about 1 %.
    assert float((variance / problem.covariance.diagonal()).mean()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("lanczos", [20, 0])
def test_tweedie_samples_the_posterior(few, tolerances, lanczos):
    problem = few["correlated"]
    guidance = LatentOptimization(FEW, prior_covariance="tweedie", lanczos=lanczos, antithetic=False)
    tolerances.assert_samples(sample(guidance, problem, steps=2), problem.mean, problem.covariance)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize(
    ("kind", "name"), [("isotropic", "isotropic"), ("isotropic", "tweedie"), ("correlated", "stationary")]
)
def test_moments_are_exact_at_any_number_of_levels(toy, problems, kind, name, steps):
    problem = problems[kind]
    guidance = LatentOptimization(LINEAR, prior_covariance=name, lanczos=4)
    mean, covariance = toy.moments(guidance, problem, steps=steps)
    white = problem.whiten(problem.whiten(covariance).T)
    assert problem.error(mean) < 1e-4
    assert (white - torch.eye(50)).abs().max() < 1e-3


@pytest.mark.parametrize("schedule", [Schedule.edm(), Schedule.vp_linear(), Schedule.vp_cosine(1e-2)], ids=str)
def test_other_schedules_are_exact_up_to_where_they_start(toy, schedule):
    """The start knows nothing of the prior's variance: an error of order 1 / rho of the first level."""
    problem = toy.build("correlated", P=10, schedule=schedule)
    mean, covariance = toy.moments(LatentOptimization(LINEAR, prior_covariance="stationary"), problem, steps=3)
    assert problem.error(mean) < 1 / schedule.rho(1.0)
    assert problem.ratio(covariance) == pytest.approx(1, abs=1 / schedule.rho(1.0))


@pytest.mark.parametrize(("solver", "order"), [("ancestral", 1), ("ddim", 1), ("heun", 2)])
def test_mmps_converges_to_the_posterior(toy, solver, order):
    """Its estimate is the exact conditional mean; the transition leaves its own error in the variance."""
    problem = toy.build("isotropic", P=4)
    errors = []
    for steps in (32, 64):
        mean, covariance = toy.moments(MMPS(iterations=5), problem, steps=steps, solver=solver)
        assert problem.error(mean) < 1e-3
        errors.append(abs(problem.ratio(covariance) - 1))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3), f"{errors}"
    assert errors[1] < {1: 0.09, 2: 5e-4}[order]


@pytest.mark.parametrize(
    "guidance",
    [MMPS(iterations=11), DPS(gamma=0.3, limit=False), Repaint(), ObsFree()],
    ids=["mmps", "dps", "repaint", "free"],
)
def test_samples_have_the_moments_that_are_documented(toy, problems, tolerances, guidance):
    """``moments`` is what docs/posterior.md tabulates: the sampler's own 4,096 members scatter around it."""
    problem = problems["correlated"]
    steps = 4 if isinstance(guidance, MMPS) else 16
    mean, covariance = toy.moments(guidance, problem, steps=steps)
    z = sample(guidance, problem, steps=steps)
    if isinstance(guidance, Repaint):
        # Nothing is left to vary where it was observed: look at the other places.
        hidden = torch.ones(50, dtype=torch.bool)
        hidden[problem.likelihood.operator.observed] = False
        D = problem.D[hidden]
        z, mean, covariance = z @ D.T, D @ mean, D @ covariance @ D.T
    tolerances.assert_samples(z, mean, covariance)


@pytest.mark.parametrize(("name", "variance"), [("isotropic", 6.07), ("diagonal", 1.34)])
def test_mismatched_covariances_are_biased(toy, problems, name, variance):
    """Isotropic and diagonal C_t, correlated prior: far off at one level, less with many to the clean end."""
    guidance = LatentOptimization(LINEAR, prior_covariance=name)
    far = toy.moments(guidance, problems["correlated"], steps=1)
    near = toy.moments(guidance, problems["correlated"], steps=16, spacing="time", stop=0.0)
    errors, ratios = zip(*((problems["correlated"].error(m), problems["correlated"].ratio(c)) for m, c in (far, near)))
    assert errors[0] > 0.9
    assert ratios[0] == pytest.approx(variance, abs=0.01)
    assert 0.1 < errors[1] < 0.5 * errors[0]
    assert 1.02 < ratios[1] < ratios[0]


@pytest.mark.parametrize(
    ("guidance", "error"),
    [
        (DPS(gamma=0.1, limit=False), 0.236),
        (DPS(gamma=0.3, limit=False), 0.186),
        (DPS(gamma=1.0, limit=False), 0.112),
        (Repaint(), 0.909),
    ],
    ids=["dps_0.1", "dps_0.3", "dps_1", "repaint"],
)
def test_dps_and_repaint_keep_their_bias(toy, problems, guidance, error):
    """The mean stays off by this much of the posterior's spread, however many the levels."""
    errors = [
        problems["correlated"].error(toy.moments(guidance, problems["correlated"], steps=n)[0]) for n in (64, 128)
    ]
    assert errors[1] == pytest.approx(error, abs=2e-3)
    assert errors[1] > 0.93 * errors[0]


@pytest.mark.parametrize("kind", MATCHING)
@pytest.mark.parametrize("steps", [1, 3])
def test_recentring_takes_the_sampling_noise_out_of_the_mean(problems, kind, steps):
    """The ensemble's mean becomes the average of the conditional means, at one level the posterior mean."""
    problem = problems[kind]
    guidance = LatentOptimization(LINEAR, prior_covariance=MATCHING[kind], antithetic=False)
    last = []
    sampler = Sampler(guidance, block=16, steps=steps)
    z = sampler(problem.prior, problem.likelihood, members=16, on_step=last.append).z
    conditional, _ = problem.conditional(last[-1].z_t, last[-1].level)
    torch.testing.assert_close(z.mean(0), conditional.mean(0), rtol=1e-6, atol=1e-6)
    free = sample(guidance, problem, members=16, steps=steps)
    torch.testing.assert_close(z - z.mean(0), free - free.mean(0))
    error, free_error = problem.error(z.mean(0)), problem.error(free.mean(0))
    assert 0.1 < free_error < 0.5  # 1 / sqrt(16)
    assert error < (1e-3 if steps == 1 else 0.5 * free_error)


def test_optima_do_not_spread_as_the_posterior_does(problems):
    """The published, not randomised, members: one level gives the same optimum to all."""
    problem = problems["correlated"]
    guidance = LatentOptimization(LINEAR, prior_covariance="stationary", randomize=False)
    z = sample(guidance, problem, members=8, steps=1)
    assert problem.error(z.mean(0)) < 1e-3
    assert problem.ratio(torch.cov(z.T)) < 1e-5
