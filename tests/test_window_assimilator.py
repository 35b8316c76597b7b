"""Windows on xarray: the closed-form posterior in space and time, every observation accounted for, the program."""

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from lsda_fast import cli
from lsda_fast.analysis import departure_table
from lsda_fast.calendar import calendar
from lsda_fast.datasets import open_states
from lsda_fast.degradations import Degradation
from lsda_fast.diffusion import Schedule
from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.guidance import GaussNewton, LatentOptimization, Likelihood
from lsda_fast.models import AUTOENCODERS, WINDOWS, StationaryTrajectories, build
from lsda_fast.observations import ObservationOperator, Observations
from lsda_fast.observations.averages import blocks, field_averages, observing
from lsda_fast.observations.fields import field_observations
from lsda_fast.observations.trajectory import at_times, trajectory_stations
from lsda_fast.package import Architecture, Package
from lsda_fast.trajectory import Window
from lsda_fast.window_assimilator import WindowAssimilator, window_times

GRID = Grid(np.linspace(50.0, 40.0, 6), np.linspace(-6.0, 6.0, 7))
LAYOUT = StateLayout(GRID, (Channel("t", 850.0, "K"), Channel("olr", None, "W m-2")))
SHAPE = LAYOUT.shape
NORMALIZATION = Normalization(np.array([280.0, 240.0]), np.array([8.0, 30.0]))
WINDOW = ("2002-01-01T00", "2002-01-02T06")
TIMES = pd.date_range(*WINDOW, freq="6h")
T = len(TIMES)
STD = {"t850": 0.8, "olr": 5.0}


def independent_package(**changes: Any) -> Package:
    """Every number of every state N(0, 1) by itself, and a latent that is the state."""
    schedule = Schedule.edm(sigma_max=2000.0)
    low, high = schedule.sigma_min ** (1 / 7), schedule.sigma_max ** (1 / 7)
    wiener = lambda z, t: z / (1.0 + (low + t * (high - low)) ** 14)[:, None, None, None, None]  # noqa: E731
    return Package.from_modules(
        encoder=lambda x: x, decoder=lambda z: z, denoiser=wiener, latent_shape=SHAPE, prediction="x0",
        schedule=schedule, observation_std=STD,
        **{"window": Window(5, 6.0), "layout": LAYOUT, "normalization": NORMALIZATION} | changes,
    )  # fmt: skip


def stations(places: int = 12) -> pd.DataFrame:
    """Both variables at places and times of their own, between grid points and states."""
    rng = np.random.default_rng(2)
    hours = rng.uniform(0, 30, places).round(2)
    return pd.DataFrame(
        {
            "time": np.repeat(TIMES[0] + pd.to_timedelta(hours, "h"), 2),
            "latitude": np.repeat(rng.uniform(40, 50, places), 2),
            "longitude": np.repeat(rng.uniform(-6, 6, places), 2),
            "variable": ["t", "olr"] * places,
            "level": [850.0, np.nan] * places,
            "value": np.tile([280.0, 240.0], places) + np.tile([8.0, 30.0], places) * rng.standard_normal(2 * places),
        }
    )


def run_of_a_model() -> xr.Dataset:
    values = np.random.default_rng(3).standard_normal((T, *SHAPE))
    return LAYOUT.to_dataset(NORMALIZATION.denormalize(values), dims=("time",), coords={"time": TIMES.to_numpy()})


def analysed(observations: Observations, **options: Any) -> Any:
    """By one noise level, where the conditional mean is exact."""
    exact = LatentOptimization(GaussNewton(outer=1, cg=60, halvings=0))
    run = WindowAssimilator(independent_package(), exact, steps=1, block=2)
    return run(observations, members=2, **{"window": WINDOW} | options)


