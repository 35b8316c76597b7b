"""The observation table: every row is used or rejected with a reason, in SI units."""

import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from lsda_fast.errors import InputError
from lsda_fast.observations import Observations

DATA = Path(os.environ.get("LSDA_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"


def rows(**columns):
    n = max(len(v) for v in columns.values() if isinstance(v, list))
    base = {"time": "2008-12-08T12", "latitude": 50.0, "longitude": 5.0, "variable": "t", "level": 850.0}
    return pd.DataFrame({k: v if isinstance(v, list) else [v] * n for k, v in {**base, **columns}.items()})


def real(name):
    path = DATA / "observations" / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return path


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ({"value": np.nan}, "value is missing or not finite"),
        ({"value": np.inf}, "value is missing or not finite"),
        ({"value": "cold"}, "value 'cold' is not a number"),
        ({"value": 9999.0}, "value 9999 is a fill value"),
        ({"value": -9999.0}, "value -9999 is a fill value"),
        ({"value": -9.99e9}, "value -9.99e+09 is a fill value"),
        ({"latitude": 90.5}, "latitude 90.5 outside -90..90"),
        ({"latitude": np.nan}, "latitude is missing"),
        ({"longitude": -790.0}, "longitude -790 outside -180..360"),
        ({"std": 0.0}, "std 0 is not positive"),
        ({"std": -1.0}, "std -1 is not positive"),
        ({"std": np.inf}, "std inf is a fill value"),
        ({"units": "bananas"}, "units 'bananas' are unknown"),
        ({"time": "noon"}, "time noon is not ISO 8601"),
        ({"time": 20081208}, "time 20081208 is not ISO 8601"),
        ({"variable": None}, "variable is missing"),
        ({"level": -5.0}, "level -5 hPa is not positive"),
        ({"level": 9999.0}, "level 9999 is a fill value"),
        ({"variable": "z500"}, "variable z500 has level 850 hPa"),
    ],
)
def test_a_bad_cell_rejects_its_row_alone(cell, reason):
    good = {"value": 280.0, "std": 1.0}
    table = pd.concat([rows(**{k: [v] for k, v in {**good, **cell}.items()}), rows(value=[281.0], std=2.0)])
    obs = Observations.from_frame(table)
    assert obs.rejected["reason"].tolist() == [reason]
    assert obs.rejected["observation"].tolist() == [0]
    assert obs.frame["observation"].tolist() == [1]
    assert obs.frame["value"].tolist() == [281.0]


def test_names_levels_and_aliases():
    table = rows(value=[1.0, 2.0, 3.0, 4.0], level=None)
    table["variable"] = ["z500", "Z", "u10", "msl"]
    table["level"] = [None, 500, None, ""]
    table = table.rename(columns={"latitude": "lat", "longitude": "Lon"})
    table["station"] = ["a", "b", "c", "d"]
    frame = Observations.from_frame(table).frame
    assert frame["variable"].tolist() == ["z", "z", "u10", "msl"]
    np.testing.assert_array_equal(frame["level"], [500.0, 500.0, np.nan, np.nan])
    assert list(frame.columns) == [
        *("observation", "time", "latitude", "longitude", "variable", "level", "value", "std"),
        "station",
    ]


def test_duplicates_name_the_first_and_ignore_how_the_meridian_is_written():
    table = rows(value=[280.0, 280.0, 281.0, 280.0], longitude=[-10.1, 349.9, -10.1, -10.1])
    table.loc[3, "time"] = "2008-12-08T13:00"
    obs = Observations.from_frame(table)
    assert obs.frame["observation"].tolist() == [0, 2, 3]
    assert obs.rejected["reason"].tolist() == ["duplicate of observation 0"]


def test_units_become_si_and_differences_stay_differences():
    table = pd.concat(
        [
            rows(value=[0.0], std=1.5, units="degC"),
            rows(value=[212.0], std=1.8, units="degF"),
            rows(value=[20.0], std=1.0, units="deg C"),
            rows(value=[1013.25], std=1.0, units="hPa", variable="msl", level=None),
            rows(value=[1000.0], std=1.0, units="mb", variable="msl", level=None),
            rows(value=[5500.0], std=10.0, units="gpm", variable="z", level=500.0),
            rows(value=[1.0], std=1.0, units="inch", variable="tp", level=None),
            rows(value=[290.0], std=1.0, units=None),
        ]
    )
    obs = Observations.from_frame(table)
    expected = [273.15, 373.15, 293.15, 101325.0, 100000.0, 5500 * 9.80665, 0.0254, 290.0]
    np.testing.assert_allclose(obs.frame["value"], expected, rtol=1e-12)
    np.testing.assert_allclose(obs.frame["std"], [1.5, 1.0, 1.0, 100.0, 100.0, 98.0665, 0.0254, 1.0], rtol=1e-12)
    assert obs.frame["units"].tolist()[:7] == ["K", "K", "K", "Pa", "Pa", "m2 s-2", "m"]
    again = Observations.from_frame(obs.frame)
    np.testing.assert_array_equal(again.frame["value"], obs.frame["value"])
    assert again.frame["input_observation"].tolist() == obs.frame["observation"].tolist()


