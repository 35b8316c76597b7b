"""The covariance of trajectories, against that of the trajectories that it was fitted to."""

import pytest
import torch

from lsda_fast.errors import InputError
from lsda_fast.models import StationaryTrajectories
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