def test_the_mean_is_optimal_interpolation_in_space_and_time(tmp_path: Path) -> None:
    frame = stations()
    late = frame.iloc[:1].assign(time=TIMES[-1] + pd.Timedelta("1h"))
    observations = Observations.from_frame(pd.concat([frame, late], ignore_index=True))
    result = analysed(observations, background=run_of_a_model())
    operator = trajectory_stations(Observations.from_frame(frame, STD), LAYOUT, NORMALIZATION, TIMES)
    n = T * int(np.prod(SHAPE))
    H = torch.zeros(operator.size, n).scatter_add_(1, operator.index, operator.weight)
    R = torch.tensor(operator.std, dtype=torch.float32) ** 2
    innovation = torch.tensor(operator.values, dtype=torch.float32) - operator.offset
    x_a = (H.T @ torch.linalg.solve(H @ H.T + R.diag(), innovation)).reshape(T, *SHAPE)
    mean = NORMALIZATION.normalize(LAYOUT.to_array(result.mean))
    np.testing.assert_allclose(mean, x_a, atol=2e-3)
    assert float(x_a.abs().max()) > 0.5
    assert dict(result.analysis.sizes) == {"time": T, "member": 2, "latitude": 6, "longitude": 7}
    np.testing.assert_array_equal(result.analysis["time"], TIMES)
    # Every row has its departures, or its reason.
    table = result.departures
    assert table["used"].tolist() == [True] * 24 + [False]
    assert table["reason"].iloc[-1] == "outside the window 2002-01-01T00:00..2002-01-02T06:00"
    x_b = torch.from_numpy(NORMALIZATION.normalize(LAYOUT.to_array(result.background))).flatten(0, 1)
    for name, x in (("O-B", x_b), ("O-A", x_a.flatten(0, 1))):
        departure = operator.values - operator(x[None])[0].numpy()
        np.testing.assert_allclose(table[name][:-1], departure, atol=0.05)
    saved = result.save(tmp_path / "A.nc")
    assert [path.name for path in saved] == ["A.nc", "A.departures.csv"]
    assert dict(open_states(saved[0]).sizes) == dict(result.analysis.sizes)


def test_without_a_background_there_is_no_o_b(tmp_path: Path) -> None:
    result = analysed(Observations.from_frame(stations()))
    assert result.background is None
    assert result.departures["O-B"].isna().all()
    assert result.departures["O-A"].notna().all()
    with pytest.raises(InputError, match="accepted is one of a background"):
        _ = result.before
    pytest.importorskip("matplotlib")
    page = result.report(tmp_path).read_text()
    # Maps of either variable, departures of all times and by time.
    assert page.count("<img") == 4
    assert {path.stem for path in tmp_path.glob("*.png")} == {"t850", "olr", "departures", "departures_in_time"}


def test_gridded_fields_are_observed_where_they_have_values() -> None:
    fields = run_of_a_model()[["olr"]].isel(time=[0, 2])
    fields["olr"].values[1, 2, 3] = np.nan
    table = Observations.joined(Observations.from_frame(stations(3)), field_observations(fields))
    assert table.frame["observation"].is_unique
    result = analysed(table)
    departures = result.departures
    assert len(departures) == 6 + 2 * 42
    assert departures["reason"][~departures["used"]].tolist() == ["value is missing or not finite"]
    pixel = departures[departures["observation"] == 6 + 42 + 2 * 7 + 4].iloc[0]
    assert (pixel["time"], pixel["latitude"], pixel["longitude"]) == (TIMES[2], GRID.latitude[2], GRID.longitude[4])
    assert pixel["value"] == pytest.approx(float(fields["olr"][1, 2, 4]))
    assert pixel["std"] == 5.0
    with pytest.raises(InputError, match="have no time"):
        field_observations(fields.isel(time=0, drop=True))


