"""The covariance of trajectories, against that of the trajectories that it was fitted to."""

from copy import deepcopy

import pytest
import torch

from lsda_fast.errors import InputError
from lsda_fast.models import StationaryTrajectories
from lsda_fast.models.stationary import _autocovariance
from tests.travelling_waves import SHAPE, dense, waves


@pytest.mark.parametrize("zonal", [True, False])
def test_covariance_is_that_of_the_trajectories(zonal, fitted):
    z = waves(4000)
    model = StationaryTrajectories(SHAPE, zonal=zonal, rank=48, lags=3).double()
    model.fit(z, [torch.arange(4000)])
    v = model.standardize(z)
    T = 4
    sample = v.unfold(0, T, 1).movedim(-1, 1).flatten(1)
    S = dense(model.covariance(T), T)
    torch.testing.assert_close(S, S.T)
    sampled = torch.cov(sample.T)
    if zonal:  # the same at every longitude
        blocks = sampled.reshape(T * 6, 8, T * 6, 8)
        sampled = torch.stack([blocks.roll((s, s), (1, 3)) for s in range(8)]).mean(0).reshape(S.shape)
    n = 48
    assert (S[:n, :n] - sampled[:n, :n]).abs().max() < 0.02
    # Modes have nothing in common at lag 0; at others the model leaves it out, and in one block that is much.
    if zonal:
        assert (S - sampled).norm() < 0.15 * sampled.norm()
    torch.testing.assert_close(S.diagonal()[:n].reshape(SHAPE), model.variance())


@pytest.mark.parametrize("T", [1, 3, 12])
def test_covariance_is_positive_consistent_and_its_functions_are_matrix_functions(fitted, T):
    model, _ = fitted
    S = dense(model.covariance(T), T)
    assert torch.linalg.eigvalsh(S).min() > 0
    # A shorter trajectory is a part of a longer one.
    torch.testing.assert_close(S, dense(model.covariance(T + 2), T + 2)[: len(S), : len(S)])
    v_t = torch.randn(2, T, *SHAPE, dtype=torch.float64)
    alpha, sigma = 0.8, 0.6
    want = alpha * S @ torch.linalg.solve(alpha**2 * S + sigma**2 * torch.eye(len(S)), v_t.flatten(1).T)
    torch.testing.assert_close(model.covariance(T).wiener(v_t, alpha, sigma).flatten(1), want.T)
    rho2 = torch.tensor([0.1, 4.0], dtype=torch.float64)
    left = [(torch.linalg.inv(torch.linalg.inv(S) + torch.eye(len(S)) / r)).trace() / len(S) for r in rho2]
    torch.testing.assert_close(model.covariance(T).spread(rho2), torch.stack(left).sqrt())


def test_a_function_from_some_times_to_some_is_a_block_of_the_whole(fitted):
    T, S = 6, fitted[0].covariance(6)
    root = lambda s: (s / (s + 0.3)).sqrt()  # noqa: E731
    f, g = S.of(root), torch.Generator().manual_seed(0)
    v = torch.randn(2, T, *SHAPE, generator=g, dtype=torch.float64)
    torch.testing.assert_close(f(v), S.apply(v, root))
    given, wanted = torch.tensor([1, 4]), torch.tensor([0, 4, 5])
    alone = torch.zeros_like(v).index_copy(1, given, v[:, given])
    whole = S.apply(alone, root)
    for _ in range(2):  # the second time with what the first has made
        torch.testing.assert_close(f.between(v[:, given], given, wanted), whole[:, wanted])
        torch.testing.assert_close(f.between(v[:, given], given), whole)
        torch.testing.assert_close(f.between(v, None, wanted), S.apply(v, root)[:, wanted])


def test_units_are_what_the_modes_leave():
    """Numbers of unlike noise: the rest is alike in their units, and the covariance is theirs."""
    generator = torch.Generator().manual_seed(3)
    shape, N = (1, 6, 1), 20_000
    pattern, noise = (
        torch.randn(6, 1, generator=generator).double(),
        torch.tensor([0.3, 0.3, 0.6, 1.0, 1.5, 3.0]).double(),
    )
    z = torch.randn(N, 1, generator=generator).double() @ pattern.T
    z = z + noise * torch.randn(N, 6, generator=generator).double()
    truth = pattern @ pattern.T + noise.square().diag()
    off = []
    for floor in (1.0, 0.01):
        model = StationaryTrajectories(shape, zonal=False, rank=1, lags=1, floor=floor).double()
        model.fit(z.reshape(N, *shape), [torch.arange(N)])
        S = dense(model.covariance(1), 1, shape) * (std := model.std.flatten()) * std[:, None]
        off.append(float((S - truth).norm() / truth.norm()))
        torch.testing.assert_close(model.variance().flatten() * std**2, truth.diag(), rtol=0.3, atol=0.05)
    assert off[1] < 0.05 < off[0]
    with pytest.raises(InputError, match="floor 2; accepted are at least 1, and a floor above 0"):
        StationaryTrajectories(shape, floor=2.0)


