"""Layouts of real data: names, units, orientations and dimensions as archives have them."""

import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lsda_fast.datasets import open_states
from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, StateLayout

ERA_INTERIM = "era_interim_western_europe_2000_2008.nc"
ERA5 = "era5_global_tl31_19590102_00z.nc"


def gridded(name: str) -> xr.Dataset:
    shared = Path(os.environ.get("LSDA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    path = shared / "data" / "gridded" / name
    if not path.exists():
        pytest.skip(f"shared data not here: {name}")
    return open_states(path)


def test_era_interim():
    dataset = gridded(ERA_INTERIM)
    layout = StateLayout.infer(dataset)
    assert layout.names == ("z500", "t850", "msl")
    assert layout.channels[1] == Channel("t", 850.0, "K", "air_temperature")
    assert layout.shape == (3, 11, 13)
    assert not layout.grid.periodic
    year = dataset.sel(time="2008")
    array = layout.to_array(year)
    np.testing.assert_array_equal(array[:, 0], year["z500"].values)
    # 24 h persistence, the error that the data's notes give for a forecast of no change.
    rmse = np.sqrt(np.mean(np.diff(layout.to_array(dataset).astype("f8"), axis=0) ** 2, axis=(0, 2, 3)))
    np.testing.assert_allclose(rmse, [625, 2.8, 545], rtol=0.02)
    again = layout.to_dataset(array, dims=("time",), coords={"time": year.time}, style=layout.style_of(year))
    for name in layout.names:
        assert again[name].equals(year[name].assign_coords(latitude=again.latitude, longitude=again.longitude))


def test_era5_global():
    dataset = gridded(ERA5)
    layout = StateLayout.infer(dataset, ["z", "t", "u_component_of_wind"])
    assert layout.shape == (111, 32, 64)
    assert layout.names[:2] == ("z1", "z2")
    assert layout.names[-1] == "u1000"
    assert layout.grid.periodic
    assert layout.grid.latitude[0] > 85
    array = layout.to_array(dataset)
    source = dataset["temperature"].sel(level=850).isel(latitude=-3, longitude=7).item()
    assert array[layout.index("t850"), 2, 7] == np.float32(source)
    # Warm tropics, cold poles; geopotential at 500 hPa near 5.6 km above sea.
    t850 = array[layout.index("t850")].mean(axis=-1)
    assert t850[14:18].min() > t850[[0, -1]].max() + 20
    z500 = (array[layout.index("z500")] * layout.grid.area_weights[:, None]).mean()
    np.testing.assert_allclose(z500 / 9.80665, 5600, rtol=0.03)
    sea = StateLayout.infer(dataset, ["sst", "sea_ice_cover"])
    assert [c.units for c in sea.channels] == ["K", "1"]
    assert sea.to_array(dataset).min() >= 0


def test_ncep_ascending_latitudes_and_other_names():
    dataset = gridded("ncep_slp_north_atlantic_2001_2007.nc").isel(time=slice(20))
    layout = StateLayout.infer(dataset)
    assert layout.names == ("slp",)
    assert layout.grid.latitude[0] == 70
    array = layout.to_array(dataset)
    np.testing.assert_array_equal(array[:, 0], dataset["slp"].values[:, ::-1])
    assert 9.2e4 < array.min() < array.max() < 1.07e5


def test_a_dimension_that_states_do_not_have_is_named():
    dataset = gridded("mediterranean_winds_with_quikscat.nc")
    with pytest.raises(InputError, match="u10 has the dimension step"):
        StateLayout.infer(dataset)
    with pytest.raises(InputError, match="times 0, with the units 'none', are no dates"):
        StateLayout.infer(dataset.rename(step="time"))
    hours = np.datetime64("2000-01-01", "ns") + np.arange(14) * np.timedelta64(6, "h")
    dataset = dataset.rename(step="time").assign_coords(time=hours)
    layout = StateLayout.infer(dataset)
    assert [(c.name, c.level) for c in layout.channels] == [("u10", None), ("v10", None), ("msl", None)]
    assert layout.to_array(dataset).shape == (14, 3, 25, 47)