def test_default_std_takes_the_level_before_the_variable_and_never_replaces():
    table = rows(value=[1.0, 2.0, 3.0], level=[850.0, 500.0, 850.0], std=[np.nan, np.nan, 0.3])
    obs = Observations.from_frame(table, std={"t": 2.0, "t850": 1.0})
    assert obs.frame["std"].tolist() == [1.0, 2.0, 0.3]
    obs = Observations.from_frame(
        rows(value=[1.0, 2.0, 3.0, 4.0], level=[600.0, 400.0, np.nan, -1.0]),
        std={"t850": 1.0, "t500": 3.0, "t300": 2.0},
    )
    shares = np.log([850 / 600, 500 / 400]) / np.log([850 / 500, 500 / 300])
    np.testing.assert_allclose(obs.frame["std"], [1 + 2 * shares[0], 3 - shares[1], np.nan], rtol=1e-12)
    with pytest.raises(ValueError, match="std of t is 0"):
        Observations.from_frame(table, std={"t": 0.0})


def test_times_are_utc_without_zone_and_may_be_empty():
    table = rows(value=[1.0, 2.0, 3.0])
    table["time"] = ["2008-12-08T13:00:00+01:00", "2008-12-08T12:00:00Z", None]
    time = Observations.from_frame(table).frame["time"]
    assert time.dtype == "datetime64[ns]"
    assert (time[:2] == pd.Timestamp("2008-12-08T12")).all()
    assert pd.isna(time[2])


def test_windows_share_no_observation_when_closed_on_one_side():
    times = ["2008-12-08T09", "2008-12-08T12", "2008-12-08T15", None]
    obs = Observations.from_frame(rows(value=[1.0, 2.0, 3.0, 4.0], time=times))
    both = obs.window("2008-12-08T12", before="3h", after="3h")
    assert both.frame["value"].tolist() == [1.0, 2.0, 3.0]
    assert both.rejected["reason"].tolist() == ["no time"]
    right = obs.window(np.datetime64("2008-12-08T12"), "3h", "3h", closed="right")
    assert right.frame["value"].tolist() == [2.0, 3.0]
    assert right.rejected["reason"][0] == "outside the window 2008-12-08T09:00..2008-12-08T15:00"
    assert len(right) + len(right.rejected) == 4
    assert len(obs.window("2008-12-08T12", 3, 2.5)) == 2
    for none in (0, "0h", np.timedelta64(0, "h"), pd.Timedelta(0)):
        assert obs.window("2008-12-08T12", none, np.timedelta64(3, "h")).frame["value"].tolist() == [2.0, 3.0]
    for span, sentence in (("soon", "window 'soon' is not a time span"), ("-3h", "accepted is a positive time span")):
        with pytest.raises(InputError, match=sentence):
            obs.window("2008-12-08T12", span, "3h")
    with pytest.raises(InputError, match="a window around 'noon'"):
        obs.window("noon", "3h", "3h")


def test_select_keeps_the_others_with_their_reason():
    obs = Observations.from_frame(rows(value=[1.0, 2.0, np.nan]))
    chosen = obs.select(np.array([False, True]), reason="withheld")
    assert chosen.frame["value"].tolist() == [2.0]
    assert chosen.rejected["reason"].tolist() == ["value is missing or not finite", "withheld"]
    with pytest.raises(ValueError, match="one bool for each of 2"):
        obs.select([0, 1])


def test_missing_columns_say_what_came_and_what_is_accepted():
    with pytest.raises(InputError, match=r"lack variable, value: columns time, latitude, lo.* came; accepted: time"):
        Observations.from_frame(rows(value=[1.0]).drop(columns=["variable", "value", "level"]))
    with pytest.raises(InputError, match="list given"):
        Observations.from_frame([1, 2])


