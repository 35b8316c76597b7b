"""Scores against closed forms, and `verify` on real reanalyses."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import norm, wasserstein_distance

from lsda_fast import verification as V
from lsda_fast.errors import InputError
from lsda_fast.members import recentred
from lsda_fast.scores import ENSEMBLES

DATA = Path(os.environ.get("LSDA_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
ONE = np.ones(1)


def weights(H: int) -> np.ndarray:
    cosine = np.cos(np.deg2rad(np.linspace(90, -90, H)))
    return cosine / cosine.mean()


@pytest.mark.parametrize(("y", "sigma"), [(0.0, 1.0), (1.3, 0.7), (-4.0, 2.0)])
def test_crps_of_a_gaussian_is_its_closed_form(y, sigma):
    # Quantiles at (m + 1/2) / M stand for a very large ensemble without its sampling noise.
    members = sigma * norm.ppf((np.arange(4000) + 0.5) / 4000)
    z = y / sigma
    exact = sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert V.crps(members[:, None, None, None], np.full((1, 1, 1), y), ONE)[0] == pytest.approx(exact, rel=1e-3)


def test_crps_is_the_double_sum_over_pairs():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 2, 3, 4)), random.normal(size=(2, 3, 4))
    w = np.array([0.5, 1.0, 1.5])
    pairs = np.abs(x[:, None] - x[None]).sum((0, 1)) / (2 * 5 * 4)
    expected = ((np.abs(x - y).mean(0) - pairs) * w[:, None]).mean((1, 2))
    np.testing.assert_allclose(V.crps(x, y, w), expected, rtol=1e-12)


def test_fair_crps_does_not_depend_on_the_number_of_members():
    random = np.random.default_rng(1)
    expected = 1 / np.sqrt(np.pi)  # truth and members from the same N(0, 1)
    for M in (2, 3, 10):
        found = V.crps(random.normal(size=(M, 1, 1, 200_000)), random.normal(size=(1, 1, 200_000)), ONE)[0]
        assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("M", [2, 4, 8])
@pytest.mark.parametrize("kind", ENSEMBLES)
def test_an_ensemble_of_any_kind_scores_as_independent_draws_do(kind, M):
    """Of a Gaussian posterior that the truth is drawn from too: CRPS 1 / sqrt(pi) of its spread, spread as large."""
    random = np.random.default_rng(0)
    draws = torch.from_numpy(random.normal(size=(M, 1, 1, 200_000)))
    if "pairs" in kind:
        draws[1::2] = -draws[::2]
    if "recentred" in kind:
        draws = recentred(draws, [torch.zeros(1, 1, 200_000)] * M, range(M), antithetic="pairs" in kind)
    truth = random.normal(size=(1, 1, 200_000))
    assert V.crps(draws, truth, ONE, kind=kind)[0] == pytest.approx(np.pi**-0.5, rel=0.01)
    assert V.spread_skill(draws, truth, ONE, kind=kind)[0] == pytest.approx(1, rel=0.01)
    table = V.Scores(["a"], ONE, kind=kind).add(draws, truth).table()
    assert table.loc["a", "crps"] == V.crps(draws, truth, ONE, kind=kind)[0]
    assert table.loc["a", "spread_skill"] == pytest.approx(V.spread_skill(draws, truth, ONE, kind=kind)[0])
    if "pairs" in kind:
        assert V.crps(draws, truth, ONE)[0] < 0.98 * np.pi**-0.5


@pytest.mark.parametrize("members", [[0, 1, 2], [4, 0, 2, 1, 3], [0, 2, 4], [1, 2, 3, 7]])
def test_members_without_their_opposite_among_pairs(members):
    """In any order; as an analysis says what its members are."""
    random = np.random.default_rng(0)
    pairs = random.normal(size=(4, 400, 500))
    draws = np.stack([(-1) ** (m % 2) * pairs[m // 2] for m in members])
    space = {"latitude": np.linspace(1, -1, 400), "longitude": np.linspace(0, 50, 500)}
    analysis = xr.Dataset({"t500": (("member", *space), draws)}, {"member": members, **space})
    analysis = analysis.assign_attrs(ensemble="opposite pairs", ensemble_size=len(members))
    truth = xr.Dataset({"t500": (tuple(space), random.normal(size=(400, 500)))}, space)
    table = V.verify(analysis, truth).loc["t500"]
    assert table["crps"] == pytest.approx(np.pi**-0.5, rel=0.01)
    assert table["spread_skill"] == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize(("chosen", "kind"), [
    (range(16), {"kind": "recentred opposite pairs", "alone": 0}),
    ([0, 2, 4], {"kind": "independent", "alone": 0}),
    ([0, 1, 2, 3], {"kind": "opposite pairs", "alone": 0}),
    ([0, 1, 4], {"kind": "opposite pairs", "alone": 1}),
])  # fmt: skip
def test_a_choice_of_recentred_members_is_draws(chosen, kind):
    random = np.random.default_rng(0)
    draws = torch.from_numpy(random.normal(size=(16, 400, 500)))
    draws[1::2] = -draws[::2]
    draws = recentred(draws, [torch.zeros(400, 500)] * 16, range(16), antithetic=True)
    space = {"latitude": np.linspace(1, -1, 400), "longitude": np.linspace(0, 50, 500)}
    analysis = xr.Dataset({"t500": (("member", *space), draws.numpy())}, {"member": range(16), **space})
    analysis = analysis.assign_attrs(ensemble="recentred opposite pairs", ensemble_size=16).sel(member=list(chosen))
    assert V.kind_of(analysis) == kind
    truth = xr.Dataset({"t500": (tuple(space), random.normal(size=(400, 500)))}, space)
    table = V.verify(analysis, truth).loc["t500"]
    # Members are draws up to the factor that makes the variance of all of them right.
    assert table["crps"] == pytest.approx(np.pi**-0.5, rel=0.02)
    assert table["spread_skill"] == pytest.approx(1, rel=0.04)


@pytest.mark.parametrize(("kind", "M", "sentence"), [
    ("opposite pairs", 3, "3 members came in pairs of opposite noise"),
    ("twins", 2, "an ensemble of kind 'twins' came; accepted: independent, opposite pairs"),
])  # fmt: skip
def test_kinds_of_ensembles_that_cannot_be(kind, M, sentence):
    with pytest.raises(InputError, match=sentence):
        V.crps(np.zeros((M, 1, 1, 2)), np.zeros((1, 1, 2)), ONE, kind=kind)


def test_crps_of_one_member_is_the_mean_absolute_error():
    random = np.random.default_rng(2)
    x, y = random.normal(size=(2, 3, 4)), random.normal(size=(2, 3, 4))
    np.testing.assert_array_equal(V.crps(x[None], y, np.ones(3)), V.mae(x, y, np.ones(3)))


def test_wasserstein_is_the_library_s_of_every_member_averaged():
    random = np.random.default_rng(3)
    x, y = random.normal(size=(3, 4, 2, 5, 6)), random.normal(1.0, 2.0, size=(4, 2, 5, 6))
    y[0, 1, 2, 3] = np.nan
    present = np.isfinite(y[:, 1])
    expected = [
        np.mean([wasserstein_distance(m[:, c][keep], y[:, c][keep]) for m in x])
        for c, keep in ((0, np.full(present.shape, True)), (1, present))
    ]
    np.testing.assert_allclose(V.wasserstein(x, y), expected, rtol=1e-12)
    # Where values are does not matter, a shift of all is the distance.
    assert V.wasserstein(x[:1] + 2.0, x[0, ::-1, :, ::-1])[0] == pytest.approx(2.0)
    scores = V.Scores(["a", "b"], np.ones(5), [2.0, 4.0]).add(x, y).add(x, y + 1).table()["wasserstein"]
    both = (V.wasserstein(x, y) + V.wasserstein(x, y + 1)) / 2
    np.testing.assert_allclose(scores, [*both, (both / [2.0, 4.0]).mean()])


def test_scores_by_lead_are_those_of_each_state():
    random = np.random.default_rng(4)
    x, y, w, std = random.normal(size=(3, 4, 2, 5, 6)), random.normal(size=(4, 2, 5, 6)), weights(5) + 0.1, [2.0, 4.0]
    table = V.by_lead(x, y, w, std)
    assert table.shape == (4, 4)
    np.testing.assert_allclose(table["crps"].loc[2], V.crps(x[:, 2], y[2], w) / std)
    np.testing.assert_allclose(table["rmse"].loc[3], V.rmse(x[:, 3].mean(0), y[3], w) / std)
    pairs = np.stack([x[0], -x[0]])
    opposite = V.by_lead(pairs, y, w, std, kind="opposite pairs")
    np.testing.assert_allclose(opposite["crps"].loc[1], V.crps(pairs[:, 1], y[1], w, kind="opposite pairs") / std)


def test_a_polar_error_counts_less_than_one_at_the_equator():
    w, truth = weights(5), np.zeros((1, 5, 8))
    pole, equator = truth.copy(), truth.copy()
    pole[:, 0], equator[:, 2] = 1, 1
    assert V.rmse(pole, truth, w)[0] < 1e-7
    # cosines of 90, 45, 0, -45, -90 degrees: the equator has the share 1 / (1 + sqrt 2)
    assert V.rmse(equator, truth, w)[0] == pytest.approx((1 + 2**0.5) ** -0.5)
    assert V.rmse(truth + 1, truth, w)[0] == pytest.approx(1)
    assert V.bias(-equator, truth, w)[0] == pytest.approx(-1 / (1 + 2**0.5))


def test_an_exchangeable_truth_gives_spread_skill_one_and_a_flat_rank_histogram():
    draws = 3 * np.random.default_rng(3).normal(size=(6, 2, 40, 500))
    x, y, w = draws[:5], draws[5], weights(40)
    np.testing.assert_allclose(V.spread_skill(x, y, w), 1, rtol=0.02)
    np.testing.assert_allclose(V.spread(x, w), 3, rtol=0.02)
    ranks = V.rank_histogram(x, y, w)
    np.testing.assert_allclose(ranks.sum(1), 1)
    np.testing.assert_allclose(ranks, 1 / 6, rtol=0.08)


def test_rank_histogram_counts_from_below_and_shares_ties():
    x = np.array([1.0, 2.0, 2.0]).reshape(3, 1, 1, 1) * np.ones((3, 1, 1, 2))
    y = np.array([2.0, 5.0]).reshape(1, 1, 2)
    np.testing.assert_allclose(V.rank_histogram(x, y, ONE)[0], [0, 1 / 6, 1 / 6, 1 / 6 + 1 / 2])


def test_ranks_count_by_area_where_there_is_a_truth():
    y = np.array([[[-1.0, -1.0], [1.0, 1.0], [np.nan, np.nan]]])
    ranks = V.rank_histogram(np.zeros((1, 1, 3, 2)), y, np.array([1.0, 3.0, 5.0]))
    np.testing.assert_allclose(ranks[0], [0.25, 0.75])


def test_an_aggregate_averages_squares():
    scores = V.Scores(["a"], ONE, std=[2.0])
    truth = np.zeros((1, 1, 1))
    table = scores.add(truth[None] + 3, truth).add(truth[None] + 4, truth).table()
    assert table.loc["a", "rmse"] == pytest.approx(np.sqrt((9 + 16) / 2))
    assert table.loc["normalized", "rmse"] == pytest.approx(np.sqrt((9 + 16) / 2) / 2)
    assert table.loc["a", "bias"] == table.loc["a", "crps"] == table.loc["a", "mae"] == pytest.approx(3.5)
    assert np.isnan(table.loc["a", "spread"])
    assert table.attrs == {"cases": 2, "members": 1}


def test_cases_one_by_one_give_what_the_functions_give_at_once():
    random = np.random.default_rng(4)
    w, x = weights(6), random.normal(size=(4, 7, 3, 6, 5)) + 2e5
    y = random.normal(size=(7, 3, 6, 5)) * [[[1.0]], [[2.0]], [[5.0]]] + 2e5
    y[2, 1, 3] = np.nan
    scores = V.Scores(["a", "b", "c"], w)
    for k in range(7):
        scores.add(x[:, k], y[k])
    table, mean = scores.table(), x.mean(0)
    for name, expected in {
        "rmse": V.rmse(mean, y, w),
        "bias": V.bias(mean, y, w),
        "mae": V.mae(mean, y, w),
        "crps": V.crps(x, y, w),
        "spread_skill": V.spread_skill(x, y, w),
    }.items():
        np.testing.assert_allclose(table[name][:3], expected, rtol=1e-9)
    area = np.where(np.isfinite(y), w[:, None], 0)
    centre = (np.nan_to_num(y) * area).sum((0, 2, 3)) / area.sum((0, 2, 3))
    square = np.nan_to_num((y - centre[:, None, None]) ** 2)
    std = np.sqrt((square * area).sum((0, 2, 3)) / area.sum((0, 2, 3)))
    assert table.loc["normalized", "rmse"] == pytest.approx(V.normalized_rmse(mean, y, w, std), rel=1e-9)


def test_the_normalized_row_has_each_channel_in_units_of_its_std():
    random = np.random.default_rng(0)
    x, y, std = random.normal(size=(4, 2, 5, 6)), random.normal(size=(2, 5, 6)) + 1, np.array([2.0, 5.0])
    table = V.Scores(["a", "b"], np.ones(5), std).add(x, y).table()
    scaled, row = table[:2].div(std, axis=0), table.loc["normalized"]
    for name in ("bias", "mae", "crps", "wasserstein"):
        assert row[name] == pytest.approx(scaled[name].mean()), name
    for name in ("rmse", "spread"):
        assert row[name] == pytest.approx(np.sqrt((scaled[name] ** 2).mean())), name
    assert row["spread_skill"] == pytest.approx(np.sqrt(5 / 4) * row["spread"] / row["rmse"])


def test_members_of_one_number_are_not_one(states):
    chosen = states.isel(time=0, drop=True)
    two = xr.concat([chosen, chosen], "member").assign_coords(member=[0, 0])
    two.attrs["ensemble"], two.attrs["ensemble_size"] = "recentred pairs", 1
    with pytest.raises(InputError, match="member 0 is there more than once; accepted are members of different numbers"):
        V.verify(two, chosen)


def test_a_time_counts_once(states):
    chosen = states.isel(time=[0, 1, 1])
    with pytest.raises(InputError, match=r"the analysis has the time .* twice; accepted is each once"):
        V.verify(chosen, states)


def test_bad_input_is_named():
    y = np.zeros((1, 2, 2))
    x = np.zeros((3, 1, 2, 2))
    x[1, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"members \[1\] are not finite at 1 places"):
        V.crps(x, y, np.ones(2))
    with pytest.raises(InputError, match=r"shapes \(1, 2, 2\), \(1, 2, 2\), weights \(3,\) came"):
        V.rmse(y, y, np.ones(3))
    with pytest.raises(InputError, match="one member came"):
        V.spread(x[:1], np.ones(2))
    with pytest.raises(InputError, match="2 members, the cases before had 1"):
        V.Scores(["a"], np.ones(2)).add(y[None], y).add(np.stack([y, y]), y)
    with pytest.raises(InputError, match="no case"):
        V.Scores(["a"], np.ones(2)).table()


def test_the_bootstrap_interval_covers_the_true_ratio():
    random = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        common = random.normal(1, 0.2, size=80)
        a, b = 0.9 * common + random.normal(0, 0.1, 80), common + random.normal(0, 0.1, 80)
        true = np.sqrt((0.81 * 1.04 + 0.01) / (1.04 + 0.01))
        ratio, low, high = V.paired_bootstrap(a, b, block=1, samples=300, seed=trial)
        assert low <= ratio <= high
        hits += low <= true <= high
    assert 0.82 <= hits / 200 <= 0.97


def test_the_bootstrap_pairs_its_dates_and_widens_with_the_block():
    random = np.random.default_rng(6)
    b = random.uniform(1, 3, 60)
    np.testing.assert_allclose(V.paired_bootstrap(0.5 * b, b), 0.5)
    slow = np.repeat(random.normal(1, 0.3, 12), 10)
    width = [np.ptp(V.paired_bootstrap(slow, np.ones(120), block=block)[1:]) for block in (1, 10)]
    assert width[1] > 1.8 * width[0]
    with pytest.raises(InputError, match="same length"):
        V.paired_bootstrap([1, 2], [1, 2, 3])


def test_blocks_of_the_bootstrap_are_a_third_root_long_and_go_round():
    a, b = np.random.default_rng(0).uniform(1, 3, 27), np.ones(27)
    found = V.paired_bootstrap(a, b, seed=4)
    assert found == V.paired_bootstrap(a, b, block=3, seed=4)
    assert found != V.paired_bootstrap(a, b, block=1, seed=4)
    # As long as the series and from wherever it begins, a block has all of it.
    whole = V.paired_bootstrap(a, b, block=27)
    np.testing.assert_allclose(whole, whole.ratio)


@pytest.fixture(scope="module")
def states():
    file = DATA / "gridded" / "era_interim_western_europe_2000_2008.nc"
    if not file.is_file():
        pytest.skip(f"{file.name} is not here; LSDA_SHARED names the folder of shared data")
    with xr.open_dataset(file) as dataset:
        return dataset.sel(time="2008").load()


def test_persistence_over_a_real_year_has_the_known_errors(states):
    yesterday = states.assign_coords(time=states.time + np.timedelta64(1, "D")).isel(time=slice(0, -1))
    # Other order of the rows, names of the dimensions and units, and a truth that covers more times.
    twisted = yesterday.isel(latitude=slice(None, None, -1)).rename(latitude="lat", longitude="lon")
    twisted["msl"] = (twisted["msl"] / 100).assign_attrs(states["msl"].attrs, units="hPa")
    table = V.verify(twisted[["msl", "z500"]], states)
    assert list(table.index) == ["z500", "msl", "normalized"]
    assert table.attrs == {"cases": 365, "members": 1}
    cosine = np.cos(np.deg2rad(states.latitude.astype(float)))
    steps = (states.astype(float).diff("time") ** 2).weighted(cosine).mean()
    for name in ("z500", "msl"):
        assert table.loc[name, "rmse"] == pytest.approx(float(np.sqrt(steps[name])), rel=1e-4)
    assert 500 < table.loc["z500", "rmse"] < 750
    one = V.verify(yesterday[["z500"]].isel(time=3), states)
    assert one.attrs["cases"] == 1
    part = V.verify(states.isel(latitude=slice(2, 6), time=[5]), states)
    assert (part["rmse"][:3] == 0).all()


def test_an_ensemble_of_real_states_gives_what_the_functions_give(states):
    members = xr.concat([states.isel(time=slice(k, k + 4)).drop_vars("time") for k in (10, 20, 30)], "member")
    truth = states.isel(time=slice(40, 44))
    table = V.verify(members.assign_coords(time=truth.time), truth)
    w = np.cos(np.deg2rad(truth.latitude.values.astype(float)))
    x, y = members["t850"].values[:, :, None], truth["t850"].values[:, None]
    assert table.loc["t850", "crps"] == pytest.approx(V.crps(x, y, w)[0], rel=1e-5)
    assert table.loc["t850", "spread_skill"] == pytest.approx(V.spread_skill(x, y, w)[0], rel=1e-5)
    assert table.attrs == {"cases": 4, "members": 3}


def test_channels_that_are_written_as_missing_are_not_scored():
    """As an analysis of a package without them is, on levels."""
    level, space = [500.0, 300.0], {"latitude": [10.0, 0.0, -10.0], "longitude": [0.0, 10.0]}
    values = np.random.default_rng(0).standard_normal((2, 2, 3, 2))
    truth = xr.Dataset({"q": (("time", "level", *space), values)}, {"time": [0, 1], "level": level, **space})
    truth["time"] = np.array(["2001-01-01", "2001-01-02"], "datetime64[ns]")
    analysis = truth + 1.0
    analysis["q"].loc[{"level": 300.0}] = np.nan
    table = V.verify(analysis, truth)
    assert list(table.index) == ["q500", "normalized"]
    assert table.loc["q500", "rmse"] == pytest.approx(1.0)
    # What is missing at one time alone is an error.
    analysis["q"].loc[{"level": 300.0, "time": "2001-01-02"}] = 1.0
    with pytest.raises(InputError, match="not finite"):
        V.verify(analysis, truth)
    with pytest.raises(InputError, match="the analysis has not one value of q500, q300; accepted are complete fields"):
        V.verify(truth * np.nan, truth)


def test_verify_refuses_what_it_cannot_pair(states):
    first = states.isel(time=slice(0, 3))
    with pytest.raises(InputError, match="lacks 2 of 3 analysis times, first 2008-01-02"):
        V.verify(first, states.isel(time=[0]))
    with pytest.raises(InputError, match="nothing in common"):
        V.verify(first[["msl"]], first[["z500"]])
    with pytest.raises(InputError, match="the truth has 2 members"):
        V.verify(first, xr.concat([first, first], "member"))
    with pytest.raises(InputError, match="both need them"):
        V.verify(first, first.isel(time=0, drop=True))
