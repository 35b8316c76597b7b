"""The program in this process, a world of files for it, and ways to ask it for something wrong."""

import io
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from lsda_fast import cli
from lsda_fast.datasets import open_states, write_dataset

__all__ = ["COLUMNS", "INITIAL", "UNITS", "VALID", "Result", "assimilate", "check", "lsda", "made", "refused", "same"]

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


def made(folder: Path) -> World:
    """States, a package, a background, its truth, and observations of the truth, in this folder."""
    write_dataset(archive(200), folder / "states.nc")
    train = lsda("train", folder / "states.nc", "--config", "tiny", "--output", folder / "package")
    world = World(folder, train)
    initial = ("--initial", world.states, "--time", INITIAL)
    assert lsda("forecast", world.package, *initial, "--output", world.background).code == 0
    truth = open_states(world.states).sel(time=VALID).load()
    write_dataset(truth, world.truth)
    observed(truth, 20).to_csv(world.observations, index=False)
    return world


def assimilation(world: World, output: Path, *extra: object, **changed: object) -> tuple[object, ...]:
    """The arguments of ``lsda assimilate`` on the files of the world, or others in their place."""
    files = {name: changed.get(name, getattr(world, name)) for name in ("package", "background", "observations")}
    options = ("--background", files["background"], "--observations", files["observations"], "--output", output)
    return ("assimilate", files["package"], *options, *extra)


def assimilate(world: World, output: Path, *extra: object, **changed: object) -> Result:
    """``lsda assimilate`` on the files of the world, or others in their place."""
    return lsda(*assimilation(world, output, *extra, **changed))


def same(one: Path, two: Path) -> bool:
    """Whether all values of two files are the same, to the bit."""
    a, b = xr.load_dataset(one), xr.load_dataset(two)
    return set(a) == set(b) and all(a[name].values.tobytes() == b[name].values.tobytes() for name in a)


@dataclass(frozen=True)
class Mistake:
    """Arguments with something wrong in them, and the files that they name, in a folder whose ``out`` stays empty."""

    world: World
    folder: Path

    def analysis(self, *extra: object, output: str = "A.nc", **changed: object) -> Sequence[object]:
        """Assimilation with other files or further options; ``output`` is a name in the output folder."""
        return assimilation(self.world, self.folder / "out" / output, *extra, **changed)

    def changed_background(self, change: Callable[[xr.Dataset], xr.Dataset], *extra: object) -> Sequence[object]:
        """Assimilation into another background than the world's."""
        write_dataset(change(xr.load_dataset(self.world.background)), self.folder / "B.nc")
        return self.analysis(*extra, background=self.folder / "B.nc")

    def filled(self, value: float) -> Sequence[object]:
        """Assimilation into a background with one value of t850 replaced."""

        def change(background: xr.Dataset) -> xr.Dataset:
            values = background["t850"].values.copy()
            values[2, 3] = value
            return background.assign(t850=background["t850"].copy(data=values))

        return self.changed_background(change)

    def changed_observations(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Sequence[object]:
        """Assimilation of another table than the world's."""
        change(pd.read_csv(self.world.observations)).to_csv(self.folder / "O.csv", index=False)
        return self.analysis(observations=self.folder / "O.csv")

    def changed_package(self, change: Callable[[Path], object]) -> Sequence[object]:
        """Assimilation with a package that something was done to."""
        package = shutil.copytree(self.world.package, self.folder / "package")
        change(package)
        return self.analysis(package=package)

    def prediction(self, *extra: object, **changed: object) -> Sequence[object]:
        """A forecast from the world's states."""
        initial = changed.get("initial", self.world.states)
        output = self.folder / "out" / "F.nc"
        return ("forecast", self.world.package, "--initial", initial, "--output", output, *extra)

    def training(self, *extra: object) -> Sequence[object]:
        """Training on the world's states."""
        return ("train", self.world.states, "--output", self.folder / "out" / "P", "--config", "tiny", *extra)

    def folded(self, name: str) -> Path:
        """The folder, with a folder of this name in it."""
        (self.folder / name).mkdir()
        return self.folder

    def written(self, name: str, content: str | bytes) -> Path:
        """A file with this content."""
        (self.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return self.folder / name


def refused(result: Result, code: int, sentence: str) -> None:
    """One line on stderr, nothing on stdout, the exit code."""
    assert result.err.startswith("lsda: ")
    assert result.err.count("\n") == 1, result.err
    assert re.search(sentence, result.err), result.err
    assert (result.code, result.out) == (code, "")


def check(case: tuple[Callable[[Mistake], Sequence[object]], int, str], world: World, folder: Path) -> None:
    """A mistake gets its exit code and sentence on a machine without a GPU, and leaves nothing behind."""
    (folder / "out").mkdir()
    arguments, code, sentence = case
    with mock.patch("torch.cuda.is_available", return_value=False):
        refused(lsda(*arguments(Mistake(world, folder))), code, sentence)
    assert list((folder / "out").iterdir()) == []
