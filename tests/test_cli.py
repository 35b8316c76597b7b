"""The command line: a contract of files; for everything wrong one sentence, an exit code, and nothing left behind."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
import typer
import xarray as xr

from lsda_fast import cli
from lsda_fast.alignment.rewards import REWARDS
from lsda_fast.assimilator import Assimilator
from lsda_fast.datasets import open_states, write_dataset
from lsda_fast.grid import StateLayout
from lsda_fast.guidance import LatentOptimization
from lsda_fast.observations import Observations
from lsda_fast.package import Package

UNITS = {"z500": ("m2 s-2", 5.5e4, 900.0), "t850": ("K", 280.0, 8.0), "msl": ("Pa", 1.01e5, 900.0)}
INITIAL, VALID = "2001-07-10", "2001-07-11"
COLUMNS = ["time", "latitude", "longitude", "variable", "level", "value"]


class Result(NamedTuple):
    """What the program left behind."""

    code: int
    out: str
    err: str


def lsda(*arguments: object) -> Result:
    """Run ``main`` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["lsda", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        cli.main()
    return Result(end.value.code or 0, out.getvalue(), err.getvalue())  # type: ignore[arg-type]


def archive(days: int) -> xr.Dataset:
    """Daily states that remember 90 % of the day before, smooth in space, on longitudes from -10 to 8."""
    latitude, longitude = np.linspace(50.0, 36.0, 8), np.linspace(-10.0, 8.0, 10)
    place = np.stack(np.meshgrid(latitude, longitude, indexing="ij"), axis=-1).reshape(-1, 2)
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
    # Long waves, so that the preset's twelve components draw nearly everything.
    root = np.linalg.cholesky(np.exp(-((distance / 24.0) ** 2)) + 1e-3 * np.eye(80))
    rng = np.random.default_rng(0)
    state, fields = np.zeros((3, 80)), np.empty((days, 3, 8, 10))
    for day in range(-30, days):
        kick = rng.standard_normal((3, 80)) @ root.T
        state = 0.9 * state + 0.19**0.5 * (kick + 0.5 * kick[[0, 0, 0]])
        fields[max(day, 0)] = state.reshape(3, 8, 10)
    dims = ("time", "latitude", "longitude")
    data = {
        name: (dims, (mean + std * fields[:, c]).astype(np.float32), {"units": units})
        for c, (name, (units, mean, std)) in enumerate(UNITS.items())
    }
    time = pd.date_range("2001-01-01", periods=days)
    return xr.Dataset(data, {"time": time, "latitude": latitude, "longitude": longitude})


def observed(truth: xr.Dataset, places: int) -> pd.DataFrame:
    """Every channel at random grid points, with an error of a tenth of its spread; no std column."""
    rng = np.random.default_rng(1)
    rows = []
    for i in rng.choice(80, places, replace=False):
        here = truth.isel(latitude=i // 10, longitude=i % 10)
        for name, (_, _, std) in UNITS.items():
            value = float(here[name]) + 0.1 * std * rng.standard_normal()
            variable, level = (name, None) if name == "msl" else (name[0], float(name[1:]))
            rows.append((VALID, float(here["latitude"]), float(here["longitude"]), variable, level, value))
    return pd.DataFrame(rows, columns=COLUMNS)


@dataclass(frozen=True)
class World:
    """A trained package and the files around it."""

    folder: Path
    trained: Result

    def __getattr__(self, name: str) -> Path:
        suffix = {"package": "", "observations": ".csv"}.get(name, ".nc")
        return self.folder / f"{name}{suffix}"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """States, a package, a background, its truth, and observations of the truth."""
    folder = tmp_path_factory.mktemp("world")
    write_dataset(archive(200), folder / "states.nc")
    train = lsda("train", folder / "states.nc", "--config", "tiny", "--output", folder / "package")
    made = World(folder, train)
    code = lsda("forecast", made.package, "--initial", made.states, "--time", INITIAL, "--output", made.background).code
    assert code == 0
    truth = open_states(made.states).sel(time=VALID).load()
    write_dataset(truth, made.truth)
    observed(truth, 20).to_csv(made.observations, index=False)
    return made


def assimilate(world: World, output: Path, *extra: object, **changed: object) -> Result:
    """``lsda assimilate`` on the files of the world, or others in their place."""
    files = {name: changed.get(name, getattr(world, name)) for name in ("package", "background", "observations")}
    options = ("--background", files["background"], "--observations", files["observations"], "--output", output)
    return lsda("assimilate", files["package"], *options, *extra)


def same(one: Path, two: Path) -> bool:
    """Whether all values of two files are the same, to the bit."""
    a, b = xr.load_dataset(one), xr.load_dataset(two)
    return set(a) == set(b) and all(a[name].values.tobytes() == b[name].values.tobytes() for name in a)


# The contract of files


def test_a_package_is_aligned_by_one_command(world: World, tmp_path: Path) -> None:
    def judge(candidates: torch.Tensor, case: Any) -> torch.Tensor:
        return torch.exp(-(candidates - case.reference).square().mean((1, 2, 3)))

    reward = mock.Mock(side_effect=judge)
    reward.name = "near"
    options = (
        "--config",
        "align_tiny",
        "--period",
        "2001-06-20/2001-07-10",
        "--lead",
        "24h",
        "--output",
        tmp_path / "P",
    )
    with mock.patch.dict(REWARDS, near=lambda settings: reward):
        code, out, err = lsda("align", world.package, world.states, "--rewards", "near", *options)
    assert (code, err) == (0, "")
    assert re.match(
        rf"{tmp_path / 'P'}: \d+ of 160 pairs, \d+ held out, \d+ dates, held_out_loss_at_start 0.6931,", out
    )
    described = lsda("inspect", tmp_path / "P").out
    assert "alignment 1" in described
    assert "on near, 2001-06-20" in " ".join(described.split())
    code, _, err = lsda("align", world.package, world.states, "--rewards", "fame", *options[:-1], tmp_path / "Q")
    assert code == 2
    assert "rewards 'fame' came; accepted, each once, are" in " ".join(err.split())


def test_training_prints_its_scores_and_leaves_a_package(world: World) -> None:
    code, out, err = world.trained
    assert (code, err) == (0, "")
    assert out.startswith(f"{world.package}: ")
    assert out.count("\n") == 1
    assert "denoiser_validation" in out
    assert Package.load(world.package).layout.names == tuple(UNITS)
    log = (world.folder / "package.work" / "log.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in log} == {"denoiser"}


def test_a_forecast_says_when_it_is_valid(world: World, tmp_path: Path) -> None:
    background = xr.load_dataset(world.background)
    assert background["time"].values == np.datetime64(VALID)
    assert background["forecast_reference_time"].values == np.datetime64(INITIAL)
    arguments = ("forecast", world.package, "--initial", world.states, "--time", INITIAL, "--lead", "48h")
    code, out, err = lsda(*arguments, "--output", tmp_path / "two[days].nc")
    # Brackets are part of the name, and no markup.
    assert (code, out, err) == (0, f"{tmp_path}/two[days].nc: forecast valid at 2001-07-12T00:00\n", "")
    code, _, _ = lsda("forecast", world.package, "--initial", world.background, "--output", tmp_path / "again.nc")
    assert code == 0
    two, again = (xr.load_dataset(tmp_path / f"{name}.nc") for name in ("two[days]", "again"))
    for name in UNITS:
        np.testing.assert_allclose(two[name], again[name], rtol=1e-6)


@pytest.mark.parametrize(("style", "suffix"), [("flat", ".nc"), ("levels", ".nc"), ("flat", ".zarr")])
def test_an_analysis_has_the_backgrounds_style_and_every_observation(
    world: World, tmp_path: Path, style: str, suffix: str
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
    code, out, err = assimilate(
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
    assert analysis["time"].values == np.datetime64(VALID)
    for name in ("latitude", "longitude"):
        np.testing.assert_array_equal(analysis[name], background[name])
    assert analysis.attrs["Conventions"] == "CF-1.11"

    departures = pd.read_csv(tmp_path / "A.departures.csv", keep_default_na=False, na_values=["nan"])
    assert list(departures.columns[:13]) == ["observation", *COLUMNS, "std", "O-B", "O-A", "weight", "used", "reason"]
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

    # On levels z850 and t500 are there without a value; the score of the whole is that of the channels that have some.
    truth = layout.to_dataset(layout.to_array(xr.load_dataset(world.truth)), coords={"time": VALID}, style=style)
    write_dataset(truth, tmp_path / "T.nc")
    scores = json.loads(lsda("verify", output, tmp_path / "T.nc", "--json").out)
    assert set(scores) == {*UNITS, "normalized"} | ({"z850", "t500"} if style == "levels" else set())
    assert 0 < scores["normalized"]["rmse"] < 1

    page = (report / "index.html").read_text()
    assert "duplicate of observation 7" in page
    assert page.count("<img") == 4


def test_scores_are_json_with_null_for_what_is_undefined(world: World, tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    scores: dict[int, Any] = {}
    for members in (1, 4):
        output = tmp_path / f"A{members}.nc"
        assert assimilate(world, output, "--members", members).code == 0
        code, out, err = lsda("verify", output, world.states, "--json")
        assert (code, err) == (0, "")
        scores[members] = json.loads(out, parse_constant=refuse)
        assert list(scores[members]) == [*UNITS, "normalized"]
    assert all(np.isfinite(value) for row in scores[4].values() for value in row.values())
    assert {name for name, value in scores[1]["msl"].items() if value is None} == {"spread", "spread_skill"}
    code, out, _ = lsda("verify", world.background, world.states, "--json")
    background = json.loads(out)
    assert scores[4]["normalized"]["rmse"] < 0.9 * background["normalized"]["rmse"]
    code, out, err = lsda("verify", tmp_path / "A4.nc", world.truth)
    assert (code, err) == (0, "")
    assert "z500" in out
    assert "crps" in out


def test_the_seed_alone_decides(world: World, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        assert assimilate(world, tmp_path / f"{name}.nc", "--members", 2, "--steps", 1, "--seed", seed).code == 0
    assert same(tmp_path / "one.nc", tmp_path / "again.nc")
    assert not same(tmp_path / "one.nc", tmp_path / "other.nc")
    tables = [(tmp_path / f"{name}.departures.csv").read_bytes() for name in ("one", "again", "other")]
    assert tables[0] == tables[1] != tables[2]


def test_a_member_is_the_same_in_any_company(world: World, tmp_path: Path) -> None:
    run = Assimilator(Package.load(world.package), steps=1)
    background, table = open_states(world.background), Observations.read(world.observations)
    four, eight = (run(background, table, members=m, seed=1, recenter=False).analysis for m in (4, 8))
    for name in UNITS:
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
        ("--prior-covariance", "tweedie", "--time", VALID, "--steps", 1),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_every_option_leads_to_an_analysis(world: World, tmp_path: Path, options: tuple[object, ...]) -> None:
    code, _, err = assimilate(world, tmp_path / "A.nc", *options)
    assert (code, err) == (0, "")
    analysis = xr.load_dataset(tmp_path / "A.nc")
    assert all(np.isfinite(analysis[name]).all() for name in UNITS)


def test_the_best_of_some_are_kept_with_a_table_of_all(world: World, tmp_path: Path) -> None:
    table = pd.read_csv(world.observations)
    halves = {name: table[table.index % 2 == i] for i, name in enumerate(("O.csv", "held_out.csv"))}
    for name, half in halves.items():
        half.to_csv(tmp_path / name, index=False)
    options = ("--best-of", 5, "--members", 2, "--rewards", "observations", "--held-out", tmp_path / "held_out.csv")
    result = assimilate(world, tmp_path / "A.nc", *options, "--steps", 1, observations=tmp_path / "O.csv")
    assert (result.code, result.err) == (0, "")
    assert "A.rewards.csv: rewards of 5 candidates, the best 2 kept" in result.out
    rewards = pd.read_csv(tmp_path / "A.rewards.csv")
    best = rewards.nlargest(2, "observations")["member"]
    assert xr.load_dataset(tmp_path / "A.nc")["member"].values.tolist() == sorted(best)
    assert rewards["kept"].sum() == 2


def test_what_is_in_a_package_and_on_this_machine(world: World) -> None:
    code, out, err = lsda("inspect", world.package)
    assert (code, err) == (0, "")
    for word in (
        "3 channels on 8 x 10 points, regional",
        "z500 t850 msl",
        "12 x 1 x 1",
        "24 h",
        "linear",
        "wiener",
        "numbers of statistics",
    ):
        assert word in out
    code, out, err = lsda("doctor")
    assert (code, err) == (0, "")
    for word in ("lsda_fast", "torch", "device cpu", "backend reference", "matplotlib"):
        assert word in out


@pytest.mark.parametrize("command", ["", *typer.main.get_command(cli.app).commands])  # type: ignore[attr-defined]
def test_help(command: str) -> None:
    code, out, err = lsda(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert f"Usage: lsda {command}".strip() in out


def test_the_installed_program(world: World, tmp_path: Path) -> None:
    # What the installed script does, from an installation or a checkout.
    program = [sys.executable, "-c", "import sys; from lsda_fast.cli import main; sys.argv[0] = 'lsda'; main()"]

    def run(*arguments: object) -> Result:
        command = [*program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        return Result(done.returncode, done.stdout, done.stderr)

    nothing = run()
    assert (nothing.code, nothing.err) == (0, "")
    assert "assimilate" in nothing.out
    options = ("--background", world.background, "--observations", world.observations, "--output", tmp_path / "A.nc")
    more = ("--members", 2, "--robust", "huber:3", "--report", tmp_path / "report")
    code, out, err = run("assimilate", world.package, *options, *more)
    # No progress bars, and no library's warnings, where nobody looks.
    assert (code, err) == (0, "")
    assert re.search(r"60 of 60 observations \(\d+ with less than half their weight\)", out)
    assert run("inspect", "nowhere") == (
        2,
        "",
        "lsda: nowhere: no manifest.json there; accepted is the folder of a package\n",
    )


# Not errors


def test_orientation_and_wrap_of_background_and_observations_change_nothing(world: World, tmp_path: Path) -> None:
    assert assimilate(world, tmp_path / "A.nc", "--members", 2, "--steps", 1).code == 0
    background = xr.load_dataset(world.background)
    turned = background.assign_coords(longitude=background["longitude"] % 360).sortby("longitude").sortby("latitude")
    assert turned["longitude"].values[-1] == 358.0
    write_dataset(turned.transpose("longitude", "latitude"), tmp_path / "turned.nc")
    table = pd.read_csv(world.observations)
    table.assign(longitude=table["longitude"] % 360).to_csv(tmp_path / "turned.csv", index=False)
    result = assimilate(
        world, tmp_path / "T.nc", "--members", 2, "--steps", 1,
        background=tmp_path / "turned.nc", observations=tmp_path / "turned.csv",
    )  # fmt: skip
    assert result.code == 0
    assert same(tmp_path / "A.nc", tmp_path / "T.nc")


def test_duplicates_and_rows_without_use_change_nothing(world: World, tmp_path: Path) -> None:
    assert assimilate(world, tmp_path / "A.nc", "--steps", 1).code == 0
    table = pd.read_csv(world.observations)
    odd = table.assign(value=np.where(table.index % 2, -9.99e9, 9999.0))
    pd.concat([table, table, odd, table.assign(latitude=table["latitude"] - 40)]).to_csv(
        tmp_path / "O.csv", index=False
    )
    assert assimilate(world, tmp_path / "D.nc", "--steps", 1, observations=tmp_path / "O.csv").code == 0
    assert same(tmp_path / "A.nc", tmp_path / "D.nc")
    reasons = pd.read_csv(tmp_path / "D.departures.csv")["reason"].str.replace(r"\d+$", "#", regex=True).value_counts()
    assert reasons.to_dict() == {
        "duplicate of observation #": 60,
        "outside the domain": 60,
        "value 9999 is a fill value": 30,
        "value -9.99e+09 is a fill value": 30,
    }


# Errors

Case = Callable[[World, Path], Sequence[object]]


def changed_background(change: Callable[[xr.Dataset], xr.Dataset], *extra: object) -> Case:
    """Assimilation into another background than the world's."""

    def arguments(world: World, folder: Path) -> Sequence[object]:
        write_dataset(change(xr.load_dataset(world.background)), folder / "B.nc")
        return analysis(*extra, background=folder / "B.nc")(world, folder)

    return arguments


def changed_observations(change: Callable[[pd.DataFrame], pd.DataFrame], *extra: object) -> Case:
    """Assimilation of another table than the world's."""

    def arguments(world: World, folder: Path) -> Sequence[object]:
        change(pd.read_csv(world.observations)).to_csv(folder / "O.csv", index=False)
        return analysis(*extra, observations=folder / "O.csv")(world, folder)

    return arguments


def changed_package(change: Callable[[Path], object], *extra: object) -> Case:
    """Assimilation with a package that something was done to."""

    def arguments(world: World, folder: Path) -> Sequence[object]:
        package = shutil.copytree(world.package, folder / "package")
        change(package)
        return analysis(*extra, package=package)(world, folder)

    return arguments


def analysis(*extra: object, **changed: object) -> Case:
    """Assimilation with other files or further options; ``output`` is a name in the output folder."""

    def arguments(world: World, folder: Path) -> Sequence[object]:
        def file(name: str) -> object:
            given = changed.get(name, getattr(world, name))
            return given(folder) if callable(given) else given

        output = folder / "out" / str(changed.get("output", "A.nc"))
        return (
            "assimilate", file("package"), "--background", file("background"),
            "--observations", file("observations"), "--output", output, *extra,
        )  # fmt: skip

    return arguments


def prediction(*extra: object, **changed: object) -> Case:
    """A forecast from the world's states."""

    def arguments(world: World, folder: Path) -> Sequence[object]:
        initial = changed.get("initial", world.states)
        return ("forecast", world.package, "--initial", initial, "--output", folder / "out" / "F.nc", *extra)

    return arguments


def training(*extra: object) -> Case:
    """Training on the world's states."""
    return lambda world, folder: ("train", world.states, "--output", folder / "out" / "P", "--config", "tiny", *extra)


def written(name: str, content: str | bytes) -> Callable[[Path], Path]:
    """A file with this content."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return make


def filled(value: float) -> Case:
    """A background with one value of t850 replaced."""

    def change(background: xr.Dataset) -> xr.Dataset:
        values = background["t850"].values.copy()
        values[2, 3] = value
        return background.assign(t850=background["t850"].copy(data=values))

    return changed_background(change)


def without_defaults(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    (package / "manifest.json").write_text(json.dumps(manifest | {"observation_std": {}}))


def spoiled(package: Path) -> None:
    weights = package / "denoiser.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


HEADER = ",".join(COLUMNS) + "\n"
BAD: dict[str, tuple[Case, int, str]] = {
    # files
    "no package": (analysis(package="nowhere"), 2, "nowhere: no manifest.json there"),
    "no background": (analysis(background="nowhere.nc"), 2, "Nothing found at 'nowhere.nc'"),
    "no observations": (analysis(observations="nowhere.csv"), 2, "nowhere.csv is not a file; accepted: .csv"),
    "no initial state": (prediction(initial="nowhere.nc"), 2, "Nothing found at 'nowhere.nc'"),
    "no states": (lambda w, f: ("train", "no*.nc", "--output", f / "out" / "P"), 2, "Nothing found at 'no\\*.nc'"),
    "no truth": (lambda w, f: ("verify", w.background, "nowhere.nc"), 2, "Nothing found at 'nowhere.nc'"),
    "suffix of background": (analysis(background=written("B.txt", "hello")), 2, "B.txt' cannot be read as netCDF"),
    "suffix of observations": (analysis(observations=written("O.json", "{}")), 2, "unknown suffix; accepted: .csv"),
    "suffix of output": (analysis(output="A.txt"), 2, "A.txt; accepted are names that end in .nc or .zarr"),
    "empty background": (analysis(background=written("B.nc", "")), 2, "B.nc' cannot be read as netCDF"),
    "background cut short": (
        lambda w, f: analysis(background=written("B.nc", w.background.read_bytes()[:9000]))(w, f),
        2,
        "B.nc' cannot be read as netCDF",
    ),
    "empty observations": (analysis(observations=written("O.csv", "")), 2, "O.csv cannot be read: No columns"),
    "observations of bytes": (analysis(observations=written("O.csv", b"\xff\xfe\x00")), 2, "O.csv cannot be read"),
    "manifest not JSON": (
        changed_package(lambda p: (p / "manifest.json").write_text("{")),
        2,
        "manifest.json: not JSON",
    ),
    "weights changed": (changed_package(spoiled), 2, "SHA-256 is not the manifest's; the file was changed"),
    "weights gone": (changed_package(lambda p: (p / "whitening.safetensors").unlink()), 2, "safetensors: missing"),
    # the background
    "another grid": (
        changed_background(lambda b: b.assign_coords(latitude=b["latitude"] + 1.0)),
        2,
        "latitude 51..37 .* lacks 8 of the grid's points, the first at 50; accepted is latitude 50..36",
    ),
    "no grid": (changed_background(lambda b: b.isel(latitude=0)), 2, "no coordinate latitude"),
    "variable missing": (changed_background(lambda b: b.drop_vars("msl")), 2, "has no msl; it has z500, t850"),
    "wrong units": (
        changed_background(lambda b: b.assign(t850=b["t850"].assign_attrs(units="m"))),
        2,
        r"t850 \(t850\) has units 'm'; accepted are 'K'",
    ),
    "fill value 9999": (filled(9999.0), 2, "Missing values came: t850 has 1, the first of t850 at latitude 46"),
    "fill value -9.99e9": (filled(-9.99e9), 2, "Missing values came: t850 has 1"),
    "NaN": (filled(np.nan), 2, "Missing values came: t850 has 1"),
    "members": (changed_background(lambda b: b.expand_dims(member=3)), 2, "has 3 members; accepted is one state"),
    "several times": (lambda w, f: analysis(background=w.states)(w, f), 2, "the data hold 200 times, 2001-01-01"),
    "time not there": (
        lambda w, f: analysis("--time", "1999-01-01", background=w.states)(w, f),
        2,
        "time 1999-01-01 00:00:00 is not in the data; they reach from 2001-01-01",
    ),
    "not the background's time": (analysis("--time", "2001-07-12"), 2, "time 2001-07-12 00:00:00 is not in the data"),
    "time of a timeless one": (
        changed_background(lambda b: b.drop_vars("time"), "--time", VALID),
        2,
        "the data have no time",
    ),
    "time that is none": (prediction("--time", "noon"), 2, "'noon' is not a date"),
    # the observations
    "robust by another name": (analysis("--robust", "cauchy"), 2, "'cauchy'; accepted: none, huber.:THRESHOLD., varqc"),
    "robust without numbers": (analysis("--robust", "huber:x"), 2, "'huber:x'; accepted: .* with numbers"),
    "robust out of range": (analysis("--robust", "varqc:2"), 2, "accepted are 0 < gross_error < 1 and width > 0"),
    "robust for repaint": (analysis("--robust", "huber:3", "--guidance", "repaint"), 2, "came with Huber"),
    "column missing": (changed_observations(lambda o: o.drop(columns="value")), 2, "observations lack value"),
    "no rows": (analysis(observations=written("O.csv", HEADER)), 3, "none of 0 observations can be used"),
    "none inside": (
        changed_observations(lambda o: o.assign(latitude=0.0)),
        3,
        "none of 60 observations can be used; most often because: outside the domain",
    ),
    "none in the window": (
        changed_observations(lambda o: o.assign(time="2001-07-12")),
        3,
        "because: outside the window",
    ),
    "all of them fill values": (changed_observations(lambda o: o.assign(value=9999.0)), 3, "9999 is a fill value"),
    "no std known": (
        changed_package(without_defaults),
        3,
        "none of 60 observations can be used; most often because: no std, and the package has no default for it",
    ),
    # options
    "guidance": (analysis("--guidance", "hope"), 2, "'hope' is unknown; accepted: lo, mmps, dps, repaint, none"),
    "inner": (analysis("--inner", "newton"), 2, "'newton' is unknown; accepted: gauss_newton, adam, lbfgs"),
    "solver": (analysis("--solver", "rk9"), 2, "'rk9' is unknown; accepted: renoise, ancestral, ddim"),
    "covariance": (analysis("--prior-covariance", "round"), 2, "'round' is unknown; accepted: isotropic, diagonal"),
    "tweedie with Adam": (
        analysis("--inner", "adam", "--prior-covariance", "tweedie"),
        2,
        "prior_covariance='tweedie' came with Adam.*; accepted is GaussNewton",
    ),
    "stationary where whitened": (analysis("--prior-covariance", "stationary"), 2, "stationary"),
    "members 0": (analysis("--members", 0), 2, "'--members'.* 1"),
    "members a few": (analysis("--members", "few"), 2, "'--members'.* valid int"),
    "steps 0": (analysis("--steps", 0), 2, "'--steps'.* 1"),
    "seed below 0": (analysis("--seed", -1), 2, "'--seed'.* 0"),
    "start 0": (analysis("--start", 0), 2, "accepted is 0 <= stop < start <= 1"),
    "window": (analysis("--window", "soon"), 2, "accepted: a time and two durations such as '3h'"),
    "fewer candidates than members": (
        analysis("--best-of", 2, "--members", 3),
        2,
        "2 candidates for 3 members came; accepted are two at least",
    ),
    "physics without winds": (analysis("--best-of", 4), 2, "the physics reward needs geopotential .* z500, t850, msl"),
    "accuracy without a truth": (
        analysis("--best-of", 4, "--rewards", "accuracy"),
        2,
        "the accuracy reward needs the reference analysis",
    ),
    "rewards without a name": (analysis("--best-of", 4, "--rewards", ""), 2, "accepted, each once, are accuracy"),
    "held-out observations without rewards": (
        analysis("--held-out", "nowhere.csv"),
        2,
        "are for --rewards; it did not come",
    ),
    "another option": (analysis("--fast"), 2, "No such option: --fast"),
    "another command": (lambda w, f: ("dance",), 2, "No such command 'dance'"),
    "an option missing": (lambda w, f: ("forecast", w.package), 2, "Missing option '--initial'"),
    "device": (analysis("--device", "abacus"), 2, "'abacus' is unknown; accepted: cpu, cuda"),
    "device number": (analysis("--device", "cuda:one"), 2, "'cuda:one' is unknown"),
    "device not there": (analysis("--device", "cuda"), 2, "sees no CUDA device here"),
    "lead": (prediction("--time", INITIAL, "--lead", "36h"), 2, "lead 36 h; accepted are multiples of .* 24 h"),
    "lead that is none": (prediction("--time", INITIAL, "--lead", "soon"), 2, "lead 'soon' is not a time span"),
    "period": (training("--train", "2001"), 2, "--train '2001'; accepted is FIRST/LAST"),
    "period that is none": (training("--train", "then/now"), 2, "not dates"),
    "period without states": (training("--train", "1990-01-01/1990-02-01"), 2, "training period holds no states"),
    "configuration": (training("--config", "huge"), 2, "configuration 'huge': no such file; presets are tiny, small"),
    "variables": (training("--variables", "z500,q850"), 2, "has no q850; it has z500, t850, msl"),
    "an earlier run": (
        lambda w, f: ("train", w.states, "--output", w.package, "--config", "tiny"),
        2,
        "holds an earlier run; go on with --resume, or remove it",
    ),
    # outputs
    "folder not there": (analysis(output="deeper/A.nc"), 2, "A.nc: its folder does not exist"),
    "report is a file": (
        lambda w, f: analysis("--report", written("page", "")(f))(w, f),
        2,
        "page cannot be written; accepted is a folder",
    ),
    "demo into a file": (lambda w, f: ("demo", "--output", written("d", "")(f)), 2, "d cannot be written"),
}


def refused(result: Result, code: int, sentence: str) -> None:
    """One line on stderr, nothing on stdout, the exit code."""
    assert result.err.startswith("lsda: ")
    assert result.err.count("\n") == 1, result.err
    assert re.search(sentence, result.err), result.err
    assert (result.code, result.out) == (code, "")


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_gets_one_sentence(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "out").mkdir()
    arguments, code, sentence = BAD[case]
    refused(lsda(*arguments(world, tmp_path)), code, sentence)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("where", ["guidance", "decoder"])
def test_members_that_are_not_finite_are_named_and_nothing_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    guide, sentence = LatentOptimization.guide, "members \\[1\\] of seed 5 are not finite"

    def broken(self: LatentOptimization, z_t: torch.Tensor, context: Any) -> Any:
        estimate = guide(self, z_t, context)
        # 1e38 is finite, and its square is not.
        estimate.z0[1] = torch.nan if where == "guidance" else 3e38
        return estimate

    monkeypatch.setattr(LatentOptimization, "guide", broken)
    if where == "decoder":
        sentence = "members \\[.*1.*\\] of seed 5 are not finite"  # or all, where their common mean is not either
    refused(assimilate(world, tmp_path / "A.nc", "--members", 3, "--seed", 5), 4, sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["forecast", "assimilate"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr(Package, "load", lambda *_: pytest.fail("worked before looking"))
    case = {"forecast": ("forecast", world.package, "--initial", world.states, "--output", tmp_path / "A.nc")}
    result = lsda(*case[command]) if command in case else assimilate(world, tmp_path / "A.nc")
    refused(result, 2, "A.nc cannot be written; accepted is a file in a folder that is open to writing")


@pytest.mark.parametrize("command", ["forecast", "assimilate"])
def test_a_full_disk_leaves_nothing_behind(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def full(self: xr.Dataset, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    result = (
        lsda("forecast", world.package, "--initial", world.states, "--time", INITIAL, "--output", tmp_path / "A.nc")
        if command == "forecast"
        else assimilate(world, tmp_path / "A.nc")
    )
    refused(result, 2, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_program_is_not_hidden(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(StateLayout, "to_array", broken)
    monkeypatch.setattr(sys, "argv", ["lsda", "verify", str(world.background), str(world.truth)])
    with pytest.raises(ZeroDivisionError):
        cli.main()
