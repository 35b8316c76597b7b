"""The layout is a faithful door: whatever the orientation, names and units outside, the same state inside."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from lsda_fast.datasets import open_states, write_dataset
from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout

ERA_INTERIM = "era_interim_western_europe_2000_2008.nc"
ERA5 = "era5_global_tl31_19590102_00z.nc"
GLOBAL = Grid(np.linspace(90, -90, 7), np.arange(0, 360, 30.0))
CHANNELS = (
    Channel("z", 500.0, "m2 s-2", "geopotential"),
    Channel("z", 850.0, "m2 s-2", "geopotential"),
    Channel("t", 850.0, "K", "air_temperature"),
    Channel("t", 500.0, "K", "air_temperature"),
    Channel("u10", None, "m s-1", "eastward_wind"),
    Channel("msl", None, "Pa", "air_pressure_at_mean_sea_level"),
)
LAYOUT = StateLayout(GLOBAL, CHANNELS)
TIMES = np.array(["2008-12-08T00", "2008-12-08T12"], dtype="datetime64[ns]")
STYLES = ("flat", "levels")


def gridded(name: str) -> xr.Dataset:
    shared = Path(os.environ.get("LSDA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    path = shared / "data" / "gridded" / name
    if not path.exists():
        pytest.skip(f"shared data not here: {name}")
    return open_states(path)


def state(*lead: int, layout: StateLayout = LAYOUT) -> np.ndarray:
    rng = np.random.default_rng(7)
    scale = np.array([5e4, 1.4e4, 280.0, 255.0, 5.0, 1e5])[: len(layout.channels), None, None]
    return (scale * rng.normal(1.0, 0.05, (*lead, *layout.shape))).astype(np.float32)


def one(style: str = "flat") -> xr.Dataset:
    return LAYOUT.to_dataset(state(), style=style)


# Grid


def test_area_weights_are_the_cosine_with_mean_one():
    grid = Grid(np.array([60.0, 0.0]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(grid.area_weights, [2 / 3, 4 / 3], rtol=1e-15)
    # On equal steps the mean of cosine x weight is the mean of cos^2 over the mean of cos, pi/4 in the limit.
    fine = Grid(np.linspace(89.95, -89.95, 1800), np.array([0.0]))
    cosine = np.cos(np.deg2rad(fine.latitude))
    np.testing.assert_allclose((cosine * fine.area_weights).mean(), np.pi / 4, rtol=1e-6)
    assert (GLOBAL.area_weights >= 0).all()


@pytest.mark.parametrize(
    ("longitude", "periodic"),
    [
        (np.arange(0, 360, 30.0), True),
        (np.arange(-180, 180, 2.8125), True),
        (np.arange(0, 330, 30.0), False),
        (np.arange(-15, 15.1, 2.5), False),
        (np.array([0.0]), False),
        (np.arange(0, 360, 0.1, dtype=np.float32), True),
    ],
)
def test_periodic_means_closed(longitude, periodic):
    assert Grid(np.array([0.0]), longitude).periodic is periodic


@pytest.mark.parametrize(
    ("latitude", "poles"),
    [
        (np.linspace(90, -90, 73), (True, True)),
        (90 - 22.5 * (np.arange(8) + 0.5), (True, True)),
        (np.linspace(87.5, -87.5, 71), (True, True)),  # the poles left out
        (np.linspace(87.5, -87.5, 71, dtype=np.float32), (True, True)),
        (np.array([85.76, 80.27, 74.74, -74.74, -80.27, -85.76]), (True, True)),  # Gaussian
        (np.linspace(30, -30, 25), (False, False)),
        (np.linspace(88.75, 1.25, 36), (True, False)),
        (np.linspace(1.25, -88.75, 37), (False, True)),
        (np.linspace(85, -85, 69), (False, False)),
        (np.array([0.0]), (False, False)),
    ],
)
def test_a_grid_reaches_a_pole_within_one_row(latitude, poles):
    assert Grid(latitude, np.array([0.0])).poles == poles


def test_grids_are_equal_by_value_within_32_bits():
    same = Grid(GLOBAL.latitude.astype("f4") + 5e-5, GLOBAL.longitude.astype("f4"))
    assert same == GLOBAL
    assert hash(same) == hash(GLOBAL)
    assert Grid(GLOBAL.latitude, GLOBAL.longitude + 1e-3) != GLOBAL
    assert Grid(GLOBAL.latitude[:-1], GLOBAL.longitude) != GLOBAL
    with pytest.raises(ValueError, match="read-only"):
        GLOBAL.latitude[0] = 0.0


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        ([0.0, 1.0], [0.0], "latitude 0..1"),
        ([91.0, 1.0], [0.0], "latitude 91..1"),
        ([np.nan], [0.0], "latitude came with shape"),
        ([0.0], [], "longitude came with shape"),
        ([0.0], [1.0, 0.0], "longitude 1..0"),
        ([0.0], [0.0, 180.0, 360.0], "0 and 360 not both"),
        ([0.0], [-200.0, 0.0], "longitude -200..0"),
    ],
)
def test_grids_that_are_refused(latitude, longitude, message):
    with pytest.raises(InputError, match=message):
        Grid(np.array(latitude), np.array(longitude))


@pytest.mark.parametrize(
    ("came", "expected"),
    [
        (np.arange(0, 360, 30.0)[::-1], np.arange(0, 360, 30.0)),
        (np.arange(-180, 180, 30.0), np.arange(-180, 180, 30.0)),
        (np.r_[350.0, 355.0, 0.0, 5.0], np.array([-10.0, -5.0, 0.0, 5.0])),
        (np.r_[0.0, 5.0, 350.0, 355.0], np.array([-10.0, -5.0, 0.0, 5.0])),
        (np.r_[170.0, 175.0, -180.0, -175.0], np.array([170.0, 175.0, 180.0, 185.0])),
    ],
)
def test_regions_cut_by_the_edge_are_joined(came, expected):
    np.testing.assert_array_equal(Grid.from_coordinates(np.array([0.0]), came).longitude, expected)


# Normalization


def test_normalization_is_its_own_inverse_and_alike_in_numpy_and_torch():
    norm = Normalization(np.array([250.0, 5.0]), np.array([8.0, 0.5]))
    x = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
    np.testing.assert_array_equal(norm.normalize(x)[:, 0], (x[:, 0] - 250) / 8)
    np.testing.assert_allclose(norm.denormalize(norm.normalize(x)), x, rtol=1e-12, atol=1e-12)
    for dtype in (torch.float32, torch.float64):
        tensor = norm.normalize(torch.as_tensor(x, dtype=dtype))
        assert tensor.dtype is dtype
        np.testing.assert_array_equal(tensor.numpy(), norm.normalize(x.astype(tensor.numpy().dtype)))
    assert norm.normalize(x.astype(np.float32)).dtype == np.float32


def test_normalization_round_trips_through_json():
    norm = Normalization(np.array([0.1, 1 / 3]), np.array([1e-7, 2e4]))
    assert Normalization.from_dict(json.loads(json.dumps(norm.to_dict()))) == norm


@pytest.mark.parametrize(
    ("mean", "std"),
    [([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([np.nan], [1.0]), ([1.0], [-1.0]), ([[1.0]], [[1.0]])],
)
def test_normalizations_that_are_refused(mean, std):
    with pytest.raises(InputError, match="accepted are"):
        Normalization(np.array(mean), np.array(std))


def test_normalization_refuses_other_channels():
    with pytest.raises(InputError, match=r"accepted is \(\.\.\., 2, H, W\)"):
        Normalization(np.zeros(2), np.ones(2)).normalize(np.zeros((3, 4, 5)))


# Layout


def test_names_shape_and_index():
    assert LAYOUT.names == ("z500", "z850", "t850", "t500", "u10", "msl")
    assert LAYOUT.shape == (6, 7, 12)
    assert LAYOUT.index("t500") == 3
    with pytest.raises(InputError, match="Channel 'q500' came; accepted are z500"):
        LAYOUT.index("q500")
    assert Channel("z", 0.5, "").name == "z0.5"
    with pytest.raises(InputError, match="z500 came more than once"):
        StateLayout(GLOBAL, (CHANNELS[0], CHANNELS[0]))
    with pytest.raises(InputError, match="without channels"):
        StateLayout(GLOBAL, ())


def test_layout_round_trips_through_json():
    again = StateLayout.from_dict(json.loads(json.dumps(LAYOUT.to_dict())))
    assert again == LAYOUT
    np.testing.assert_array_equal(again.grid.latitude, GLOBAL.latitude)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dims", [(), ("time",), ("member",), ("time", "member"), ("member", "time")])
def test_round_trip_to_the_bit(style, dims):
    array = state(*(2 if dim == "time" else 3 for dim in dims))
    coords = {key: value for key, value in (("time", TIMES), ("member", [0, 1, 2])) if key in dims}
    dataset = LAYOUT.to_dataset(array, dims=dims, coords=coords, style=style)
    assert LAYOUT.style_of(dataset) == style
    expected = array.swapaxes(0, 1) if dims == ("member", "time") else array
    np.testing.assert_array_equal(LAYOUT.to_array(dataset), expected)
    inferred = StateLayout.infer(dataset)
    assert set(inferred.channels) == set(CHANNELS)
    assert inferred.grid == GLOBAL


def test_infer_keeps_the_order_of_the_data_set():
    assert StateLayout.infer(one()) == LAYOUT
    assert StateLayout.infer(one("levels")).names == ("u10", "msl", "z500", "z850", "t500", "t850")
    for style in STYLES:
        assert StateLayout.infer(one(style), ["msl", "t850", "z"]).names == ("msl", "t850", "z500", "z850")
    assert StateLayout.infer(one().drop_attrs()).channels[0] == Channel("z", 500.0, "", "")


@pytest.mark.parametrize("style", STYLES)
def test_every_orientation_is_the_same_state(style):
    array = state(2)
    dataset = LAYOUT.to_dataset(array, dims=("time",), coords={"time": TIMES}, style=style)
    west_east = [
        dataset,
        dataset.isel(longitude=slice(None, None, -1)),
        dataset.roll(longitude=5, roll_coords=True),
        dataset.assign_coords(longitude=(dataset.longitude + 180) % 360 - 180).sortby("longitude"),
        dataset.assign_coords(longitude=dataset.longitude.astype("f4")),
    ]
    orders = [None, ("longitude", "latitude"), ("latitude", "time", "longitude")]
    for data, south_first, order in itertools.product(west_east, (False, True), orders):
        turned = data.isel(latitude=slice(None, None, -1)) if south_first else data
        turned = turned if order is None else turned.transpose(*order, ...)
        np.testing.assert_array_equal(LAYOUT.to_array(turned), array)
    if style == "levels":
        np.testing.assert_array_equal(LAYOUT.to_array(dataset.isel(level=[1, 0])), array)
        pascal = (
            dataset.assign_coords(plev=("level", dataset.level.values * 100)).swap_dims(level="plev").drop_vars("level")
        )
        np.testing.assert_array_equal(LAYOUT.to_array(pascal), array)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("style", STYLES)
def test_files_round_trip_to_the_bit(tmp_path, suffix, style):
    array = state(2, 3)
    coords = {"time": TIMES, "member": [0, 1, 2]}
    path = tmp_path / f"state{suffix}"
    write_dataset(LAYOUT.to_dataset(array, dims=("time", "member"), coords=coords, style=style), path)
    np.testing.assert_array_equal(LAYOUT.to_array(open_states(path)), array)


@pytest.mark.parametrize("style", STYLES)
def test_written_files_are_cf(tmp_path, style):
    pytest.importorskip("cf_xarray")
    from cf_xarray.units import units

    dataset = LAYOUT.to_dataset(state(2), dims=("time",), coords={"time": TIMES}, style=style, attrs={"title": "a"})
    write_dataset(dataset, tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as written:
        assert written.attrs == {"Conventions": "CF-1.11", "title": "a"}
        for key in ("latitude", "longitude", "time"):
            assert written.cf[key].name == key
        assert {k: v[0] for k, v in written.cf.axes.items()} == {
            "T": "time", "Y": "latitude", "X": "longitude", **({"Z": "level"} if style == "levels" else {})
        }  # fmt: skip
        for array in written.data_vars.values():
            units.parse_units(array.attrs["units"])
        name = "z" if style == "levels" else "z500"
        assert written.cf.standard_names["geopotential"][0] == name
    with xr.open_dataset(tmp_path / "a.nc", decode_cf=False) as raw:
        assert not any("_FillValue" in raw[name].attrs for name in raw.coords)


def test_a_region_is_cut_from_the_globe_at_the_same_points():
    array = state()
    region = StateLayout(Grid(np.array([60.0, 30.0]), np.array([-60.0, -30.0, 0.0, 30.0])), CHANNELS)
    np.testing.assert_array_equal(region.to_array(one()), array[:, 1:3][:, :, [10, 11, 0, 1]])
    off = StateLayout(Grid(np.array([60.0, 31.0]), np.array([0.0])), CHANNELS)
    with pytest.raises(
        InputError, match=r"latitude 90\.\.-90 \(7 points\) lacks 1 of the grid's points, the first at 31"
    ):
        off.to_array(one())
    with pytest.raises(InputError, match=r"longitude 0\.\.120"):
        LAYOUT.to_array(one().isel(longitude=slice(5)))


def test_units_are_converted_on_the_way_in():
    array = state().astype(np.float64)
    dataset = LAYOUT.to_dataset(array)
    for name, units, value in (
        ("t850", "degC", dataset.t850 - 273.15),
        ("msl", "hPa", dataset.msl / 100),
        ("z500", "m**2 s**-2", dataset.z500),
    ):
        dataset[name] = value.assign_attrs(units=units)
    np.testing.assert_array_equal(LAYOUT.to_array(dataset), array.astype(np.float32))
    # Without units a variable is taken to have the layout's.
    np.testing.assert_array_equal(LAYOUT.to_array(one().drop_attrs()), state())


@pytest.mark.parametrize("units", ["m", "no such unit", "((", "gpm"])
def test_units_that_do_not_convert_are_refused(units):
    dataset = one()
    dataset["z500"].attrs["units"] = units
    with pytest.raises(InputError) as caught:
        LAYOUT.to_array(dataset)
    assert str(caught.value) == (
        f"z500 (z500) has units '{units}'; accepted are 'm2 s-2' and CF units that convert to it."
    )


def test_variables_are_found_by_either_style_or_their_standard_name():
    array = state()
    renamed = one("levels").rename(z="geopotential", t="temperature", msl="pressure")
    np.testing.assert_array_equal(LAYOUT.to_array(renamed), array)
    assert StateLayout.infer(renamed, ["geopotential"]).names == ("z500", "z850")
    np.testing.assert_array_equal(LAYOUT.to_array(one().rename(z500="z_500", t850="T850")), array)
    # eastward_wind without a pressure could be at any height.
    with pytest.raises(InputError, match="has no u10"):
        LAYOUT.to_array(one().rename(u10="u100"))


def test_absent_variables_are_named_all_at_once():
    with pytest.raises(InputError, match="has no z850, t500, msl; it has z500, t850, u10"):
        LAYOUT.to_array(one().drop_vars(["z850", "t500", "msl"]))
    with pytest.raises(InputError, match="has no q, z300; it has z500"):
        StateLayout.infer(one(), ["q", "z500", "z300"])
    with pytest.raises(InputError, match="Channel z500 is there 2 times, in the variables z, z500"):
        LAYOUT.to_array(one("levels").assign(z500=one()["z500"]))


@pytest.mark.parametrize("code", [np.nan, 9999.0, -9.99e9])
def test_missing_values_are_refused_or_masked(code):
    array = state(2)
    array[1, 2, 3, 4] = code
    array[1, 5, 0, :2] = code
    dataset = LAYOUT.to_dataset(array, dims=("time",), coords={"time": TIMES})
    with pytest.raises(InputError) as caught:
        LAYOUT.to_array(dataset)
    assert str(caught.value) == (
        "Missing values came: t850 has 1, msl has 2, the first of t850 at time "
        "2008-12-08T12:00:00, latitude 0, longitude 120; accepted are complete fields, or missing='mask'."
    )
    masked = LAYOUT.to_array(dataset, missing="mask")
    assert np.isnan(masked).sum() == 3
    keep = ~np.isnan(masked)
    np.testing.assert_array_equal(masked[keep], array[keep])
    # A fill value outside the region that is read does no harm.
    region = StateLayout(Grid(np.array([-30.0]), np.array([0.0])), CHANNELS)
    assert np.isfinite(region.to_array(dataset)).all()


def test_fill_values_are_found_before_units_are_converted():
    dataset = one()
    dataset["t850"] = (dataset.t850 - 273.15).assign_attrs(units="degC")
    dataset["t850"][0, 0] = -9999.0
    assert np.isnan(LAYOUT.to_array(dataset, missing="mask")[2, 0, 0])


def test_static_fields_are_repeated_along_time():
    array = state(2)
    dataset = LAYOUT.to_dataset(array, dims=("time",), coords={"time": TIMES})
    dataset["msl"] = dataset["msl"].isel(time=0, drop=True)
    result = LAYOUT.to_array(dataset)
    np.testing.assert_array_equal(result[1, 5], array[0, 5])
    np.testing.assert_array_equal(result[:, :5], array[:, :5])


def test_levels_that_the_layout_has_not_are_nan():
    layout = StateLayout(GLOBAL, CHANNELS[:1] + CHANNELS[2:3])
    dataset = layout.to_dataset(state(layout=layout), style="levels")
    assert dataset["z"].sel(level=850).isnull().all()
    np.testing.assert_array_equal(layout.to_array(dataset), state(layout=layout))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"array": np.zeros((6, 7, 11))}, "accepted is"),
        ({"array": np.zeros((2, 6, 7, 12))}, "accepted is"),
        ({"array": np.zeros((6, 7, 12)), "style": "deep"}, "style='deep' came"),
    ],
)
def test_arrays_that_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        LAYOUT.to_dataset(**arguments)


def test_data_sets_that_are_refused():
    with pytest.raises(InputError, match="missing='drop' came"):
        LAYOUT.to_array(one(), missing="drop")
    with pytest.raises(InputError, match="no coordinate latitude"):
        LAYOUT.to_array(one().drop_vars("latitude"))
    with pytest.raises(InputError, match="no coordinate longitude"):
        StateLayout.infer(one().isel(longitude=0))
    with pytest.raises(InputError, match="z500 has the dimension depth"):
        StateLayout.infer(one().expand_dims(depth=[1, 2]))
    with pytest.raises(InputError, match="holds bool, not numbers"):
        StateLayout.infer(one() > 0)
    with pytest.raises(InputError, match="no variable on latitude and longitude"):
        StateLayout.infer(one().drop_vars(LAYOUT.names))


# Real data


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
    layout = StateLayout.infer(dataset.rename(step="time"))
    assert [(c.name, c.level) for c in layout.channels] == [("u10", None), ("v10", None), ("msl", None)]
    assert layout.to_array(dataset.rename(step="time")).shape == (14, 3, 25, 47)
