"""The prior of a package: around the background, and optimal interpolation where nothing is learned."""

import itertools
from types import ModuleType

import torch

from lsda_fast.baselines import OptimalInterpolation
from lsda_fast.models import DiagonalWhitening


def test_the_centre_of_a_whitened_prior_is_the_background(linear: ModuleType) -> None:
    package = linear.trained()
    autoencoder = package.autoencoder
    z_b = autoencoder.encode(linear.CLIMATE[:1])
    for background in (linear.CLIMATE[0], z_b[0]):
        prior = package.prior(background, correction=False)
        assert torch.equal(prior.decode(torch.zeros(1, 24, 1, 1))[0], autoencoder.decode(z_b)[0])
    u = torch.randn(2, 24, 1, 1, generator=torch.Generator().manual_seed(0))
    assert prior.encode is not None
    torch.testing.assert_close(prior.encode(prior.decode(u)), u, rtol=1e-3, atol=1e-3)


def test_a_prior_that_is_not_whitened_has_the_statistics_of_its_whitening(linear: ModuleType) -> None:
    package, eye = linear.trained(24, whitened=False), torch.eye(24)[..., None, None]
    whitening, prior = package.modules["whitening"], package.prior(linear.CLIMATE[0])
    S = whitening.color(whitening.color_adjoint(eye)).flatten(1)
    torch.testing.assert_close(prior.covariance.apply(eye, lambda s: s).flatten(1), S)
    torch.testing.assert_close(prior.variance.flatten(), S.diagonal())
    torch.testing.assert_close(prior.origin, package.autoencoder.encode(linear.CLIMATE[:1])[0])
    package.modules["whitening"] = diagonal = DiagonalWhitening((24, 1, 1))
    diagonal.std.copy_(torch.linspace(0.5, 2, 24)[:, None, None])
    torch.testing.assert_close(package.prior(linear.CLIMATE[0]).variance, diagonal.std**2)


def test_without_correction_it_is_optimal_interpolation_in_the_latent(linear: ModuleType) -> None:
    package, (_, H, y, R) = linear.trained(24), linear.observed()
    autoencoder, whitening = package.autoencoder, package.modules["whitening"]
    z_b = autoencoder.encode(linear.CLIMATE[:1])
    x_b = autoencoder.decode(z_b)[0].flatten().double()
    # The columns of D S^1/2, and the posterior mean of u ~ N(0, I).
    G = (autoencoder.decode(z_b + whitening.color(torch.eye(24)[..., None, None])).flatten(1).double() - x_b).T
    A = H.double() @ G
    u = torch.linalg.solve(torch.eye(24) + A.T @ (A / R.double()[:, None]), A.T @ ((y - H.double() @ x_b) / R))
    expected = (x_b + G @ u).reshape(linear.SHAPE).float()
    result = linear.analysed(package, linear.CLIMATE[0], correction=False)
    assert (result - expected).abs().max() < 1e-3
    assert (expected - x_b.reshape(linear.SHAPE)).abs().max() > 0.1


def test_without_truncation_it_is_optimal_interpolation(linear: ModuleType) -> None:
    _, H, y, R = linear.observed()
    x_a, _ = OptimalInterpolation(linear.ERRORS).analysis(linear.CLIMATE[0], H, y, R)
    analyses = {
        k: linear.analysed(linear.trained(k), linear.CLIMATE[0], correction=False) for k in (15, 60, 150, linear.SIZE)
    }
    assert (analyses[linear.SIZE] - x_a).abs().max() < 1e-3
    assert (x_a - linear.CLIMATE[0]).abs().max() > 0.1
    differences = [float((analysis - x_a).square().mean().sqrt()) for analysis in analyses.values()]
    assert all(more < 0.8 * less for less, more in itertools.pairwise(differences))
    # What 15 components cannot draw is bounded by what they discard of the background and of the increment.
    autoencoder = linear.trained(15).autoencoder
    discarded = autoencoder.decode(autoencoder.encode(x_a[None]))[0] - x_a
    assert differences[0] < 3 * float(discarded.square().mean().sqrt())


def test_an_untrained_denoiser_changes_nothing(linear: ModuleType) -> None:
    package = linear.trained()
    one, two = (linear.analysed(package, linear.CLIMATE[0], correction=correction) for correction in (True, False))
    assert torch.equal(one, two)
    assert not torch.equal(linear.analysed(linear.shaken(package), linear.CLIMATE[0], correction=True), two)
