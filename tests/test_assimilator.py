"""The assimilator on a linear-Gaussian package: optimal interpolation, and every observation accounted for."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor

from lsda_fast.assimilator import Assimilator, NoObservationsError
from lsda_fast.baselines import OptimalInterpolation
from lsda_fast.calendar import calendar
from lsda_fast.datasets import open_states
from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError, NonFiniteError
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.guidance import GaussNewton, Huber, LatentOptimization, ObsFree, VariationalQC
from lsda_fast.models import FullWhitening, LinearAutoencoder, TransformerDenoiser
from lsda_fast.observations import ObservationOperator, Observations
from lsda_fast.package import Package

SHAPE = (3, 6, 7)
SIZE = 126
GRID = Grid(np.linspace(50.0, 40.0, 6), np.linspace(-6.0, 6.0, 7))
LAYOUT = StateLayout(GRID, (Channel("z", 500.0, "m2 s-2"), Channel("t", 850.0, "degC"), Channel("msl", None, "hPa")))
NORMALIZATION = Normalization(np.array([5.5e4, 7.0, 1010.0]), np.array([1e3, 8.0, 10.0]))
TIME = np.datetime64("2008-12-08T12", "ns")
# As many products as there are observations: the linear problem's solution. And a few, where any analysis will do.
EXACT, QUICK = (LatentOptimization(GaussNewton(outer=1, cg=cg, halvings=0)) for cg in (37, 3))
FULL = LatentOptimization(GaussNewton(outer=6, cg=37))


def correlated(count: int, length: float, seed: int) -> Tensor:
    """Fields (count, 3, 6, 7) of unit variance, correlated in space and between channels."""
    place = np.stack(np.meshgrid(np.arange(6.0), np.arange(7.0), indexing="ij"), axis=-1).reshape(-1, 2)
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
    root = np.linalg.cholesky(np.kron(0.5 + 0.5 * np.eye(3), np.exp(-distance / length)))
    noise = np.random.default_rng(seed).standard_normal((count, SIZE))
    return torch.tensor(noise @ root.T, dtype=torch.float32).reshape(-1, *SHAPE)


CLIMATE, ERRORS = correlated(300, 4.0, 0), 0.3 * correlated(300, 2.0, 1)


def linear_package(**changes: Any) -> Package:
    """A latent without truncation, the full covariance of ERRORS, and noise levels that know nothing at first."""
    autoencoder = LinearAutoencoder(SHAPE, SIZE)
    autoencoder.fit(CLIMATE)
    whitening = FullWhitening((SIZE, 1, 1))
    whitening.fit(autoencoder.encode(ERRORS) - autoencoder.encode(torch.zeros_like(ERRORS)))
    values: dict[str, Any] = {
        "layout": LAYOUT,
        "normalization": NORMALIZATION,
        "schedule": Schedule.edm(sigma_max=2000.0),
        "prediction": "wiener",
        "modules": {
            "autoencoder": autoencoder,
            "whitening": whitening,
            "denoiser": TransformerDenoiser((SIZE, 1, 1), width=8, depth=1, heads=1),
        },
        "architectures": {},
        "reconstruction_error": np.zeros(3, np.float32),
        "observation_std": {"z500": 100.0, "t850": 0.8, "msl": 1.0},
    }
    return Package(**values | changes)


PACKAGE = linear_package()


def background(**coords: Any) -> xr.Dataset:
    """A background state as a flat data set."""
    return LAYOUT.to_dataset(NORMALIZATION.denormalize(CLIMATE[0].numpy()), coords={"time": TIME} | coords)


def table(places: int = 12, **columns: Any) -> pd.DataFrame:
    """Values of a truth between grid points, every channel, in SI units, without std."""
    rng = np.random.default_rng(2)
    frame = pd.DataFrame(
        {
            "time": TIME,
            "latitude": np.repeat(rng.uniform(40, 50, places), 3),
            "longitude": np.repeat(rng.uniform(-6, 6, places), 3),
            "variable": ["z", "t", "msl"] * places,
            "level": [500.0, 850.0, np.nan] * places,
            "value": 0.0,
        }
    )
    operator = ObservationOperator.stations(Observations.from_frame(frame), LAYOUT, NORMALIZATION)
    exact = operator(CLIMATE[:1] - ERRORS[:1])[0].double().numpy()
    error = np.tile([100.0, 0.8, 100.0], places)
    return frame.assign(value=exact + error * rng.standard_normal(3 * places)).assign(**columns)


def analysed(
    frame: pd.DataFrame, package: Package = PACKAGE, guidance: LatentOptimization = QUICK, **options: Any
) -> Any:
    """The analysis by one noise level, where the conditional mean is exact."""
    run = Assimilator(package, guidance, steps=1, correction=False, block=2, **options)
    return run(background(), Observations.from_frame(frame), members=2)


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_the_mean_is_optimal_interpolation(backend: str) -> None:
    frame = table()
    result = analysed(frame, guidance=EXACT, backend=backend)
    operator = ObservationOperator.stations(Observations.from_frame(frame), LAYOUT, NORMALIZATION)
    H = torch.zeros(operator.size, SIZE).scatter_add_(1, operator.index, operator.weight)
    variance = torch.tensor(np.tile([100.0, 0.8, 100.0], 12)) ** 2  # 1 hPa is 100 Pa
    y = torch.tensor(operator.values) - operator.offset
    x_a, _ = OptimalInterpolation(ERRORS).analysis(CLIMATE[0], H, y, variance)
    mean = NORMALIZATION.normalize(LAYOUT.to_array(result.mean))
    np.testing.assert_allclose(mean, x_a, atol=2e-3)
    assert float((x_a - CLIMATE[0]).abs().max()) > 0.3
    # The departures are those of background and analysis, in the observations' units.
    for name, state in (("O-B", CLIMATE[0]), ("O-A", x_a)):
        expected = operator.values - operator(state[None])[0].double().numpy()
        scale = np.tile([1e3, 8.0, 1e3], 12)
        np.testing.assert_allclose(result.departures[name] / scale, expected / scale, atol=2e-3)


@pytest.mark.parametrize("robust", [Huber(3.0), VariationalQC(0.01, 5.0)])
def test_a_gross_error_loses_its_weight_and_is_listed(robust: Any) -> None:
    frame = table()
    frame.loc[4, "value"] += 40.0  # kelvin, at a place that other variables observe too
    spoilt, judged = analysed(frame, guidance=EXACT), analysed(frame, guidance=FULL, robust=robust)
    clean = analysed(table(), guidance=EXACT)
    assert (spoilt.departures["weight"] == 1.0).all()
    assert judged.departures["used"].all()
    assert judged.departures["weight"][4] < 0.15
    assert judged.departures["weight"].drop(4).median() > 0.9
    assert judged.downweighted >= 1
    assert judged.analysis.attrs["observation_cost"] == repr(robust)
    error = [np.abs(LAYOUT.to_array(a.mean) - LAYOUT.to_array(clean.mean))[1].max() for a in (spoilt, judged)]
    assert error[1] < 0.5 * error[0]


def test_the_analysis_fits_what_it_has_seen_better_than_the_background() -> None:
    result = Assimilator(PACKAGE)(background(), Observations.from_frame(table()), members=8, seed=1)
    departures = result.departures
    for _, part in departures.groupby("variable"):
        assert part["O-A"].abs().mean() < 0.7 * part["O-B"].abs().mean()
    # And the truth, where it has not.
    truth, x_b = CLIMATE[0] - ERRORS[0], CLIMATE[0]
    mean = torch.from_numpy(NORMALIZATION.normalize(LAYOUT.to_array(result.mean)))
    assert (mean - truth).square().mean() < 0.85 * (x_b - truth).square().mean()


@pytest.mark.parametrize("error", [0.0, 0.1, 0.3])
def test_representativeness_is_a_part_of_R(error: float) -> None:
    """One observation at a grid point: O-A = O-B R / (R + H B H'), R = std^2 + (error x spread)^2."""
    package = linear_package(reconstruction_error=np.full(3, error, np.float32))
    one = table(1).iloc[[1]].assign(latitude=GRID.latitude[2], longitude=GRID.longitude[3], std=0.8)
    B = float(ERRORS[:, 1, 2, 3].square().mean()) * 64.0
    for option, part in ((True, error), (False, 0.0)):
        row = analysed(one, package, representativeness=option).departures.iloc[0]
        R = 0.64 + 64.0 * part**2
        assert row["O-A"] / row["O-B"] == pytest.approx(R / (R + B), rel=2e-3)


def test_the_errors_of_means_leave_analyses_of_points_as_they_are() -> None:
    error = np.full(3, 0.3, np.float32)
    one, two = (
        analysed(table(4), linear_package(reconstruction_error=error, block_errors=blocks))
        for blocks in ((), (error / 2, error / 4))
    )
    xr.testing.assert_equal(one.analysis, two.analysis)


def test_defaults_of_std_are_in_the_channels_units_and_yield_to_the_tables() -> None:
    frame = table(4)
    result = analysed(frame.assign(std=[np.nan] * 9 + [50.0, 0.5, 70.0]))
    assert result.departures["std"].tolist() == pytest.approx([100.0, 0.8, 100.0] * 3 + [50.0, 0.5, 70.0])
    same = analysed(frame.assign(std=[100.0, 0.8, 100.0] * 3 + [50.0, 0.5, 70.0]))
    xr.testing.assert_equal(result.analysis, same.analysis)
    pd.testing.assert_frame_equal(result.departures, same.departures)


def test_every_row_comes_back_with_its_reason() -> None:
    frame = table(4)
    frame.loc[0, "latitude"] = 30.0
    frame.loc[1, "level"] = 300.0
    frame.loc[2, "value"] = np.nan
    frame.loc[3, "variable"] = "q"
    frame.loc[4, "time"] = TIME + np.timedelta64(4, "h")
    frame.loc[5, "time"] = pd.NaT
    frame.loc[6, "std"] = -1.0
    frame = pd.concat([frame, frame.iloc[[7, 8]]], ignore_index=True)
    result = analysed(frame.assign(station="07145"))
    # Without a window, all times are used.
    assert result.departures["used"].tolist() == [False] * 4 + [True, True, False] + [True] * 5 + [False, False]
    observations = Observations.from_frame(frame.assign(station="07145")).window(TIME, "3h", "3h")
    departures = Assimilator(linear_package(observation_std={"z500": 1.0, "t850": 1.0}), QUICK, steps=1)(
        background(), observations
    ).departures
    assert departures["observation"].tolist() == list(range(14))
    assert departures["reason"].tolist() == [
        "outside the domain",
        "level 300 hPa lies outside the model's 850..850 hPa",
        "value is missing or not finite",
        "variable q is not among the model's z, t, msl",
        "outside the window 2008-12-08T09:00..2008-12-08T15:00",
        "no time",
        "std -1 is not positive",
        "",
        "no std, and the package has no default for it",
        "",
        "",
        "no std, and the package has no default for it",
        "duplicate of observation 7",
        "duplicate of observation 8",
    ]
    assert (departures["used"] == (departures["reason"] == "")).all()
    assert departures.loc[departures["used"], ["O-B", "O-A", "weight"]].notna().all(axis=None)
    assert departures.loc[~departures["used"], ["O-B", "O-A", "weight"]].isna().all(axis=None)
    assert (departures["station"] == "07145").all()


def test_a_table_of_departures_is_a_table_of_observations() -> None:
    frame = table(4)
    frame.loc[0, "latitude"] = 30.0
    first = analysed(frame)
    second = analysed(first.departures)
    assert pd.isna(second.departures["O-B"][0])
    pd.testing.assert_frame_equal(second.departures[list(first.departures)], first.departures)


def test_nothing_to_assimilate_says_why() -> None:
    with pytest.raises(NoObservationsError, match=r"none of 36 .* most often because: outside the domain"):
        analysed(table(latitude=0.0))
    with pytest.raises(NoObservationsError, match=r"none of 0 observations can be used$"):
        analysed(table().iloc[:0])


def test_orientation_of_the_background_does_not_matter() -> None:
    run, observations = Assimilator(PACKAGE, QUICK, steps=1, block=2), Observations.from_frame(table())
    given = background()
    expected = run(given, observations, members=2, seed=3).analysis
    turned = given.assign_coords(longitude=given["longitude"] % 360)
    for changed in (
        given.sortby("latitude"),
        given.roll(longitude=3, roll_coords=True),
        turned,
        turned.sortby("longitude").sortby("latitude").transpose("longitude", "latitude"),
        given.rename(latitude="lat", longitude="lon"),
        given.expand_dims("time"),
    ):
        xr.testing.assert_identical(run(changed, observations, members=2, seed=3).analysis, expected)


def test_a_background_of_several_times_or_members_must_be_one() -> None:
    run, observations = Assimilator(PACKAGE, QUICK, steps=1, block=2), Observations.from_frame(table())
    other = background(time=TIME + np.timedelta64(6, "h"))
    both = xr.concat([background(), other.map(lambda v: v + 1.0)], "time")
    with pytest.raises(InputError, match="the data hold 2 times"):
        run(both, observations)
    chosen = run(both, observations, time="2008-12-08T12Z").analysis
    xr.testing.assert_identical(chosen, run(background(), observations).analysis)
    with pytest.raises(InputError, match="time 2008-12-09 00:00:00 is not in the data"):
        run(background(), observations, time="2008-12-09")
    with pytest.raises(InputError, match="has 2 members; accepted is one state"):
        run(background().expand_dims(member=2), observations)


def test_the_prior_is_told_the_time_of_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    prior, time = Package.prior, TIME + np.timedelta64(75, "h")

    def spy(self: Package, *arguments: Any, calendar: Any = None, **options: Any) -> Any:
        seen.append(calendar)
        return prior(self, *arguments, calendar=calendar, **options)

    monkeypatch.setattr(Package, "prior", spy)
    Assimilator(PACKAGE, QUICK, steps=1)(background(time=time), Observations.from_frame(table(4)))
    np.testing.assert_array_equal(seen[0], calendar(np.array([time])))


def test_members_keep_their_numbers_and_values() -> None:
    run, observations = Assimilator(PACKAGE, QUICK, block=4), Observations.from_frame(table())
    few = run(background(), observations, members=[9, 2], seed=5, recenter=False).analysis
    many = run(background(), observations, members=10, seed=5, recenter=False).analysis
    assert few["member"].values.tolist() == [9, 2]
    assert few["member"].attrs["standard_name"] == "realization"
    xr.testing.assert_equal(few, many.sel(member=[9, 2]))
    assert few.attrs["members_in_a_block"] == 4
    assert few.attrs["seed"] == 5
    assert "LatentOptimization" in few.attrs["settings"]


def test_members_are_parted_evenly_where_no_block_is_asked_for() -> None:
    observations = Observations.from_frame(table())
    fixed, free = Assimilator(PACKAGE, QUICK, block=8), Assimilator(PACKAGE, QUICK)
    expected = fixed(background(), observations, members=18, seed=5, recenter=False).analysis
    for members, block in ((1, 1), (6, 6), (18, 9), ([17], 1), ([9, 2], 2)):
        found = free(background(), observations, members=members, seed=5, recenter=False)
        plan = free.plan(observations=observations, members=members)
        assert found.analysis.attrs["members_in_a_block"] == plan.chunk == block
        assert found.evaluations == plan.evaluations
        few = found.analysis
        xr.testing.assert_allclose(few, expected.sel(member=few["member"]), rtol=1e-4, atol=1e-4)


def test_evaluations_are_counted_by_member() -> None:
    observations = Observations.from_frame(table())
    free = Assimilator(PACKAGE, ObsFree(), steps=5, block=4)(background(), observations, members=3)
    assert free.evaluations == {"denoiser": 5 * 4}
    inner = GaussNewton(outer=1, cg=7, halvings=0)
    guided = Assimilator(PACKAGE, LatentOptimization(inner), steps=3, block=4)(background(), observations, members=3)
    # A draw at each of three levels, and the mean at the last: each one linearisation and seven iterations.
    assert guided.evaluations["denoiser"] == 3 * 4
    assert guided.evaluations["decoder"] == 4 * 4
    assert 4 * 4 <= guided.evaluations["decoder_jvp"] <= 4 * 4 * 7
    assert guided.evaluations["decoder_vjp"] == guided.evaluations["decoder_jvp"]
    assert guided.seconds > 0


def test_decoded_members_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    package = linear_package()
    decode, calls = package.autoencoder.decode, []

    def overflow(z: Tensor) -> Tensor:
        calls.append(len(z))
        return decode(z) * (torch.inf if calls.count(1) == 3 and len(z) == 1 else 1.0)

    monkeypatch.setattr(package.autoencoder, "decode", overflow)
    with pytest.raises(NonFiniteError, match=r"members \[2\] of seed 0 are not finite"):
        Assimilator(package, ObsFree(), steps=1)(background(), Observations.from_frame(table()), members=4)


def test_saving_writes_both_files(tmp_path: Path) -> None:
    result = analysed(table(4))
    assert result.save(tmp_path / "A.nc") == (tmp_path / "A.nc", tmp_path / "A.departures.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["A.departures.csv", "A.nc"]
    read = open_states(tmp_path / "A.nc").load()
    for name in LAYOUT.names:
        assert read[name].values.tobytes() == result.analysis[name].values.tobytes()
    # Enough digits to give every number back.
    departures = pd.read_csv(tmp_path / "A.departures.csv", dtype=str)
    for name in ("value", "O-B", "O-A"):
        assert [float(cell) for cell in departures[name]] == result.departures[name].tolist()


@pytest.mark.parametrize("where", ["analysis", "departures", "folder", "suffix"])
def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    result = analysed(table(4))

    def full(self: Any, path: Any, **_: Any) -> None:
        Path(path).write_text("half of it")
        raise OSError(28, "No space left on device")

    path = tmp_path / {"folder": "deeper/A.nc", "suffix": "A.txt"}.get(where, "A.nc")
    with monkeypatch.context() as patch:
        if where in ("analysis", "departures"):
            owner, method = {"analysis": (xr.Dataset, "to_netcdf"), "departures": (pd.DataFrame, "to_csv")}[where]
            patch.setattr(owner, method, full)
        with pytest.raises((OSError, InputError)):
            result.save(path)
    assert list(tmp_path.iterdir()) == []


def test_observations_and_backgrounds_in_wrong_units_are_told() -> None:
    """One temperature in kelvin among those in degrees: rejected with its reason, and the others are what they were."""
    assimilate, state, frame = Assimilator(PACKAGE, QUICK), background(), table()
    wrong = frame.copy()
    row = int(np.flatnonzero(wrong["variable"] == "t")[0])
    wrong.loc[row, "value"] += 273.15
    result, expected = (assimilate(state, Observations.from_frame(f)) for f in (wrong, frame.drop(index=row)))
    told = result.departures.set_index("observation").loc[row]
    assert (told["used"], told["reason"]) == (False, "O-B is over 20 climatological standard deviations")
    assert np.isnan(told["O-A"])
    right = assimilate(state, Observations.from_frame(frame)).departures.set_index("observation").loc[row]
    assert told["O-B"] == pytest.approx(right["O-B"] + 273.15, abs=1e-3)
    np.testing.assert_array_equal(result.analysis["t850"], expected.analysis["t850"])
    anything = Assimilator(PACKAGE, QUICK, background_check=None)
    assert anything(state, Observations.from_frame(wrong)).departures["used"].all()
    kelvin = state.assign(t850=state["t850"] + 273.15)
    with pytest.raises(InputError, match=r"the background lies, on average, t850 3. climatological"):
        assimilate(kelvin, Observations.from_frame(frame))


def test_departures_are_checked_in_the_climates_units_however_accurate_observations_are() -> None:
    """The row that is told is the table's: others before it are not used."""
    frame = table(4, std=[1.0, 0.008, 1.0] * 4)
    frame.loc[0, "latitude"] = 30.0
    frame.loc[7, "value"] += 273.15
    told = analysed(frame).departures
    assert np.flatnonzero(~told["used"]).tolist() == [0, 7]
    assert told["reason"][7] == "O-B is over 20 climatological standard deviations"
    assert np.flatnonzero(told["O-B"].isna()).tolist() == [0]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p, b, o: Assimilator(p, "dps"), "a Package and guidance 'dps' came; accepted: a Package and a Guid"),
        (lambda p, b, o: Assimilator("runs/era"), "'runs/era' and guidance None came"),
        (lambda p, b, o: Assimilator(p)(o, b), "Observations and Dataset came; accepted: a background as xarray"),
        (lambda p, b, o: Assimilator(p)(b, o.frame), "Dataset and DataFrame came; accepted"),
        (lambda p, b, o: Assimilator(p)(b, o, members=2.5), "members = 2.5; accepted: a number from 1"),
        (lambda p, b, o: Assimilator(p)(b, o, members=10**12), "members = 1000000000000; accepted"),
        (lambda p, b, o: Assimilator(p)(b, o, seed=1.5), "seed = 1.5; accepted is a whole number"),
        (lambda p, b, o: Assimilator(p, background_check=-1.0), "background_check=-1.0; accepted: a number above 0"),
    ],
)
def test_other_types_get_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call(PACKAGE, background(), Observations.from_frame(table()))
