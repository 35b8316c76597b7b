"""Optimal interpolation against its other closed form; twin observations against their own statistics."""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from lsda_fast import twin
from lsda_fast.baselines import OptimalInterpolation
from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.observations import ObservationOperator, Observations
from lsda_fast.twin import column_observations, perturbed, twins

SHAPE = (2, 3, 4)
SIZE = 24


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Errors of correlated channels, a background, and 7 observations: errors, x_b, H, y, R."""
    generator = torch.Generator().manual_seed(0)
    normals = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    errors = (normals(100, SIZE) @ (torch.eye(SIZE) + 0.3 * normals(SIZE, SIZE))).reshape(100, *SHAPE)
    return errors, normals(*SHAPE), normals(7, SIZE), normals(7), 0.1 + normals(7).square()


def covariances() -> tuple[Tensor, Tensor]:
    """B, and A = (B^-1 + H' R^-1 H)^-1, the other form of (I - K H) B."""
    errors, _, H, _, R = problem()
    flat = errors.flatten(1)
    B = flat.T @ flat / len(flat)
    return B, torch.linalg.inv(torch.linalg.inv(B) + H.T @ (H / R[:, None]))


def test_analysis_is_the_minimum_of_the_cost() -> None:
    errors, x_b, H, y, R = problem()
    _, A = covariances()
    x_a, ensemble = OptimalInterpolation(errors).analysis(x_b, H, y, R)
    expected = x_b.flatten() + A @ (H.T @ ((y - H @ x_b.flatten()) / R))
    torch.testing.assert_close(x_a.flatten(), expected.float(), rtol=1e-5, atol=1e-5)
    assert (x_a - x_b).abs().max() > 0.1
    assert ensemble.shape == (0, *SHAPE)


def test_ensemble_has_the_analysis_error_covariance() -> None:
    errors, x_b, H, y, R = problem()
    B, A = covariances()
    x_a, ensemble = OptimalInterpolation(errors).analysis(x_b, H, y, R, members=3000)
    torch.testing.assert_close(ensemble.mean(0), x_a, rtol=0, atol=1e-5)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(A), (ensemble - x_a).flatten(1).double().T, upper=False)
    difference = white @ white.T / 3000 - torch.eye(SIZE)
    # M/2 |difference|^2 is chi-square with n (n + 1) / 2 = 300 degrees of freedom: 300 +- 5 x 600^1/2.
    assert 178 < 0.5 * 3000 * float(difference.square().sum()) < 422
    assert float(A.trace()) < 0.8 * float(B.trace())


