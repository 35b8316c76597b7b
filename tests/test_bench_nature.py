"""The nature run's model as a judge of forecasts: its columns from pressure levels, and how its two halves speak."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from bench.cases.nature_model import NatureForecast
from bench.nature import HUMID_LEVELS, LEVELS, P0, SOURCES, state_on_pressure_levels
from bench.nature_forecast import NAMES, Columns, climate_of
from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.package import Package

ROOT = Path(__file__).resolve().parents[1]
SIGMA = np.array([0.025, 0.095, 0.2, 0.34, 0.51, 0.685, 0.835, 0.95])
LATITUDE, LONGITUDE = np.array([-45.0, 0.0, 45.0]), np.arange(4) * 90.0
TIME = np.datetime64("2002-02-03T06", "ns")
# A model that tells where north is, at which time it began and how far it went.
MODEL = """
import sys
import numpy as np
from bench.nature_forecast import serve

class Model:
    latitude, longitude = np.array([-45.0, 0.0, 45.0]), np.arange(4) * 90.0

    def __call__(self, state, time, hours):
        north = self.latitude[:, None] > 0
        return {name: x + hours * north + (time == np.datetime64("2002-02-03T06")) for name, x in state.items()}

serve(Model(), sys.stdin.buffer, sys.stdout.buffer)
"""


def native(times: int, seed: int = 0) -> xr.Dataset:
    """Columns that vary together, some more than others, on the model's levels, from the lowest as it writes them."""
    rng = np.random.default_rng(seed)
    shape = (times, 8, len(LONGITUDE), len(LATITUDE))
    fields = {name: np.cumsum(rng.standard_normal(shape), 1) + 20 for name in SOURCES.values()}
    fields["specific_humidity"] = 5 + rng.uniform(size=shape)
    dims = ("time", "level", "lon", "lat")
    ps = 1 + 0.02 * rng.standard_normal((times, len(LONGITUDE), len(LATITUDE)))
    data = {name: (dims, values[:, ::-1]) for name, values in fields.items()}
    data["normalized_surface_pressure"] = (("time", "lon", "lat"), ps)
    return xr.Dataset(data, coords={"level": SIGMA[::-1], "lat": LATITUDE, "lon": LONGITUDE})


def column(dataset: xr.Dataset, name: str) -> np.ndarray:
    return dataset[SOURCES[name]].isel(time=0).sortby("level").transpose("level", "lat", "lon").values


def test_what_the_pressure_levels_see_is_kept() -> None:
    columns = Columns(SIGMA, climate_of(native(200)))
    states = native(1, seed=1)
    first = {name: values[0] for name, values in state_on_pressure_levels(states).items()}
    assert first.keys() == NAMES
    found = columns(first)
    again = states.copy()
    for name, values in found.items():
        again[SOURCES[name]] = (("time", "level", "lat", "lon"), values[None, ::-1])
    for name, values in state_on_pressure_levels(again).items():
        np.testing.assert_allclose(values[0], first[name], rtol=2e-3)
    # All but the uppermost level is seen, by 100 hPa and below.
    for name in "tuv":
        np.testing.assert_allclose(found[name][2:], column(states, name)[2:], atol=0.05)


def test_what_they_do_not_see_is_regressed() -> None:
    """The uppermost level where it is twice the next one."""
    climate, state = native(200), native(1, seed=1)
    for dataset in (climate, state):
        dataset["temperature"].loc[{"level": 0.025}] = 2 * dataset["temperature"].sel(level=0.095) + 3
    first = {name: values[0] for name, values in state_on_pressure_levels(state).items()}
    found = Columns(SIGMA, climate_of(climate))(first)["t"]
    np.testing.assert_allclose(found[:2], column(state, "t")[:2], atol=0.1)


def test_moisture_is_not_negative() -> None:
    columns = Columns(SIGMA, climate_of(native(200)))
    first = {name: values[0] for name, values in state_on_pressure_levels(native(1)).items()}
    for level in HUMID_LEVELS:
        first[f"q{level}"] = np.full_like(first[f"q{level}"], -1.0)
    assert (columns(first)["q"] >= 0).all()


def package(latitude: np.ndarray = LATITUDE[::-1], without: str = "") -> Package:
    """All channels of the run, from north to south."""
    channels = [Channel(v, float(p), "") for v in SOURCES for p in (HUMID_LEVELS if v == "q" else LEVELS)]
    channels = [c for c in [*channels, Channel("sp", None, "")] if c.name != without]
    ones = np.ones(len(channels))
    layout = StateLayout(Grid(latitude, LONGITUDE), tuple(channels))
    return Package(layout, Normalization(P0 * ones, 2 * ones), Schedule.edm(), "wiener", {}, {}, 0 * ones)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that has another model, and a run without one."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "checkpoint.msgpack").touch()
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "{tmp_path}/model.py"\n')
    script.chmod(0o755)
    return script


def test_states_go_there_and_back(python: Path) -> None:
    model = NatureForecast(package(), python.parent, python, workers=2)
    x = torch.randn(3, *model.package.layout.shape, generator=torch.Generator().manual_seed(0))
    for hours in (48.0, 6.0):
        expected = x + 0.5  # the time's 1, in units of the standard deviation
        expected[:, :, 0] += hours / 2
        torch.testing.assert_close(model(x, TIME, hours), expected, atol=0.01, rtol=0)
    with pytest.raises(InputError, match=r"lead 0.75 h; accepted are multiples of the model's half hour"):
        model(x, TIME, 0.75)


def test_there_may_be_fewer_states_than_workers(python: Path) -> None:
    model = NatureForecast(package(), python.parent, python, workers=3)
    x = torch.zeros(2, *model.package.layout.shape)
    for states in (x[:1], x, x[:1]):
        assert model(states, TIME, 6.0)[:, 0, 0].tolist() == pytest.approx(np.full((len(states), 4), 3.5), abs=0.01)


def test_another_layout_is_refused(python: Path, tmp_path: Path) -> None:
    for given, message in (
        (package(LATITUDE[::-1] + 1), "the nature run's model has its own 3 x 4 points; accepted are the same"),
        (package(without="sp"), r"needs \['sp'\] too and has no \[\]"),
    ):
        with pytest.raises(InputError, match=message):
            NatureForecast(given, python.parent, python)
    with pytest.raises(InputError, match="no such interpreter"):
        NatureForecast(package(), tmp_path, tmp_path / "absent")
    with pytest.raises(InputError, match="no such checkpoint of a nature run"):
        NatureForecast(package(), tmp_path / "absent", python)
