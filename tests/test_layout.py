"""The layout is a faithful door: whatever the orientation, names and units outside, the same state inside."""

import itertools
import json

import numpy as np
import pytest
import xarray as xr

from lsda_fast.datasets import open_states, write_dataset
from lsda_fast.errors import InputError
from lsda_fast.fields import split_name
from lsda_fast.grid import Channel, Grid, StateLayout

CHANNELS = (
    Channel("z", 500.0, "m2 s-2", "geopotential"),
    Channel("z", 850.0, "m2 s-2", "geopotential"),
    Channel("t", 850.0, "K", "air_temperature"),
    Channel("t", 500.0, "K", "air_temperature"),
    Channel("u10", None, "m s-1", "eastward_wind"),
    Channel("msl", None, "Pa", "air_pressure_at_mean_sea_level"),
)
LAYOUT = StateLayout(Grid(np.linspace(90, -90, 7), np.arange(0, 360, 30.0)), CHANNELS)
TIMES = np.array(["2008-12-08T00", "2008-12-08T12"], dtype="datetime64[ns]")
STYLES = ("flat", "levels")


def state(*lead: int, layout: StateLayout = LAYOUT) -> np.ndarray:
    rng = np.random.default_rng(7)
    scale = np.array([5e4, 1.4e4, 280.0, 255.0, 5.0, 1e5])[: len(layout.channels), None, None]
    return (scale * rng.normal(1.0, 0.05, (*lead, *layout.shape))).astype(np.float32)


def one(style: str = "flat") -> xr.Dataset:
    return LAYOUT.to_dataset(state(), style=style)


def test_names_shape_and_index():
    assert LAYOUT.names == ("z500", "z850", "t850", "t500", "u10", "msl")
    assert LAYOUT.shape == (6, 7, 12)
    assert LAYOUT.index("t500") == 3
    with pytest.raises(InputError, match="Channel 'q500' came; accepted are z500"):
        LAYOUT.index("q500")
    assert Channel("z", 0.5, "").name == "z0.5"
    with pytest.raises(InputError, match="z500 came more than once"):
        StateLayout(LAYOUT.grid, (CHANNELS[0], CHANNELS[0]))
    with pytest.raises(InputError, match="without channels"):
        StateLayout(LAYOUT.grid, ())


def test_layout_round_trips_through_json():
    again = StateLayout.from_dict(json.loads(json.dumps(LAYOUT.to_dict())))
    assert again == LAYOUT
    np.testing.assert_array_equal(again.grid.latitude, LAYOUT.grid.latitude)


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
    assert inferred.grid == LAYOUT.grid


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


@pytest.mark.parametrize("units", ["K", "no such unit", "((", "m s-1"])
def test_units_that_do_not_convert_are_refused(units):
    dataset = one()
    dataset["z500"].attrs["units"] = units
    with pytest.raises(InputError) as caught:
        LAYOUT.to_array(dataset)
    assert str(caught.value) == (
        f"z500 (z500) has units '{units}'; accepted are 'm2 s-2' and CF units that convert to it."
    )


@pytest.mark.parametrize(("name", "attrs"), [
    ("z", {"units": "gpm"}),
    ("gh", {"units": "gpm", "GRIB_cfVarName": "gh"}),
    ("zg", {"units": "m", "standard_name": "geopotential_height"}),
    ("HGT", {"units": "m"}),
    ("height_of_what", {"units": "dam", "standard_name": "geopotential_height"}),
])  # fmt: skip
def test_a_geopotential_height_is_read_as_a_geopotential(name, attrs):
    dataset = one("levels")
    length = 98.0665 if attrs["units"] == "dam" else 9.80665
    height = (dataset["z"].astype(np.float64) / length).drop_attrs().assign_attrs(attrs)
    heights = dataset.drop_vars("z").assign({name: height})
    np.testing.assert_allclose(LAYOUT.to_array(heights), state(), rtol=1e-6)
    assert LAYOUT.style_of(heights) == "levels"
    # Where both are there, the geopotential is what is asked for.
    if name != "z":
        np.testing.assert_array_equal(LAYOUT.to_array(heights.assign(z=dataset["z"])), state())


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
    layout = StateLayout(LAYOUT.grid, CHANNELS[:1] + CHANNELS[2:3])
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


def test_levels_go_one_way():
    channels = [Channel("z", level, "m2 s-2", "geopotential") for level in (500.0, 850.0, 300.0)]
    layout = StateLayout(LAYOUT.grid, tuple(channels))
    values = state(layout=layout)
    dataset = layout.to_dataset(values, style="levels")
    assert dataset["level"].values.tolist() == [850.0, 500.0, 300.0]
    np.testing.assert_array_equal(layout.to_array(dataset), values)
    up = StateLayout(LAYOUT.grid, (channels[2], channels[0], channels[1]))
    assert up.to_dataset(values, style="levels")["level"].values.tolist() == [300.0, 500.0, 850.0]


def test_an_unknown_standard_name_is_none():
    """As cfgrib writes it of winds near the surface."""
    u, v = Channel("u10", None, "m s-1", "unknown"), Channel("v10", None, "m s-1", "unknown")
    both = StateLayout(LAYOUT.grid, (u, v)).to_dataset(np.ones((2, *LAYOUT.grid.shape), np.float32))
    with pytest.raises(InputError, match="has no u10"):
        StateLayout(LAYOUT.grid, (u,)).to_array(both[["v10"]])
    assert StateLayout.infer(both).channels[0].standard_name == ""


@pytest.mark.parametrize("name", ["u_10", "U10", "t_2", "v100"])
def test_near_the_surface_is_no_level(name):
    assert split_name(name, {}) == (name, None)


def test_times_that_are_no_dates_are_refused():
    dataset = one().assign_coords(time=((), 20020210.5, {"units": "day as %Y%m%d.%f"}))
    with pytest.raises(InputError, match=r"times 2.00202e\+07, with the units 'day as %Y%m%d.%f', are no dates"):
        LAYOUT.to_array(dataset)