@pytest.mark.parametrize("table", [pd.DataFrame(), rows(value=[1.0])[:0], rows(value=[1.0], units="K")[:0]])
def test_an_empty_table_is_fine(table):
    obs = Observations.from_frame(table, std={"t": 1.0}).window("2008-12-08", "3h", "3h")
    assert len(obs) == len(obs.rejected) == 0
    assert obs.frame["time"].dtype == "datetime64[ns]"
    assert obs.frame["value"].dtype == np.float64


def test_files_read_the_same_as_their_table(tmp_path):
    table = rows(value=[280.0, 281.0], std=1.0)
    expected = Observations.from_frame(table).frame
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.csv.gz", index=False)
    for name in ("a.csv", "a.csv.gz"):
        pd.testing.assert_frame_equal(Observations.read(tmp_path / name).frame, expected)
    arrow = pytest.importorskip("pyarrow")
    table.to_parquet(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(Observations.read(tmp_path / "a.parquet").frame, expected)
    pd.testing.assert_frame_equal(Observations.from_frame(arrow.Table.from_pandas(table)).frame, expected)


def test_commas_at_the_ends_of_lines_move_no_column(tmp_path):
    table = rows(value=[280.0, 281.0], std=1.0)
    lines = table.to_csv(index=False).splitlines()
    (tmp_path / "a.csv").write_text("\n".join([lines[0], *(line + "," for line in lines[1:])]))
    pd.testing.assert_frame_equal(Observations.read(tmp_path / "a.csv").frame, Observations.from_frame(table).frame)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "cannot be read"),
        ("a.csv.gz", b"time,latitude", "cannot be read"),
        ("a.csv.gz", gzip.compress(b"time,latitude", mtime=0)[:10] + b"\xff" * 20, "cannot be read"),
        ("a.csv", b"\xff\xfe\x00\x80", "cannot be read|lack"),
        ("a.csv", b"value,std\n1,2,3\n", "lines of more values than its header has columns"),
        ("a.csv", b"value,std\n1,2\n1,2,3\n", "cannot be read"),
        ("a.parquet", b"not parquet", "cannot be read"),
        ("a.xls", b"", "unknown suffix; accepted: .csv, .csv.gz, .parquet"),
    ],
)
def test_unreadable_files_are_input_errors(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        Observations.read(tmp_path / name)
    with pytest.raises(InputError, match="is not a file"):
        Observations.read(tmp_path / "nowhere.csv")


def test_surface_reports_lose_nothing():
    reports = xr.open_dataset(real("surface_reports_19950318_06z.nc"))
    table = pd.DataFrame(
        {
            "time": "1995-03-18T06",
            "latitude": reports["lat"].values,
            "longitude": reports["lon"].values,
            "variable": "d2m",
            "value": reports["TD"].values,
            "units": reports["TD"].attrs["units"],
        }
    )
    obs = Observations.from_frame(table)
    both = np.sort(np.concatenate([obs.frame["observation"], obs.rejected["observation"]]))
    np.testing.assert_array_equal(both, np.arange(len(table)))
    assert len(obs) > 500
    assert obs.frame["value"].between(200, 320).mean() > 0.99


def test_noaa_stations_fahrenheit_to_kelvin():
    stations = xr.open_dataset(real("noaa_us_stations_1990_1993.nc"))
    day = stations.sel(time="1990-07-15")
    table = pd.DataFrame(
        {
            "time": day["time"].values,
            "lat": day["lat"].values,
            "lon": day["lon"].values,
            "variable": "t2m",
            "value": day["Tmax"].values.astype(np.float64),
            "std": 1.8,
            "units": "degF",
        }
    )
    obs = Observations.from_frame(table)
    came = table["value"][obs.frame["observation"]]
    np.testing.assert_allclose(obs.frame["value"], (came - 32) * 5 / 9 + 273.15, rtol=1e-12)
    np.testing.assert_allclose(obs.frame["std"], 1.0, rtol=1e-12)
    assert len(obs) == np.isfinite(table["value"]).sum()
    assert (obs.rejected["reason"] == "value is missing or not finite").all()


def test_rows_are_numbered_behind_the_largest_number():
    table = Observations.from_frame(rows(value=[280.0, 281.0, 282.0], std=1.0))
    some = Observations(table.frame.iloc[1:], table.rejected)
    assert Observations.joined(some, table).frame["observation"].tolist() == [1, 2, 3, 4, 5]