def test_of_fields_only_the_period_is_read_at_the_times_of_training() -> None:
    fields = run_of_a_model()[["olr"]].assign(mask=(("latitude", "longitude"), np.ones(SHAPE[1:])))
    period = TIMES[2], TIMES[3]
    table = field_observations(fields, period=period, shift_hours={"olr": 6.0, "t850": 99.0})
    assert table.frame["variable"].unique().tolist() == ["olr"]  # a mask has no time
    assert pd.DatetimeIndex(table.frame["time"].unique()).tolist() == list(period)
    first = table.frame["time"] == period[0]
    np.testing.assert_allclose(table.frame["value"][first], fields["olr"][1].values.ravel(), rtol=1e-6)
    with pytest.raises(InputError, match=r"the fields to observe are of .* accepted are some of 2003-01-01"):
        field_observations(fields, period=(pd.Timestamp("2003-01-01"), pd.Timestamp("2003-01-02")))


def test_an_operators_fill_values_and_gross_errors_have_their_reasons() -> None:
    truth = LAYOUT.to_array(run_of_a_model())
    operator = at_times(field_averages(SHAPE, NORMALIZATION, blocks(SHAPE[1:], 3)), [0], T)
    values = operator(torch.from_numpy(NORMALIZATION.normalize(truth)).flatten(0, 1)[None].float())[0].numpy().copy()
    values[:3] = -9.99e9, 9999.0, 400.0
    masked = np.ma.masked_array(values, mask=np.arange(len(values)) == 3)
    table = analysed(None, operator=observing(operator, masked, 1.0), background=run_of_a_model()).departures
    assert table["reason"].tolist()[:5] == [
        "value -9.99e+09 is a fill value",
        "value 9999 is a fill value",
        "",
        "missing in the observed field",
        "",
    ]
    assert table["used"].sum() == len(values) - 3
    values[2] = 280.0 + 25 * 8.0
    found = analysed(Observations.from_frame(stations(3)), operator=observing(operator, values, 1.0),
                     background=run_of_a_model()).departures  # fmt: skip
    assert found["reason"][6 + 2] == "O-B is over 20 climatological standard deviations"
    assert found["used"].sum() == 6 + len(values) - 3
    np.testing.assert_allclose(found["value"][6 + 3 :], values[3:])


def test_departures_of_an_operator_are_in_si() -> None:
    celsius = StateLayout(GRID, (Channel("t", 850.0, "degC"), Channel("olr", None, "W m-2")))
    normalization = Normalization(np.array([280.0 - 273.15, 240.0]), np.array([8.0, 30.0]))
    truth = run_of_a_model()
    states = LAYOUT.to_array(truth) - np.array([273.15, 0.0])[:, None, None]
    exact = LatentOptimization(GaussNewton(outer=1, cg=60, halvings=0))
    run = WindowAssimilator(independent_package(layout=celsius, normalization=normalization), exact, steps=1)
    operator = Degradation(coarsen=3, gap=2, noise=0.01)(states, normalization, seed=0)
    table = run(operator=operator, window=WINDOW).departures
    kelvin = Degradation(coarsen=3, gap=2, noise=0.01)(LAYOUT.to_array(truth), NORMALIZATION, seed=0)
    np.testing.assert_allclose(table["value"], kelvin.values, rtol=1e-5)
    np.testing.assert_allclose(table["std"], kelvin.std, rtol=1e-5)
    assert table["O-A"].abs().max() < 3.0


@pytest.mark.parametrize("given", [{"observations": pd.DataFrame()}, {"operator": len}, {"background": "B.nc"}])
def test_what_is_of_another_kind_is_a_sentence(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="came; accepted: Observations, as operator a StencilOperator"):
        analysed(given.pop("observations", None), **given)


