"""Files, backgrounds and observations that are wrong: one sentence, an exit code, and nothing left behind."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import xarray as xr


def without_defaults(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    (package / "manifest.json").write_text(json.dumps(manifest | {"observation_std": {}}))


def spoiled(package: Path) -> None:
    weights = package / "denoiser.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


BAD: dict[str, tuple[Callable[[Any], Sequence[object]], int, str]] = {
    # files
    "no package": (lambda a: a.analysis(package="nowhere"), 2, "nowhere: no manifest.json there"),
    "no background": (lambda a: a.analysis(background="nowhere.nc"), 2, "Nothing found at 'nowhere.nc'"),
    "no observations": (
        lambda a: a.analysis(observations="nowhere.csv"),
        2,
        "nowhere.csv is not a file; accepted: .csv",
    ),
    "no initial state": (lambda a: a.prediction(initial="nowhere.nc"), 2, "Nothing found at 'nowhere.nc'"),
    "no states": (lambda a: ("train", "no*.nc", "--output", a.folder / "out" / "P"), 2, "Nothing found at 'no\\*.nc'"),
    "no truth": (lambda a: ("verify", a.world.background, "nowhere.nc"), 2, "Nothing found at 'nowhere.nc'"),
    "suffix of background": (
        lambda a: a.analysis(background=a.written("B.txt", "hello")),
        2,
        "B.txt' cannot be read as netCDF",
    ),
    "suffix of observations": (
        lambda a: a.analysis(observations=a.written("O.json", "{}")),
        2,
        "unknown suffix; accepted: .csv",
    ),
    "suffix of output": (lambda a: a.analysis(output="A.txt"), 2, "A.txt; accepted are names that end in .nc or .zarr"),
    "empty background": (lambda a: a.analysis(background=a.written("B.nc", "")), 2, "B.nc' cannot be read as netCDF"),
    "background cut short": (
        lambda a: a.analysis(background=a.written("B.nc", a.world.background.read_bytes()[:9000])),
        2,
        "B.nc' cannot be read as netCDF",
    ),
    "empty observations": (
        lambda a: a.analysis(observations=a.written("O.csv", "")),
        2,
        "O.csv cannot be read: No columns",
    ),
    "observations of bytes": (
        lambda a: a.analysis(observations=a.written("O.csv", b"\xff\xfe\x00")),
        2,
        "O.csv cannot be read",
    ),
    "manifest not JSON": (
        lambda a: a.changed_package(lambda p: (p / "manifest.json").write_text("{")),
        2,
        "manifest.json: not JSON",
    ),
    "weights changed": (lambda a: a.changed_package(spoiled), 2, "SHA-256 is not the manifest's; the file was changed"),
    "weights gone": (
        lambda a: a.changed_package(lambda p: (p / "whitening.safetensors").unlink()),
        2,
        "safetensors: missing",
    ),
    # the background
    "another grid": (
        lambda a: a.changed_background(lambda b: b.assign_coords(latitude=b["latitude"] + 1.0)),
        2,
        "latitude 51..37 .* lacks 8 of the grid's points, the first at 50; accepted is latitude 50..36",
    ),
    "no grid": (lambda a: a.changed_background(lambda b: b.isel(latitude=0)), 2, "no coordinate latitude"),
    "variable missing": (
        lambda a: a.changed_background(lambda b: b.drop_vars("msl")),
        2,
        "has no msl; it has z500, t850",
    ),
    "wrong units": (
        lambda a: a.changed_background(lambda b: b.assign(t850=b["t850"].assign_attrs(units="m"))),
        2,
        r"t850 \(t850\) has units 'm'; accepted are 'K'",
    ),
    "fill value 9999": (
        lambda a: a.filled(9999.0),
        2,
        "Missing values came: t850 has 1, the first of t850 at latitude 46",
    ),
    "fill value -9.99e9": (lambda a: a.filled(-9.99e9), 2, "Missing values came: t850 has 1"),
    "NaN": (lambda a: a.filled(np.nan), 2, "Missing values came: t850 has 1"),
    "members": (
        lambda a: a.changed_background(lambda b: b.expand_dims(member=3)),
        2,
        "has 3 members; accepted is one state",
    ),
    "several times": (lambda a: a.analysis(background=a.world.states), 2, "the data hold 200 times, 2001-01-01"),
    "time not there": (
        lambda a: a.analysis("--time", "1999-01-01", background=a.world.states),
        2,
        "time 1999-01-01 00:00:00 is not in the data; they reach from 2001-01-01",
    ),
    "not the background's time": (
        lambda a: a.analysis("--time", "2001-07-12"),
        2,
        "time 2001-07-12 00:00:00 is not in the data",
    ),
    "time of a timeless one": (
        lambda a: a.changed_background(lambda b: b.drop_vars("time"), "--time", "2001-07-11"),
        2,
        "the data have no time",
    ),
    "times of another calendar": (
        lambda a: a.changed_background(lambda b: b.expand_dims("time").convert_calendar("noleap", use_cftime=True)),
        2,
        "times of the calendar noleap came; accepted are those of the standard calendar",
    ),
    "states without times": (
        lambda a: a.changed_background(lambda b: xr.concat([b.drop_vars("time")] * 2, "time")),
        2,
        "2 states without times came; accepted is one state, or times",
    ),
    "time that is none": (lambda a: a.prediction("--time", "noon"), 2, "'noon' is not a date"),
    # the observations
    "robust by another name": (
        lambda a: a.analysis("--robust", "cauchy"),
        2,
        "'cauchy'; accepted: none, huber.:THRESHOLD., varqc",
    ),
    "robust without numbers": (lambda a: a.analysis("--robust", "huber:x"), 2, "'huber:x'; accepted: .* with numbers"),
    "robust out of range": (
        lambda a: a.analysis("--robust", "varqc:2"),
        2,
        "accepted are 0 < gross_error < 1 and width > 0",
    ),
    "robust for repaint": (lambda a: a.analysis("--robust", "huber:3", "--guidance", "repaint"), 2, "came with Huber"),
    "column missing": (
        lambda a: a.changed_observations(lambda o: o.drop(columns="value")),
        2,
        "observations lack value",
    ),
    "no rows": (lambda a: a.changed_observations(lambda o: o.head(0)), 3, "none of 0 observations can be used"),
    "none inside": (
        lambda a: a.changed_observations(lambda o: o.assign(latitude=0.0)),
        3,
        "none of 60 observations can be used; most often because: outside the domain",
    ),
    "none in the window": (
        lambda a: a.changed_observations(lambda o: o.assign(time="2001-07-12")),
        3,
        "because: outside the window",
    ),
    "all of them fill values": (
        lambda a: a.changed_observations(lambda o: o.assign(value=9999.0)),
        3,
        "9999 is a fill value",
    ),
    "no std known": (
        lambda a: a.changed_package(without_defaults),
        3,
        "none of 60 observations can be used; most often because: no std, and the package has no default for it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_gets_one_sentence(program: ModuleType, world: Any, tmp_path: Path, case: str) -> None:
    program.check(BAD[case], world, tmp_path)
