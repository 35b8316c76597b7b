"""Optimised latents: every inner solver and covariance against the closed form of its own optimum."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from lsda_fast.diffusion import Level
from lsda_fast.diffusion.noise import Key
from lsda_fast.guidance import LBFGS, Adam, Context, GaussNewton, LatentOptimization, VariationalQC, dual
from lsda_fast.guidance.covariance import PRIOR_COVARIANCES, latent_covariance
from lsda_fast.guidance.dual import dual_optimum
from lsda_fast.prior import Linearization, Prior

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
    z_t = problem.noisy(t)
    guidance = LatentOptimization(inner, prior_covariance="stationary", randomize=False)
    guided = guidance.guide(z_t, problem.context(t)).z0
    mean, C = problem.conditional(z_t, problem.prior.schedule.level(t))
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(C), (guided - mean).T, upper=False)
    assert white.square().mean().sqrt() < 1e-3


@pytest.mark.parametrize("name", PRIOR_COVARIANCES)
def test_every_covariance_has_its_own_optimum(problem, name):
    """argmin of the module's cost with the stated C_t, dense, whatever the true covariance is."""
    t = 0.6
    z_t, here = problem.noisy(t), problem.context(t)
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
    z_t = problem.noisy(t)
    here = problem.context(t)
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
        .guide(problem.noisy(t), curved.context(t))
        .z0
        for name in ("stationary", "tweedie")
    ]
    lbfgs = LatentOptimization(LBFGS(100, 20, 10), prior_covariance="stationary", randomize=False)
    torch.testing.assert_close(guided[0], guided[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lbfgs.guide(problem.noisy(t), curved.context(t)).z0, guided[0], rtol=1e-3, atol=1e-3)


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


def test_a_member_stays_where_no_trial_is_lower():
    def residual(v):
        return torch.where(v.abs() > 1e-6, torch.nan, torch.exp(v) - 20)

    start = torch.zeros(1, 1, dtype=torch.float64)
    inner = GaussNewton(outer=1, cg=4, halvings=2)
    assert torch.equal(
        inner.minimize(lambda v: Linearization.of(residual, v, Counter(), "decoder"), start), torch.zeros_like(start)
    )


def test_a_preconditioned_start_is_the_optimum_from_wherever_it_begins(monkeypatch):
    """1/2 |A v - y|^2 + 1/2 |v|^2 where what preconditions knows A: one iteration from v is at the minimum."""
    A = 2 * torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    y, start = torch.ones(1, 5, dtype=torch.float64), torch.full((1, 5), 2.0, dtype=torch.float64)
    known = Linearization.of(lambda w: w @ A.T, torch.zeros_like(start), Counter(), "decoder")
    found, move = [], GaussNewton._move

    def spy(self, linearize, v, step, cost):
        found.append(v + step)
        return move(self, linearize, v, step, cost)

    monkeypatch.setattr(GaussNewton, "_move", spy)
    GaussNewton(outer=1, cg=1, halvings=0, precondition=30).minimize(
        lambda v: Linearization.of(lambda w: w @ A.T - y, v, Counter(), "decoder"), start, known
    )
    best = torch.linalg.solve(A.T @ A + torch.eye(5), (y @ A).T).T
    torch.testing.assert_close(found[0], best, rtol=0.02, atol=0.02)


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
    here = problem.context(0.5)
    m, C = problem.noisy(0.5), latent_covariance("stationary", here).apply
    at_mean, moved = (dual_optimum(m, here, C, outer=outer, iterations=40) for outer in (1, 2))
    torch.testing.assert_close(moved, at_mean, rtol=1e-4, atol=1e-4)


def test_variational_quality_control_begins_with_its_convex_part(problem, monkeypatch):
    seen, update = [], dual._update
    monkeypatch.setattr(dual, "_update", lambda residual, *rest: seen.append(residual.slope) or update(residual, *rest))
    cost, inner = VariationalQC(0.05, 5.0), GaussNewton(outer=3, cg=20)
    y, m = problem.likelihood.y + 3.0, problem.noisy(0.5)
    here, convex = (
        replace(problem.context(0.5), likelihood=replace(problem.likelihood, y=y, robust=robust))
        for robust in (cost, cost.convex)
    )
    LatentOptimization(inner, prior_covariance="tweedie", lanczos=20, randomize=False).guide(m, here)
    assert len(seen) == 6
    torch.testing.assert_close(seen[0], convex.linearize_residual(problem.prior.denoise(m, here.level)).slope)
