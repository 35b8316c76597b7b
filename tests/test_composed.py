"""The score of a trajectory composed from windows, against the closed form of a linear-Gaussian Markov chain."""

import numpy as np
import pytest
import torch

from lsda_fast.errors import InputError
from lsda_fast.prior import Derivative
from lsda_fast.trajectory import Composed, Window

PHI = {1: [0.9], 2: [1.3, -0.5]}


def chain(order: int, T: int) -> torch.Tensor:
    """Covariance (T, T) of T states of a stationary autoregression of unit innovations."""
    phi = PHI[order]
    spectrum = (
        1 / np.abs(1 - sum(f * np.exp(-2j * np.pi * np.arange(4096) / 4096 * (j + 1)) for j, f in enumerate(phi))) ** 2
    )
    g = torch.from_numpy(np.fft.ifft(spectrum).real)
    lag = torch.arange(T)
    return g[(lag[:, None] - lag).abs()]


def score(S: torch.Tensor, sigma: float, z_t: torch.Tensor) -> torch.Tensor:
    """Of N(0, S + sigma^2) at z_t (..., T)."""
    return -torch.linalg.solve(S + sigma**2 * torch.eye(len(S)), z_t[..., None])[..., 0]


def composition_error(order: int, k: int, sigma: float, T: int = 24) -> float:
    """Largest error of the composed score of a chain, at random points of the noised trajectory."""
    S, size = chain(order, T), 2 * k + 1
    noise = torch.randn(4, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z_t = noise @ torch.linalg.cholesky(S + sigma**2 * torch.eye(T)).T
    composed = Composed(lambda windows, _: score(chain(order, size), sigma, windows), size, chunk=12)
    return float((composed(z_t) - score(S, sigma, z_t)).abs().max())


@pytest.mark.parametrize("order", PHI)
def test_composed_score_of_a_chain_is_exact_without_noise_from_its_order_on(order):
    assert composition_error(order, order, 1e-6) < 1e-9
    assert composition_error(order, order + 1, 1e-6) < 1e-9
    if order > 1:
        assert composition_error(order, order - 1, 1e-6) > 0.1


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_composed_score_improves_with_the_window_and_is_exact_when_that_is_all(sigma):
    errors = [composition_error(1, k, sigma, T=15) for k in (1, 3, 5, 7)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    assert errors[3] < 1e-12


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_composition_and_its_derivative_do_not_depend_on_the_chunks(chunk):
    torch.manual_seed(0)
    W = torch.randn(5 * 3, 5 * 3, dtype=torch.float64)

    def estimate(windows: torch.Tensor, first: int) -> torch.Tensor:
        return torch.sin(windows.flatten(2) @ W).unflatten(2, (5, 3)) + first

    z, v, u = torch.randn(3, 2, 9, 3, dtype=torch.float64)
    whole = Composed(lambda windows, _: estimate(windows, 0), 5, 1000)
    parts = Composed(lambda windows, _: estimate(windows, 0), 5, chunk)
    want, got = Derivative.of(whole.__call__, z), parts.derivative(z)
    torch.testing.assert_close(got.value, parts(z))
    for a, b in ((got.value, want.value), (got.jvp(v), want.jvp(v)), (got.vjp(u), want.vjp(u))):
        torch.testing.assert_close(a, b)
    # Each part is told where it begins.
    numbers = Composed(lambda windows, first: torch.zeros_like(windows) + first, 5, chunk)(z)[0, 2:-2, 0]
    assert (numbers.diff() >= 0).all()
    assert numbers[-1] == {1: 4, 4: 4, 64: 0}[chunk]


def test_windows_say_what_they_accept():
    with pytest.raises(InputError, match="odd size"):
        Window(4, 6.0)
    with pytest.raises(InputError, match="a trajectory of 4 states; accepted are at least the window's 5"):
        Window(5, 6.0).check(4)
