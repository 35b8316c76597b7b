"""One guided step of every method: against closed forms, autograd, and azula's implementation of the same."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from lsda_fast.diffusion import DDIM, Ancestral, Level
from lsda_fast.diffusion.noise import Key
from lsda_fast.errors import InputError
from lsda_fast.guidance import (
    DPS,
    LBFGS,
    MMPS,
    Adam,
    Context,
    GaussNewton,
    LatentOptimization,
    ObsFree,
    Repaint,
)
from lsda_fast.guidance.covariance import PRIOR_COVARIANCES, latent_covariance
from lsda_fast.guidance.dual import dual_optimum
from lsda_fast.prior import Linearization, Prior
from lsda_fast.sampler import Sampler

MEMBERS = (0, 1, 2)


def adding(eps):
    """``combine`` of a transition with this noise."""
    return lambda terms, coefficients, noise=0.0: sum(c * z for c, z in zip(coefficients, terms)) + noise * eps


@pytest.fixture(scope="module")
def problem(toy):
    return toy.build("correlated", n=50, P=20)


def context(problem, t, *, last=False):
    level = t if isinstance(t, Level) else problem.prior.schedule.level(t)
    return Context(problem.prior, problem.likelihood, level, last, Key.of(7, MEMBERS))


def noisy(problem, t, seed=0):
    level = problem.prior.schedule.level(t)
    eps = torch.randn(len(MEMBERS), 50, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return level.alpha * problem.mean + level.sigma * eps


# Closed forms


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_mmps_is_the_conditional_mean(problem, t):
    z_t = noisy(problem, t)
    guided = MMPS(iterations=40).guide(z_t, context(problem, t)).z0
    torch.testing.assert_close(
        guided, problem.conditional(z_t, problem.prior.schedule.level(t))[0], rtol=1e-5, atol=1e-5
    )


INNER = {
    "gauss_newton": GaussNewton(outer=1, cg=50, halvings=0),
    "gauss_newton_searched": GaussNewton(outer=2, cg=50, halvings=2),
    "lbfgs": LBFGS(steps=150, history=20),
    "adam": Adam(steps=1500, lr=0.02),
}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@pytest.mark.parametrize("t", [0.3, 0.9])
def test_inner_solvers_reach_the_closed_form_optimum(problem, inner, t):
    """Linear problem, matching covariance: the mode of p(z | z_t, y) is its mean."""
    z_t = noisy(problem, t)
    guidance = LatentOptimization(inner, prior_covariance="stationary", randomize=False)
    guided = guidance.guide(z_t, context(problem, t)).z0
    mean, C = problem.conditional(z_t, problem.prior.schedule.level(t))
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(C), (guided - mean).T, upper=False)
    assert white.square().mean().sqrt() < 1e-3


@pytest.mark.parametrize("name", PRIOR_COVARIANCES)
def test_every_covariance_has_its_own_optimum(problem, name):
    """argmin of the module's cost with the stated C_t, dense, whatever the true covariance is."""
    t = 0.6
    z_t, here = noisy(problem, t), context(problem, t)
    rho2, S, eye = here.level.rho**2, problem.S, torch.eye(50, dtype=torch.float64)
    C = {
        "isotropic": eye * rho2 / (1 + rho2),
        "diagonal": torch.diag(S.diagonal() * rho2 / (S.diagonal() + rho2)),
        "stationary": torch.linalg.inv(torch.linalg.inv(S) + eye / rho2),
        "tweedie": torch.linalg.inv(torch.linalg.inv(S) + eye / rho2),
    }[name]
    z0, G, R = problem.prior.denoise(z_t, here.level), problem.G, torch.diag(problem.likelihood.variance)
    K = C @ G.T @ torch.linalg.inv(G @ C @ G.T + R)
    expected = z0 + (problem.likelihood.y - z0 @ G.T) @ K.T
    guidance = LatentOptimization(GaussNewton(1, 50, 0), prior_covariance=name, randomize=False, lanczos=16)
    torch.testing.assert_close(guidance.guide(z_t, here).z0, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "lanczos"), [*((name, 50) for name in PRIOR_COVARIANCES), ("tweedie", 0)])