def test_without_a_background_the_climate_tells_gross_errors() -> None:
    model = StationaryTrajectories(SHAPE, zonal=False, rank=2, lags=1)
    model.mean.fill_(-0.5)
    package = independent_package()
    package.modules["trajectory"] = model
    frame = stations(3)
    frame.loc[0, "value"] -= 273.15  # degC
    run = WindowAssimilator(package, LatentOptimization(GaussNewton(outer=1, cg=4)), steps=1)
    table = run(Observations.from_frame(frame), window=WINDOW).departures
    assert table["reason"].tolist() == ["it lies over 20 climatological standard deviations from the climate"] + 5 * [
        ""
    ]
    run = WindowAssimilator(package, run.sampler.guidance, steps=1, background_check=None)
    assert run(Observations.from_frame(frame), window=WINDOW).departures["used"].all()


def test_representativeness_is_that_of_each_channel_at_every_time() -> None:
    """R = std^2 + (error x spread)^2, in the channels' units."""
    run = WindowAssimilator(independent_package(reconstruction_error=np.array([0.1, 0.5], np.float32)), steps=1)
    frame = pd.DataFrame(
        {
            "time": TIMES,
            "latitude": GRID.latitude[2],
            "longitude": GRID.longitude[3],
            "variable": ["t", "olr"] * 3,
            "level": [850.0, np.nan] * 3,
            "value": [280.0, 240.0] * 3,
        }
    )
    _, likelihood, _ = run.likelihood(Observations.from_frame(frame, STD), TIMES)
    expected = torch.tensor([0.8**2 + (0.1 * 8) ** 2, 5.0**2 + (0.5 * 30) ** 2] * 3)
    torch.testing.assert_close(likelihood.variance, expected)


def test_averages_are_observed_beside_stations() -> None:
    truth = LAYOUT.to_array(run_of_a_model())
    truth[0, 1, 0, 0] = np.nan
    operator = Degradation(coarsen=3, gap=2, noise=0.01)(truth, NORMALIZATION, seed=0, area=GRID.area_weights)
    together = analysed(Observations.from_frame(stations(4)), operator=operator)
    departures = together.departures
    assert departures["observation"].tolist() == list(range(8 + 3 * 2 * 6))
    assert departures["reason"][~departures["used"]].tolist() == ["missing in the observed field"]
    block = departures[(departures["variable"] == "olr") & (departures["time"] == TIMES[2])].iloc[-1]
    assert block["value"] == pytest.approx(operator.values[2 * 12 - 2])
    assert block["latitude"] < 46
    assert abs(block["O-A"]) < 1.0
    alone = analysed(None, operator=operator)
    assert len(alone.departures) == 36
    with pytest.raises(InputError, match=r"an operator on \(2, 6, 7\) came; accepted is one on the trajectory"):
        analysed(None, operator=Degradation()(truth[:1], NORMALIZATION, seed=0))
    everywhere = field_averages(SHAPE, NORMALIZATION, blocks(SHAPE[1:], 3))
    with pytest.raises(InputError, match="an operator without values or standard deviations came"):
        analysed(None, operator=at_times(everywhere, [0], T))


def test_a_channel_that_the_background_has_not_takes_o_b_from_no_other() -> None:
    """Rows of fewer points than others are filled up with points of no weight, in the channel that is missing too."""
    layout = StateLayout(GRID, (Channel("q", 850.0, "kg kg-1"), *LAYOUT.channels))
    normalization = Normalization(np.array([0.01, 280.0, 240.0]), np.array([0.001, 8.0, 30.0]))
    operator = trajectory_stations(Observations.from_frame(stations(), STD), layout, normalization, TIMES)
    means = at_times(field_averages(layout.shape, normalization, blocks((6, 7), 3)), [0], T)
    both: Any = ObservationOperator.stack(operator, observing(means, np.zeros(18), 1.0))
    y, ones = torch.zeros(both.size), torch.ones(both.size)
    x = torch.zeros(T, *layout.shape)
    x_b = x.clone()
    x_b[:, 0] = torch.nan
    table = Observations.from_frame(pd.DataFrame({
        "time": TIMES[0], "latitude": 45.0, "longitude": 0.0, "variable": "t", "value": np.arange(both.size) + 250.0,
    }))  # fmt: skip
    departures = departure_table(
        table, both.reasons, Likelihood(both, y, ones, ones), x_b.flatten(0, 1), x.flatten(0, 1)[None]
    )
    assert departures["O-B"].isna().tolist() == [False] * 24 + [True] * 6 + [False] * 12


