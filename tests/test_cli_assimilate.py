"""``lsda assimilate``: every observation accounted for, every option an analysis, and what changes nothing."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from lsda_fast.assimilator import Assimilator
from lsda_fast.datasets import open_states, write_dataset
from lsda_fast.observations import Observations
from lsda_fast.package import Package


@pytest.mark.parametrize(("style", "suffix"), [("flat", ".nc"), ("levels", ".nc"), ("flat", ".zarr")])
def test_an_analysis_has_the_backgrounds_style_and_every_observation(
    program: ModuleType, world: Any, tmp_path: Path, style: str, suffix: str
) -> None:
    layout = Package.load(world.package).layout
    flat = xr.load_dataset(world.background)
    background = layout.to_dataset(layout.to_array(flat), coords={"time": flat["time"].values}, style=style)
    write_dataset(background, tmp_path / f"B{suffix}")
    good = pd.read_csv(world.observations)
    odd = good.iloc[[0] * 8].reset_index(drop=True).astype({"value": object})
    reasons = {
        "latitude": (60.0, "outside the domain"),
        "value": (9999, "value 9999 is a fill value"),
        "level": (100.0, "level 100 hPa lies outside the model's 500..500 hPa"),
        "variable": ("q", "variable q is not among the model's z, t, msl"),
        "time": ("2001-07-11T03:01", "outside the window 2001-07-10T21:00..2001-07-11T03:00"),
    }
    for i, (column, (cell, _)) in enumerate(reasons.items()):
        odd.loc[i, column] = cell
    odd.loc[5, "value"] = "-9.99e9"
    odd.loc[6, "value"] = "much"
    # Row 7 stays what it is: the first observation again.
    table = pd.concat([odd, good], ignore_index=True)
    table.to_csv(tmp_path / "O.csv", index=False)
    output, report = tmp_path / f"A{suffix}", tmp_path / "deep" / "report"
    code, out, err = program.assimilate(
        world, output, "--members", 4, "--seed", 1, "--report", report,
        background=tmp_path / f"B{suffix}", observations=tmp_path / "O.csv",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert f"4 members, 60 of {len(table)} observations" in out
    analysis = open_states(output).load()
    upper = ("member", "level", "latitude", "longitude") if style == "levels" else ("member", "latitude", "longitude")
    for name in ("z", "t") if style == "levels" else ("z500", "t850"):
        assert analysis[name].dims == upper
        assert analysis[name].attrs["units"] == background[name].attrs["units"]
    assert analysis["msl"].dims == ("member", "latitude", "longitude")
    assert analysis["member"].values.tolist() == [0, 1, 2, 3]
    assert analysis["time"].values == np.datetime64(program.VALID)
    for name in ("latitude", "longitude"):
        np.testing.assert_array_equal(analysis[name], background[name])
    assert analysis.attrs["Conventions"] == "CF-1.11"

    name = "A.departures.csv" if suffix == ".nc" else "A.zarr.departures.csv"
    departures = pd.read_csv(tmp_path / name, keep_default_na=False, na_values=["nan"])
    more = ["std", "O-B", "O-A", "weight", "used", "reason"]
    assert list(departures.columns[:13]) == ["observation", *program.COLUMNS, *more]
    assert departures["observation"].tolist() == list(range(len(table)))
    assert departures["reason"][:5].tolist() == [reason for _, reason in reasons.values()]
    assert departures["reason"][5:7].tolist() == ["value -9.99e+09 is a fill value", "value 'much' is not a number"]
    # Which of two equal rows is the duplicate is settled by their order.
    assert departures["reason"][7:9].tolist() == ["", "duplicate of observation 7"]
    assert (departures["used"] == (departures["reason"] == "")).all()
    used = departures[departures["used"]]
    assert len(used) == 60
    # Half of the error's variance and more is gone where it was looked for.
    scaled = used[["O-B", "O-A"]].astype(float).div(used["std"].astype(float), axis=0)
    before, after = np.sqrt((scaled**2).mean())
    assert after < 0.7 * before
    # O-A is of the ensemble mean, and the file holds that ensemble: one observed point says so.
    row = used[used["variable"] == "msl"].iloc[0]
    here = analysis["msl"].mean("member").sel(latitude=row["latitude"], longitude=row["longitude"])
    assert float(row["value"]) - float(here) == pytest.approx(float(row["O-A"]), abs=0.05)

    # On levels z850 and t500 are there without a value, and are not scored.
    truth = layout.to_dataset(
        layout.to_array(xr.load_dataset(world.truth)), coords={"time": program.VALID}, style=style
    )
    write_dataset(truth, tmp_path / "T.nc")
    scores = json.loads(program.lsda("verify", output, tmp_path / "T.nc", "--json").out)
    assert set(scores) == {*program.UNITS, "normalized"}
    assert 0 < scores["normalized"]["rmse"] < 1

    page = (report / "index.html").read_text()
    assert "duplicate of observation 7" in page
    assert page.count("<img") == 4


def test_the_seed_alone_decides(program: ModuleType, world: Any, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        options = ("--members", 2, "--steps", 1, "--seed", seed)
        assert program.assimilate(world, tmp_path / f"{name}.nc", *options).code == 0
    assert program.same(tmp_path / "one.nc", tmp_path / "again.nc")
    assert not program.same(tmp_path / "one.nc", tmp_path / "other.nc")
    tables = [(tmp_path / f"{name}.departures.csv").read_bytes() for name in ("one", "again", "other")]
    assert tables[0] == tables[1] != tables[2]


def test_a_member_is_the_same_in_any_company(program: ModuleType, world: Any, tmp_path: Path) -> None:
    run = Assimilator(Package.load(world.package), steps=1)
    background, table = open_states(world.background), Observations.read(world.observations)
    four, eight = (run(background, table, members=m, seed=1, recenter=False).analysis for m in (4, 8))
    for name in program.UNITS:
        assert four[name][2].values.tobytes() == eight[name][2].values.tobytes()
        assert four[name][2].values.tobytes() != four[name][3].values.tobytes()


@pytest.mark.parametrize(
    "options",
    [
        ("--guidance", "mmps", "--steps", 2),
        ("--guidance", "dps", "--steps", 4, "--solver", "ddim"),
        ("--guidance", "repaint", "--steps", 2, "--start", 0.5),
        ("--guidance", "none", "--steps", 2, "--solver", "heun"),
        ("--inner", "adam", "--prior-covariance", "diagonal", "--steps", 1),
        ("--inner", "lbfgs", "--no-correction", "--device", "cpu", "--steps", 1),
        ("--prior-covariance", "tweedie", "--time", "2001-07-11", "--steps", 1),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_every_option_leads_to_an_analysis(
    program: ModuleType, world: Any, tmp_path: Path, options: tuple[object, ...]
) -> None:
    code, _, err = program.assimilate(world, tmp_path / "A.nc", *options)
    assert (code, err) == (0, "")
    analysis = xr.load_dataset(tmp_path / "A.nc")
    assert all(np.isfinite(analysis[name]).all() for name in program.UNITS)


def test_the_best_of_some_are_kept_with_a_table_of_all(program: ModuleType, world: Any, tmp_path: Path) -> None:
    table = pd.read_csv(world.observations)
    halves = {name: table[table.index % 2 == i] for i, name in enumerate(("O.csv", "held_out.csv"))}
    for name, half in halves.items():
        half.to_csv(tmp_path / name, index=False)
    options = ("--best-of", 5, "--members", 2, "--rewards", "observations", "--held-out", tmp_path / "held_out.csv")
    result = program.assimilate(world, tmp_path / "A.nc", *options, "--steps", 1, observations=tmp_path / "O.csv")
    assert (result.code, result.err) == (0, "")
    assert "A.rewards.csv: rewards of 5 candidates, the best 2 kept" in result.out
    rewards = pd.read_csv(tmp_path / "A.rewards.csv")
    best = rewards.nlargest(2, "observations")["member"]
    assert xr.load_dataset(tmp_path / "A.nc")["member"].values.tolist() == sorted(best)
    assert rewards["kept"].sum() == 2
    # Those of other days, and other values, judge nothing.
    other = halves["held_out.csv"].assign(time="2001-01-01", value=lambda t: 1.01 * t["value"])
    pd.concat([halves["held_out.csv"], other]).to_csv(tmp_path / "held_out.csv", index=False)
    again = program.assimilate(world, tmp_path / "B.nc", *options, "--steps", 1, observations=tmp_path / "O.csv")
    assert (again.code, again.err) == (0, "")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "B.rewards.csv"), rewards)
    other.to_csv(tmp_path / "held_out.csv", index=False)
    none = program.assimilate(world, tmp_path / "C.nc", *options, observations=tmp_path / "O.csv")
    assert none.code == 2
    assert f"none of {len(other)} observations held out is within" in none.err


def test_orientation_and_wrap_of_background_and_observations_change_nothing(
    program: ModuleType, world: Any, tmp_path: Path
) -> None:
    assert program.assimilate(world, tmp_path / "A.nc", "--members", 2, "--steps", 1).code == 0
    background = xr.load_dataset(world.background)
    turned = background.assign_coords(longitude=background["longitude"] % 360).sortby("longitude").sortby("latitude")
    assert turned["longitude"].values[-1] == 358.0
    write_dataset(turned.transpose("longitude", "latitude"), tmp_path / "turned.nc")
    table = pd.read_csv(world.observations)
    table.assign(longitude=table["longitude"] % 360).to_csv(tmp_path / "turned.csv", index=False)
    result = program.assimilate(
        world, tmp_path / "T.nc", "--members", 2, "--steps", 1,
        background=tmp_path / "turned.nc", observations=tmp_path / "turned.csv",
    )  # fmt: skip
    assert result.code == 0
    assert program.same(tmp_path / "A.nc", tmp_path / "T.nc")


def test_duplicates_and_rows_without_use_change_nothing(program: ModuleType, world: Any, tmp_path: Path) -> None:
    assert program.assimilate(world, tmp_path / "A.nc", "--steps", 1).code == 0
    table = pd.read_csv(world.observations)
    odd = table.assign(value=np.where(table.index % 2, -9.99e9, 9999.0))
    pd.concat([table, table, odd, table.assign(latitude=table["latitude"] - 40)]).to_csv(
        tmp_path / "O.csv", index=False
    )
    assert program.assimilate(world, tmp_path / "D.nc", "--steps", 1, observations=tmp_path / "O.csv").code == 0
    assert program.same(tmp_path / "A.nc", tmp_path / "D.nc")
    reasons = pd.read_csv(tmp_path / "D.departures.csv")["reason"].str.replace(r"\d+$", "#", regex=True).value_counts()
    assert reasons.to_dict() == {
        "duplicate of observation #": 60,
        "outside the domain": 60,
        "value 9999 is a fill value": 30,
        "value -9.99e+09 is a fill value": 30,
    }