def test_covariance_knows_travelling_waves(fitted):
    """The lagged covariance is not symmetric in space: east is not west."""
    model, _ = fitted
    S = dense(model.covariance(2), 2).reshape(2, 6, 8, 2, 6, 8)
    east, west = S[1, :, 1, 0, :, 0].diagonal().sum(), S[1, :, -1 % 8, 0, :, 0].diagonal().sum()
    assert east > west + 0.5


def test_gaps_between_runs_weaken_nothing():
    """An autoregression with states taken out has the autocovariances of the whole."""
    generator, N, phi = torch.Generator().manual_seed(4), 40_000, 0.9
    x = torch.zeros(N, dtype=torch.float64)
    for t, e in enumerate(torch.randn(N, generator=generator, dtype=torch.float64)):
        x[t] = phi * x[t - 1] + (1 - phi**2) ** 0.5 * e if t else e
    z = x.reshape(N, 1, 1, 1)
    for every in (N + 1, 6):
        model = StationaryTrajectories((1, 1, 1), zonal=False, rank=1, lags=4).double()
        model.fit(z, [torch.tensor([t for t in run if t < N]) for run in _runs(N, every)])
        S = model.covariance(5)
        first = dense(S, 5, (1, 1, 1))[0]
        torch.testing.assert_close(first / first[0], phi ** torch.arange(5, dtype=torch.float64), atol=0.02, rtol=0)


def _runs(N, every):
    """Without one of so many."""
    return [range(first + 1, min(first + every, N)) for first in range(-1, N, every) if first + 1 < N]


@pytest.mark.parametrize(
    ("amplitudes", "expected"),
    [
        ([1.0, 2.0, 5.0, -1.0, 1.0], [32.0, (2 - 5 - 1) * 4 / 3, 5 * 3.0]),
        ([1.0, 2.0, 5.0, -1.0, 3.0], [40.0, 2 - 5 - 3, 15.0]),  # by their shares 45, more than the variance
    ],
)
def test_pairs_do_not_cross_runs_and_count_for_those_that_gaps_have_taken(amplitudes, expected):
    """Runs of 2 and 3 states: of lag 1 they have 3 of 4 pairs, of lag 2 one of 3."""
    a = torch.tensor(amplitudes, dtype=torch.complex128)[:, None]
    g = _autocovariance(a, [(0, 2), (2, 5)], 2)
    torch.testing.assert_close(g[0], torch.tensor(expected, dtype=torch.complex128) / 5)


@pytest.mark.parametrize(("reach", "alone"), [(None, False), (0.6, True)])
def test_modes_forget_rows_beyond_their_reach(reach, alone):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 1, 1, 8, generator=generator) + 0.5 * torch.randn(200, 1, 6, 8, generator=generator)
    model = StationaryTrajectories((1, 6, 8), rank=1, lags=1, reach=reach)
    model.fit(z, [torch.arange(200)])
    # Of a mode of its own a row has nearly all, of one in common with the others little.
    largest = (model.real.square() + model.imaginary.square())[..., 0].amax(-1)
    assert ((largest > 0.7) == alone).all(), largest


def test_few_states_with_gaps_leave_a_covariance():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        z = torch.randn(17, 1, 2, 1, generator=generator, dtype=torch.float64).cumsum(0)
        model = StationaryTrajectories((1, 2, 1), zonal=False, rank=2, lags=4).double()
        model.fit(z, [torch.arange(0, 5), torch.arange(5, 9), torch.arange(9, 11), torch.arange(11, 17)])
        assert torch.linalg.eigvalsh(dense(model.covariance(8), 8, (1, 2, 1))).min() > 0


def test_the_floor_is_a_share_of_the_whole_variance():
    generator = torch.Generator().manual_seed(1)
    pattern = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    z = torch.randn(5000, 1, generator=generator, dtype=torch.float64) @ pattern.T
    z = z + 1e-3 * torch.randn(5000, 6, generator=generator, dtype=torch.float64)
    model = StationaryTrajectories((1, 6, 1), zonal=False, rank=1, lags=1, floor=0.1).double()
    model.fit(z.reshape(5000, 1, 6, 1), [torch.arange(5000)])
    share = model.std.flatten() ** 2 / z.var(0, correction=0)
    torch.testing.assert_close(share, torch.full_like(share, 0.1), rtol=1e-5, atol=0)


def test_a_covariance_is_kept_until_the_statistics_change(fitted):
    model = deepcopy(fitted[0])
    first = model.covariance(6)
    assert model.covariance(6) is first
    assert model.covariance(5) is not first
    assert deepcopy(model).kept_bytes == 0 < model.kept_bytes
    with torch.no_grad():
        model.lag_real.mul_(2.0)
    assert not model.covariance(6).values.equal(first.values)


def test_a_window_without_memory_for_it_is_a_sentence(fitted):
    with pytest.raises(InputError, match=r"a window of 10000000 states takes about .* GiB for its covariance in time"):
        fitted[0].covariance(10**7)