def test_a_background_may_come_in_any_order() -> None:
    run = run_of_a_model()
    result = analysed(Observations.from_frame(stations()), window=None, background=run.isel(time=[0, 5, 2, 1, 4, 3]))
    np.testing.assert_array_equal(result.background["time"], TIMES)
    np.testing.assert_allclose(result.background["olr"], run["olr"], rtol=1e-5)


def test_a_warm_start_begins_at_the_run() -> None:
    package, run = independent_package(), run_of_a_model()
    free = WindowAssimilator(package, LatentOptimization(GaussNewton(outer=1, cg=3)), steps=1, start=0.3)
    prior = free._case(TIMES, package.normalize(LAYOUT.to_array(run)), Observations.from_frame(stations())).prior
    assert prior.origin is not None
    np.testing.assert_allclose(prior.origin, NORMALIZATION.normalize(LAYOUT.to_array(run)), atol=1e-5)
    with pytest.raises(InputError, match=r"start = 0\.3 came without a background"):
        free(Observations.from_frame(stations()), window=WINDOW)


def test_the_prior_is_told_the_times_of_its_states(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    trajectory = Package.trajectory

    def spy(self: Package, length: int, **options: Any) -> Any:
        seen.append(options["season"])
        return trajectory(self, length, **options)

    monkeypatch.setattr(Package, "trajectory", spy)
    analysed(Observations.from_frame(stations(3)))
    np.testing.assert_array_equal(seen[0], calendar(TIMES))


@pytest.mark.parametrize(("options", "sentence"), [
    ({"window": ("2002-01-01T00", "2002-01-02T03")}, "whole steps of 6 h"),
    ({"window": None}, "neither a window nor a background"),
    ({"window": ("2002-01-01", "soon")}, "accepted are two dates"),
    ({"window": ("2002-01-01T00", "2002-01-01T12")}, "at least the window's 5"),
    ({"background": run_of_a_model().isel(time=[0, 1, 3, 4, 5])}, "no state at 2002-01-01 12:00:00"),
    ({"background": run_of_a_model().isel(time=0)}, "accepted is one run, with times"),
    ({"background": run_of_a_model().isel(time=[0, 1, 1, 2, 3, 4, 5])}, "2002-01-01 06:00:00 twice"),
    ({"background": run_of_a_model()[["olr"]].rename(olr="wind")}, "none of the package's channels t850, olr"),
    ({"background": run_of_a_model()[["olr"]]}, "missing values, which the package's encoder does not take"),
])  # fmt: skip
def test_windows_and_backgrounds_that_do_not_fit(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        analysed(Observations.from_frame(stations()), **options)


def test_a_package_without_trajectories() -> None:
    run = WindowAssimilator(independent_package(window=None))
    with pytest.raises(InputError, match="no prior of trajectories"):
        run(Observations.from_frame(stations()), window=WINDOW)


def test_what_is_observed_goes_to_other_times_unless_told_otherwise() -> None:
    package = independent_package()
    assert WindowAssimilator(package).sampler.guidance == LatentOptimization()
    package.modules["trajectory"] = StationaryTrajectories(SHAPE, zonal=False, rank=2)
    assert WindowAssimilator(package).sampler.guidance == LatentOptimization(prior_covariance="stationary")


def test_times_of_a_window() -> None:
    assert window_times(WINDOW, 6.0).tolist() == TIMES.tolist()
    assert window_times(("2002-01-01T00Z", "2002-01-01"), 6.0).tolist() == [TIMES[0]]


def test_the_plan_counts_the_evaluations() -> None:
    run = WindowAssimilator(independent_package(), LatentOptimization(GaussNewton(outer=1, cg=2, halvings=0)), steps=2)
    observations = Observations.from_frame(stations())
    plan = run.plan(observations=observations, window=WINDOW, members=2)
    assert (plan.observations, plan.chunk) == (24, 2)
    assert dict(plan.evaluations) == dict(run(observations, window=WINDOW, members=2).evaluations)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of untrained networks, stations, a field and a run."""
    torch.manual_seed(0)
    settings: dict[str, dict[str, Any]] = {
        "autoencoder": {"shape": SHAPE},
        "window": {"latent_shape": SHAPE, "size": 5, "hidden": [8], "blocks": 1, "prediction": "eps"},
    }
    names = {"autoencoder": "identity", "window": "unet"}
    modules = {
        "autoencoder": build(AUTOENCODERS, "identity", settings["autoencoder"]),
        "window": build(WINDOWS, "unet", settings["window"]),
    }
    architectures = {name: Architecture(names[name], settings[name]) for name in names}
    package = Package(
        LAYOUT, NORMALIZATION, Schedule.vp_cosine(), "eps", modules, architectures, np.zeros(2), STD,
        whitened=False, window=Window(5, 6.0),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("window")
    package.save(path / "package")
    stations().to_csv(path / "O.csv", index=False)
    run_of_a_model().to_netcdf(path / "run.nc")
    run_of_a_model()[["olr"]].isel(time=[1]).to_netcdf(path / "olr.nc")
    return path


def lsda(*arguments: object) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    command = mock.patch("sys.argv", ["lsda", *map(str, arguments)])
    with command, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0), out.getvalue(), err.getvalue()


def test_the_program_analyses_a_window(folder: Path, tmp_path: Path) -> None:
    window = ("--window", "/".join(WINDOW))
    inputs = ("--observations", folder / "O.csv", "--fields", folder / "olr.nc", "--background", folder / "run.nc")
    code, out, err = lsda(
        "assimilate", folder / "package", *window, *inputs, "--output", tmp_path / "A.nc",
        "--members", 2, "--preset", "slams_published", "--steps", 3,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "2 members, 66 of 66 observations" in out
    analysis = open_states(tmp_path / "A.nc")
    assert dict(analysis.sizes) == {"time": T, "member": 2, "latitude": 6, "longitude": 7}
    assert analysis.attrs["settings"].startswith("DPS(")
    assert analysis.attrs["noise_levels"] == 3
    assert len(pd.read_csv(tmp_path / "A.departures.csv")) == 66
    settings = ("--output", tmp_path / "B.nc", "--guidance", "none", "--steps", 2)
    assert lsda("assimilate", folder / "package", *window, *inputs, *settings)[0] == 0
    code, out, err = lsda("verify", tmp_path / "B.nc", folder / "run.nc", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["t850"]["wasserstein"] > 0


@pytest.mark.parametrize(("options", "sentence"), [
    ((), "neither --observations nor --fields came"),
    (("--observations", "O.csv", "--best-of", 4), "none of the options of the best of N"),
    (("--observations", "O.csv", "--preset", "fast"), "preset 'fast' is unknown"),
    (("--observations", "O.csv", "--preset", "slams_published", "--guidance", "mmps"), "accepted beside it is --steps"),
    (("--observations", "O.csv", "--prior-covariance", "stationary"), "needs a prior with a full covariance"),
    (("--observations", "O.csv", "--window", "3h"), "--background did not come"),
])  # fmt: skip
def test_the_program_says_what_it_takes(folder: Path, tmp_path: Path, options: Any, sentence: str) -> None:
    named = [folder / option if option == "O.csv" else option for option in options]
    window = () if "--window" in options else ("--window", "/".join(WINDOW))
    code, _, err = lsda("assimilate", folder / "package", *window, *named, "--output", tmp_path / "A.nc")
    assert code == 2
    assert sentence in " ".join(err.split())
    assert not list(tmp_path.iterdir())