def test_ensembles_differ_by_seed_and_by_nothing_else() -> None:
    errors, x_b, H, y, R = problem()
    oi = OptimalInterpolation(errors)
    one, two, three = (oi.analysis(x_b, H, y, R, members=4, seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_what_is_not_observed_stays_the_background() -> None:
    errors, x_b, _, _, _ = problem()
    # Channels whose errors have nothing to do with each other: each is wrong at different times.
    first = torch.tensor([1.0, 0.0])[:, None, None]
    errors = torch.cat([errors * first, errors * (1.0 - first)])
    H = torch.eye(SIZE, dtype=torch.float64)[:5]
    oi = OptimalInterpolation(errors)
    x_a, _ = oi.analysis(x_b, H, x_b.flatten()[:5] + 1.0, torch.full((5,), 0.1).double())
    assert torch.equal(x_a[1], x_b[1].float())
    assert (x_a[0] - x_b[0]).abs().max() > 0.1
    nothing, _ = oi.analysis(x_b, H[:0], torch.zeros(0), torch.zeros(0))
    assert torch.equal(nothing, x_b.float())
    useless, _ = oi.analysis(x_b, H, x_b.flatten()[:5] + 1.0, torch.full((5,), 1e12).double())
    torch.testing.assert_close(useless, x_b.float(), rtol=0, atol=1e-6)


LAYOUT = StateLayout(
    Grid(np.linspace(70.0, 10.0, 25), np.linspace(0.0, 58.0, 30)),
    (Channel("z", 500.0, "m2 s-2"), Channel("t", 850.0, "degC"), Channel("msl", None, "hPa")),
)
STD = {"z500": 100.0, "t850": 1.0, "msl": 2.0}
NORMALIZATION = Normalization(np.array([5e4, 5.0, 1010.0]), np.array([1e3, 8.0, 10.0]))


def truth() -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(LAYOUT.shape).astype(np.float32)
    return np.asarray(NORMALIZATION.denormalize(x))


def observe(fraction: float, seed: int, std: dict[str, float] = STD) -> Observations:
    time = np.datetime64("2008-12-07T12")
    return column_observations(truth(), LAYOUT, fraction=fraction, std=std, seed=seed, time=time)


@pytest.mark.parametrize(("fraction", "columns"), [(0.1, 75), (1.0, 750), (0.001, 1), (1e-9, 1)])
def test_twin_observes_every_channel_at_its_share_of_the_columns(fraction: float, columns: int) -> None:
    observations = observe(fraction, 0)
    assert len(observations) == 3 * columns
    assert len(observations.rejected) == 0
    places = observations.frame.groupby(["latitude", "longitude"])["variable"].agg(["size", "nunique"])
    assert len(places) == columns
    assert (places == 3).all().all()
    assert (observations.frame["time"] == np.datetime64("2008-12-07T12")).all()


def test_twin_errors_are_those_that_were_asked_for() -> None:
    observations = observe(1.0, 0)
    operator = ObservationOperator.stations(observations, LAYOUT, NORMALIZATION)
    assert operator.size == 2250
    x = torch.from_numpy(NORMALIZATION.normalize(truth()))[None]
    departures = (operator.values - operator(x)[0].double().numpy()) / operator.std
    for variable, std in (("z", 100.0), ("t", 1.0), ("msl", 200.0)):  # SI: 2 hPa are 200 Pa
        mine = departures[(observations.frame["variable"] == variable).to_numpy()]
        assert abs(mine.mean()) < 4 / 750**0.5
        assert mine.std() == pytest.approx(1.0, abs=4 / 1500**0.5)
        rows = observations.frame["variable"] == variable
        np.testing.assert_allclose(observations.frame.loc[rows, "std"], std)


def test_twin_observations_are_repeated_by_their_seed() -> None:
    one, two, three = (observe(0.1, seed).frame for seed in (1, 1, 2))
    assert one.equals(two)
    assert not one["latitude"].equals(three["latitude"])
    # Other shares draw other columns and errors, not a subset with the same errors.
    assert not np.isin(observe(0.2, 1).frame["value"], one["value"]).any()


def test_twin_refuses_what_it_cannot_observe() -> None:
    for fraction in (0.0, -0.1, 1.5):
        with pytest.raises(InputError, match="accepted is a share of the columns"):
            observe(fraction, 0)
    with pytest.raises(InputError, match="std has no t850, msl"):
        observe(0.1, 0, {"z500": 100.0})


def test_perturbation_is_a_scaled_difference_of_two_states() -> None:
    a, b, c = (LAYOUT.to_dataset(truth() * factor) for factor in (1.0, 3.0, 1.0))
    out = perturbed(a, b, c, 0.5)
    np.testing.assert_allclose(LAYOUT.to_array(out), truth() * (1 + 0.5 * 2 / 2**0.5), rtol=1e-5)
    np.testing.assert_allclose(LAYOUT.to_array(a), truth())


def test_a_twin_begins_at_a_perturbed_state_one_lead_before_its_truth(
    daily: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By half of a difference of two states over sqrt(2): half as large as the states vary."""
    monkeypatch.setattr(twin, "forecast", lambda _, initial: initial)
    states = daily.REGION["t850"]
    package: Any = SimpleNamespace(lead_hours=24.0, provenance={"configuration": {"background": {"perturbation": 0.5}}})
    squares: list[xr.DataArray] = []
    for case in twins(package, daily.REGION, ("2001-02-01", "2001-10-20"), 40):
        before = states.sel(time=case.truth["time"] - np.timedelta64(1, "D"))
        assert case.background["time"] == before["time"]
        squares.append((case.background["t850"] - before) ** 2)
    found = np.sqrt(xr.concat(squares, "case").mean())
    assert float(found) == pytest.approx(0.5 * float(np.sqrt(states.var("time").mean())), rel=0.2)
