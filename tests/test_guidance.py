"""One guided step of every method: against closed forms and autograd; and what is refused."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from lsda_fast.errors import InputError
from lsda_fast.guidance import DPS, LBFGS, MMPS, Adam, GaussNewton, Huber, LatentOptimization, ObsFree, Repaint
from lsda_fast.guidance.covariance import PRIOR_COVARIANCES, latent_covariance
from lsda_fast.prior import Linearization


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_mmps_is_the_conditional_mean(problem, t):
    z_t = problem.noisy(t)
    guided = MMPS(iterations=40).guide(z_t, problem.context(t)).z0
    torch.testing.assert_close(
        guided, problem.conditional(z_t, problem.prior.schedule.level(t))[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_dps_is_the_gradient_of_the_likelihood(problem, gamma):
    t = 0.4
    here, likelihood = problem.context(t), problem.likelihood
    z_t = problem.noisy(t).requires_grad_()
    z0 = problem.prior.denoise(z_t, here.level)
    variance = likelihood.variance + gamma * here.level.rho**2 * likelihood.scale**2
    log_likelihood = -0.5 * ((likelihood.y - z0 @ problem.G.T) ** 2 / variance).sum()
    gradient = torch.autograd.grad(log_likelihood, z_t)[0]
    expected = z0.detach() + 0.7 * here.level.sigma**2 / here.level.alpha * gradient
    torch.testing.assert_close(
        DPS(scale=0.7, gamma=gamma, limit=False).guide(z_t.detach(), here).z0, expected, rtol=1e-10, atol=1e-10
    )


def test_the_norm_of_dps_is_the_root_of_twice_a_robust_cost(problem):
    y = problem.likelihood.y.clone()
    y[::7] += 4.0
    here = replace(problem.context(0.4), likelihood=replace(problem.likelihood, y=y, robust=Huber(2.0)))
    z_t = problem.noisy(0.4).requires_grad_()
    d = (problem.prior.denoise(z_t, here.level) @ problem.G.T - y) / problem.likelihood.variance.sqrt()
    assert ((d.abs() > 2).any(1) & (d.abs() < 2).any(1)).all()
    rho = torch.where(d.abs() > 2, 2 * (d.abs() - 1), 0.5 * d**2).sum(1)
    (gradient,) = torch.autograd.grad((2 * rho).sqrt().sum(), z_t)
    torch.testing.assert_close(DPS(norm=True, scale=0.7).guide(z_t.detach(), here).shift, -0.7 * gradient)


@pytest.mark.parametrize("t", [0.01, 0.05, 0.2])
def test_limited_dps_stops_at_the_minimum_along_its_step(problem, t):
    """Never beyond the minimum of the observations' cost on the line; a step that ends before it stays whole."""
    here, likelihood, z_t = problem.context(t), problem.likelihood, problem.noisy(t)
    z0 = problem.prior.denoise(z_t, here.level)
    variance = likelihood.variance + 0.1 * here.level.rho**2 * likelihood.scale**2
    whole, limited = (DPS(gamma=0.1, limit=limit).guide(z_t, here).z0 - z0 for limit in (False, True))
    change, residual = whole @ problem.G.T, z0 @ problem.G.T - likelihood.y
    best = -(residual * change / variance).sum(1) / (change**2 / variance).sum(1)
    assert (best > 1).all() if t == 0.01 else (best < 1).all()
    torch.testing.assert_close(limited, best.clamp_max(1)[:, None] * whole, rtol=1e-9, atol=1e-12)


def test_repaint_puts_the_observed_values_in_place(problem):
    z_t = problem.noisy(0.4)
    here = problem.context(0.4)
    free, painted = (problem.prior.decode(g.guide(z_t, here).z0) for g in (ObsFree(), Repaint()))
    observed = problem.likelihood.operator.observed
    expected = free.clone()
    expected[:, observed] = problem.likelihood.y
    torch.testing.assert_close(painted, expected, rtol=1e-9, atol=1e-9)


def test_repaint_leaves_out_what_has_no_weight(problem):
    likelihood = problem.likelihood
    first = torch.arange(len(likelihood.y)) == 0
    without = replace(
        likelihood,
        y=torch.where(first, 1e3, likelihood.y),
        variance=torch.where(first, torch.inf, likelihood.variance),
    )
    z_t, here = problem.noisy(0.4), replace(problem.context(0.4), likelihood=without)
    free, painted = (problem.prior.decode(g.guide(z_t, here).z0) for g in (ObsFree(), Repaint()))
    place = likelihood.operator.observed[0]
    torch.testing.assert_close(painted[:, place], free[:, place], rtol=1e-9, atol=1e-9)


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
    z_t = problem.noisy(0.5)
    for guidance in (
        DPS(),
        DPS(norm=True),
        MMPS(),
        Repaint(),
        *(LatentOptimization(GaussNewton(2, 6), prior_covariance=name) for name in PRIOR_COVARIANCES),
        LatentOptimization(Adam(5)),
        LatentOptimization(LBFGS(5)),
    ):
        flat = guidance.guide(z_t, problem.context(0.5)).z0
        image = guidance.guide(z_t.reshape(-1, *shape), shaped.context(0.5)).z0
        torch.testing.assert_close(image.flatten(1), flat, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p: LatentOptimization(Adam(), prior_covariance="tweedie"), "accepted is GaussNewton"),
        (lambda p: LatentOptimization(lanczos=-1), "lanczos = -1; accepted is a number of at least 0, or None"),
        (
            lambda p: latent_covariance("full", p.context(0.5)),
            "accepted: isotropic, diagonal, stationary, tweedie",
        ),
        (lambda p: latent_covariance("tweedie", p.context(0.5)), "needs the derivative of the denoiser"),
        (
            lambda p: latent_covariance(
                "tweedie",
                p.context(0.5),
                Linearization.of(lambda z: z, torch.zeros(1, 2000), Counter(), "d"),
                lanczos=0,
            ),
            "a derivative of 2000 x 2000 in full; accepted is a latent of up to 1024",
        ),
        (
            lambda p: latent_covariance("diagonal", replace(p, prior=replace(p.prior, variance=None)).context(0.5)),
            "needs a prior with a variance per latent",
        ),
        (
            lambda p: latent_covariance("stationary", replace(p, prior=replace(p.prior, covariance=None)).context(0.5)),
            "needs a prior with a full covariance",
        ),
        (
            lambda p: Repaint().guide(p.noisy(0.5), replace(p, prior=replace(p.prior, encode=None)).context(0.5)),
            "needs a model with an encoder and an observation operator with a stencil",
        ),
    ],
)
def test_bad_input_gets_a_sentence(problem, call, sentence):
    with pytest.raises(InputError) as caught:
        call(problem)
    assert sentence in str(caught.value)