def test_apply_and_sample_belong_to_one_covariance(problem, name, lanczos):
    t = 0.6
    z_t = noisy(problem, t)
    here = context(problem, t)
    rows = torch.eye(50, dtype=torch.float64)
    here = replace(here, key=Key.of(7, range(50)))
    denoiser = here.linearize_denoiser(z_t[:1].repeat(50, 1)) if name == "tweedie" else None
    covariance = latent_covariance(name, here, denoiser, lanczos=lanczos)
    C, root = covariance.apply(rows), covariance.sample(rows)
    torch.testing.assert_close(C, C.T, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(root.T @ root, C, rtol=1e-6, atol=1e-8)


def test_tweedie_symmetrises_a_derivative_that_is_not_symmetric():
    A = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prior = Prior(None, (6,), lambda z, t: z @ A.T, lambda z: z, dtype=torch.float64)  # type: ignore[arg-type]
    level = Level(0, 0.5, 0.8, 0.6)
    here = Context(prior, None, level, False, Key.of(0, range(6)))  # type: ignore[arg-type]
    denoiser = here.linearize_denoiser(torch.zeros(6, 6, dtype=torch.float64))
    C = latent_covariance("tweedie", here, denoiser, lanczos=6).apply(torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(C, level.sigma**2 / level.alpha * (A + A.T) / 2)


def test_a_derivative_in_full_is_the_products_without_its_negative_part():
    A = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prior = Prior(None, (6,), lambda z, t: (z @ A.T).sinh(), lambda z: z, dtype=torch.float64)  # type: ignore[arg-type]
    here = Context(prior, None, Level(0, 0.5, 0.8, 0.6), False, Key.of(0, (0, 1)))  # type: ignore[arg-type]
    z = torch.tensor([[0.3], [-0.2]], dtype=torch.float64).expand(2, 6)
    denoiser = here.linearize_denoiser(z)
    rows = torch.eye(6, dtype=torch.float64)
    products = latent_covariance("tweedie", here, denoiser, lanczos=6)
    C = torch.stack([products.apply(row.expand(2, 6)) for row in rows], dim=1)
    values, vectors = torch.linalg.eigh(C)
    assert (values < -0.01).any()
    positive = (vectors * values.clamp_min(0)[:, None]) @ vectors.mT
    v = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    full = latent_covariance("tweedie", here, denoiser)
    torch.testing.assert_close(full.apply(v), (positive @ v[..., None])[..., 0])


def test_gauss_newton_and_tweedie_agree_on_a_nonlinear_decoder(problem):
    """Primal and dual forms relinearise at the same points, so that they meet at the same optimum."""
    t = 0.6
    prior = replace(problem.prior, decode=lambda z: torch.sinh(z @ problem.D.T))
    curved = replace(problem, prior=prior)
    guided = [
        LatentOptimization(GaussNewton(6, 30, 0), prior_covariance=name, randomize=False, lanczos=16)
        .guide(noisy(problem, t), context(curved, t))
        .z0
        for name in ("stationary", "tweedie")
    ]
    lbfgs = LatentOptimization(LBFGS(100, 20, 10), prior_covariance="stationary", randomize=False)
    torch.testing.assert_close(guided[0], guided[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lbfgs.guide(noisy(problem, t), context(curved, t)).z0, guided[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("inner", [GaussNewton(outer=6, cg=4, halvings=6), LBFGS(steps=20, halvings=8)], ids=repr)
def test_the_line_search_backs_off_from_nan(inner):
    """Minimise 1/2 (e^v - 20)^2 + 1/2 v^2 where the first full step, 9.5, lands on NaN."""

    def residual(v):
        return torch.where(v.abs() > 4, torch.nan, torch.exp(v) - 20)

    start = torch.zeros(1, 1, dtype=torch.float64)
    v = inner.minimize(lambda v: Linearization.of(residual, v, Counter(), "decoder"), start)
    gradient = (torch.exp(v) - 20) * torch.exp(v) + v
    assert abs(float(gradient)) < 0.2
    assert float(v) == pytest.approx(2.988, abs=2e-3)


def test_lbfgs_shortens_its_steps_until_they_fit():
    """1/2 (1000 (v - 0.01))^2 + 1/2 v^2: the first step, of length 1, is a hundred times too long."""
    weight, target = (torch.tensor(pair, dtype=torch.float64)[:, None] for pair in ((1e3, 1.0), (0.01, 2.0)))
    solver = LBFGS(steps=20, halvings=2)
    v = solver.minimize(
        lambda v: Linearization.of(lambda w: weight * (w - target), v, Counter(), "decoder"), 0 * target
    )
    torch.testing.assert_close(v, weight**2 * target / (weight**2 + 1), rtol=1e-6, atol=0)


def test_failed_searches_of_lbfgs_take_nothing_from_what_it_knows():
    """Rosenbrock's valley from eight places, where two trials are often too few and two pairs are all there are."""

    def valley(v):
        x, y = v.T
        return torch.stack([30 * (y - x**2), 5 * (1 - x)], 1)

    def linearize(v):
        return Linearization.of(valley, v, Counter(), "decoder")

    start = 3 * torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = LBFGS(steps=60, history=2, halvings=2).minimize(linearize, start)
    residual = linearize(v)
    assert (residual.vjp(residual.value) + v).abs().max() < 1e-4


def test_dual_update_moves_with_its_linearisation_point(problem):
    """For a linear operator the update does not depend on where it was linearised."""
    here = context(problem, 0.5)
    m, C = noisy(problem, 0.5), latent_covariance("stationary", here).apply
    at_mean, moved = (dual_optimum(m, here, C, outer=outer, iterations=40) for outer in (1, 2))
    torch.testing.assert_close(moved, at_mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_dps_is_the_gradient_of_the_likelihood(problem, gamma):
    t = 0.4
    here, likelihood = context(problem, t), problem.likelihood
    z_t = noisy(problem, t).requires_grad_()
    z0 = problem.prior.denoise(z_t, here.level)
    variance = likelihood.variance + gamma * here.level.rho**2 * likelihood.scale**2
    log_likelihood = -0.5 * ((likelihood.y - z0 @ problem.G.T) ** 2 / variance).sum()
    gradient = torch.autograd.grad(log_likelihood, z_t)[0]
    expected = z0.detach() + 0.7 * here.level.sigma**2 / here.level.alpha * gradient
    torch.testing.assert_close(
        DPS(scale=0.7, gamma=gamma, limit=False).guide(z_t.detach(), here).z0, expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("t", [0.01, 0.05, 0.2])
def test_limited_dps_stops_at_the_minimum_along_its_step(problem, t):
    """Never beyond the minimum of the observations' cost on the line; a step that ends before it stays whole."""
    here, likelihood, z_t = context(problem, t), problem.likelihood, noisy(problem, t)
    z0 = problem.prior.denoise(z_t, here.level)
    variance = likelihood.variance + 0.1 * here.level.rho**2 * likelihood.scale**2
    whole, limited = (DPS(gamma=0.1, limit=limit).guide(z_t, here).z0 - z0 for limit in (False, True))
    change, residual = whole @ problem.G.T, z0 @ problem.G.T - likelihood.y
    best = -(residual * change / variance).sum(1) / (change**2 / variance).sum(1)
    assert (best > 1).all() if t == 0.01 else (best < 1).all()
    torch.testing.assert_close(limited, best.clamp_max(1)[:, None] * whole, rtol=1e-9, atol=1e-12)


def test_repaint_puts_the_observed_values_in_place(problem):
    z_t = noisy(problem, 0.4)
    here = context(problem, 0.4)
    free, painted = (problem.prior.decode(g.guide(z_t, here).z0) for g in (ObsFree(), Repaint()))
    observed = problem.likelihood.operator.observed
    expected = free.clone()
    expected[:, observed] = problem.likelihood.y
    torch.testing.assert_close(painted, expected, rtol=1e-9, atol=1e-9)


def test_guiding_works_with_an_image_shaped_latent(problem):
    """Closures on (M, C, H, W) give what they give on the flattened latent."""
    shape = (2, 5, 5)
    prior = replace(
        problem.prior,
        latent_shape=shape,
        denoise=lambda z, t: problem.prior.denoise(z.flatten(1), t).reshape(-1, *shape),
        decode=lambda z: problem.prior.decode(z.flatten(1)),
        encode=lambda x: problem.prior.encode(x).reshape(-1, *shape),
        variance=problem.prior.variance.reshape(shape),
    )
    shaped = replace(problem, prior=prior)
    z_t = noisy(problem, 0.5)
    for guidance in (
        DPS(),
        DPS(norm=True),
        MMPS(),
        Repaint(),
        *(LatentOptimization(GaussNewton(2, 6), prior_covariance=name) for name in PRIOR_COVARIANCES),
        LatentOptimization(Adam(5)),
        LatentOptimization(LBFGS(5)),
    ):
        flat = guidance.guide(z_t, context(problem, 0.5)).z0
        image = guidance.guide(z_t.reshape(-1, *shape), context(shaped, 0.5)).z0
        torch.testing.assert_close(image.flatten(1), flat, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p: LatentOptimization(Adam(), prior_covariance="tweedie"), "accepted is GaussNewton"),
        (
            lambda p: latent_covariance("full", context(p, 0.5)),
            "accepted: isotropic, diagonal, stationary, tweedie",
        ),
        (lambda p: latent_covariance("tweedie", context(p, 0.5)), "needs the derivative of the denoiser"),
        (
            lambda p: latent_covariance(
                "tweedie",
                context(p, 0.5),
                Linearization.of(lambda z: z, torch.zeros(1, 2000), Counter(), "d"),
                lanczos=0,
            ),
            "a derivative of 2000 x 2000 in full; accepted is a latent of up to 1024",
        ),
        (
            lambda p: latent_covariance("diagonal", context(replace(p, prior=replace(p.prior, variance=None)), 0.5)),
            "needs a prior with a variance per latent",
        ),
        (
            lambda p: latent_covariance(
                "stationary", context(replace(p, prior=replace(p.prior, covariance=None)), 0.5)
            ),
            "needs a prior with a full covariance",
        ),
        (
            lambda p: Repaint().guide(noisy(p, 0.5), context(replace(p, prior=replace(p.prior, encode=None)), 0.5)),
            "needs a model with an encoder and an observation operator with a stencil",
        ),
    ],
)
def test_bad_input_gets_a_sentence(problem, call, sentence):
    with pytest.raises(InputError) as caught:
        call(problem)
    assert sentence in str(caught.value)


# azula's implementations of the same method


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


def times(t, s):
    return torch.tensor(t, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)


@pytest.fixture
def same_noise(monkeypatch):
    """One noise for both sides: azula draws with ``torch.randn_like``, this package does not."""
    noise = torch.randn(len(MEMBERS), 50, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(torch, "randn_like", lambda v: noise.clone())
    return noise


def test_the_exact_denoiser_is_azulas(azula, problem):
    for t in (0.05, 0.5, 1.0):
        z_t = noisy(problem, t)
        theirs = peer(azula, problem)(z_t, times(t, 0)[0]).mean
        torch.testing.assert_close(
            problem.prior.denoise(z_t, problem.prior.schedule.level(t)), theirs, rtol=1e-7, atol=1e-8
        )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.8), (0.4, 0.1)])
def test_ddim_and_ddpm_steps_are_azulas(azula, problem, same_noise, eta, t, s):
    """azula's eta multiplies the variance of the fresh noise, Song et al.'s its standard deviation."""
    z_t = noisy(problem, t)
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
    z = noisy(problem, 1.0)
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
    z_t = noisy(problem, t)
    here, there = problem.prior.schedule.level(t), problem.prior.schedule.level(s)
    estimate = DPS(norm=True, scale=0.05).guide(z_t, context(problem, t))
    ours = Ancestral().step(estimate.z0, z_t, here, there, guided=None, combine=adding(same_noise), memory={})
    denoiser, y = peer(azula, problem), problem.likelihood.y
    # azula's norm runs over the whole batch: one member at a time.
    for m in range(len(MEMBERS)):
        sampler = azula.dps.DPSSampler(denoiser, y, lambda z: z @ problem.G.T, zeta=0.5)
        monkeypatch.setattr(torch, "randn_like", lambda v, m=m: same_noise[m : m + 1].clone())
        theirs = sampler.step(z_t[m : m + 1], *times(t, s))
        torch.testing.assert_close((ours + estimate.shift)[m : m + 1], theirs, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("iterations", [1, 4, 40])
def test_mmps_is_azulas(azula, problem, t, iterations):
    """With few iterations too: R is a multiple of I, so that both have the same Krylov space."""
    z_t = noisy(problem, t)
    mmps = azula.mmps.MMPSDenoiser(
        peer(azula, problem),
        problem.likelihood.y,
        lambda z: z @ problem.G.T,
        azula.covariance.DiagonalCovariance(problem.likelihood.variance),
        solver="gmres",
        iterations=iterations,
    )
    theirs = mmps(z_t, times(t, 0)[0]).mean
    ours = MMPS(iterations=iterations).guide(z_t, context(problem, t)).z0
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
