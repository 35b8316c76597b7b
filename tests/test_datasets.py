"""Files and names: what is opened is canonical, what is written comes back to the bit."""

import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lsda_fast.datasets import canonical, convert_units, fields, missing_mask, open_states, write_dataset
from lsda_fast.errors import InputError
from lsda_fast.grid import StateLayout

LATITUDE = np.array([50.0, 47.5, 45.0])
LONGITUDE = np.array([0.0, 2.5, 5.0, 7.5])


def gridded(name: str) -> Path:
    shared = Path(os.environ.get("LSDA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    path = shared / "data" / "gridded" / name
    if not path.exists():
        pytest.skip(f"shared data not here: {name}")
    return path


def field(*names: str, shift: float = 0.0, times: int = 2, start: str = "2008-01-01") -> xr.Dataset:
    rng = np.random.default_rng(3)
    hours = np.datetime64(start, "ns") + np.arange(times) * np.timedelta64(6, "h")
    return xr.Dataset(
        {n: (("time", "latitude", "longitude"), rng.normal(280 + shift, 5, (times, 3, 4)).astype("f4")) for n in names},
        coords={"time": hours, "latitude": LATITUDE, "longitude": LONGITUDE},
    )


@pytest.mark.parametrize(
    ("name", "attrs", "expected"),
    [
        ("z500", {}, ("z", 500.0)),
        ("t_850", {}, ("t", 850.0)),
        ("Z500", {}, ("z", 500.0)),
        ("vo1000", {}, ("vo", 1000.0)),
        ("u10", {}, ("u10", None)),
        ("v100", {}, ("v100", None)),
        ("u10", {"pressure_level": 10.0}, ("u", 10.0)),
        ("ciwc500", {"pressure_level": 500.0}, ("ciwc", 500.0)),
        ("ciwc500", {}, ("ciwc500", None)),
        ("q0.5", {"pressure_level": 0.5}, ("q", 0.5)),
        ("u10m", {}, ("u10m", None)),
        ("t2m", {"standard_name": "air_temperature"}, ("t2m", None)),
        ("z1200", {}, ("z1200", None)),
        ("msl", {}, ("msl", None)),
    ],
)
def test_flat_names_say_their_level(name, attrs, expected):
    dataset = field(name)
    dataset[name].attrs = attrs
    (found,) = fields(dataset)
    assert (found.variable, found.level) == expected


def test_scalar_level_belongs_to_upper_air_variables_only():
    dataset = field("t", "t2m").assign_coords(level=850)
    dataset["t2m"].attrs["standard_name"] = "air_temperature"
    assert [(f.variable, f.level) for f in fields(dataset)] == [("t", 850.0), ("t2m", None)]


@pytest.mark.parametrize(
    ("values", "attrs"),
    [
        ([500.0, 850.0], {}),
        ([50000.0, 85000.0], {}),
        ([50000.0, 85000.0], {"units": "Pa"}),
        ([500, 850], {"units": "millibars"}),
    ],
)
def test_levels_are_read_in_hpa(values, attrs):
    dataset = field("t").expand_dims(level=values)
    dataset["level"].attrs = attrs
    assert [f.level for f in fields(dataset)] == [500.0, 850.0]


def test_levels_that_are_no_pressure_are_refused():
    dataset = field("t").expand_dims(level=[1, 2])
    dataset["level"].attrs["units"] = "m"
    with pytest.raises(InputError, match="level has units 'm'; accepted are 'hPa'"):
        fields(dataset)
    with pytest.raises(InputError, match="no coordinate"):
        fields(dataset.drop_vars("level"))
    with pytest.raises(InputError, match="from -1 to 2 hPa"):
        fields(field("t").expand_dims(level=[-1, 2]))


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("lat", "latitude"),
        ("lon", "longitude"),
        ("number", "member"),
        ("realization", "member"),
        ("ensemble", "member"),
        ("isobaricInhPa", "level"),
        ("plev", "level"),
        ("pressure_level", "level"),
        ("valid_time", "time"),
    ],
)
def test_aliases_become_canonical(alias, name):
    dataset = field("t").expand_dims(level=[500.0], member=[0])
    assert canonical(dataset.rename({name: alias})).equals(dataset)


def test_time_is_the_valid_time():
    dataset = field("t")
    valid = dataset["time"].values + np.timedelta64(6, "h")
    beside = canonical(dataset.assign_coords(valid_time=("time", valid)))
    np.testing.assert_array_equal(beside["time"], valid)
    assert "valid_time" not in beside.coords
    steps = dataset.rename(time="step").assign_coords(step=[6, 12], valid_time=("step", valid), time=valid[0])
    np.testing.assert_array_equal(canonical(steps)["time"], valid)
    assert canonical(steps)["t"].dims[0] == "time"


@pytest.mark.parametrize(
    ("came", "wanted", "value", "expected"),
    [
        ("degC", "K", 20.0, 293.15),
        ("degF", "K", 32.0, 273.15),
        ("hPa", "Pa", 1013.25, 101325.0),
        ("m**2 s**-2", "m2 s-2", 5.5, 5.5),
        ("%", "1", 40.0, 0.4),
        ("mb", "Pa", 1013.25, 101325.0),
        ("deg C", "K", 20.0, 293.15),
        ("degrees_C", "K", 20.0, 293.15),
        ("Kelvin", "K", 293.15, 293.15),
        ("(0 - 1)", "1", 0.4, 0.4),
        ("g kg-1", "kg kg**-1", 3.0, 0.003),
        ("", "K", 3.0, 3.0),
    ],
)
def test_units_convert(came, wanted, value, expected):
    np.testing.assert_allclose(convert_units(np.array([value]), came, wanted, "x"), [expected], rtol=1e-12)


@pytest.mark.parametrize("units", ["m", "furlongs per", "~~", "m s-1)", "2 K", "mb", "gpm"])
def test_units_that_do_not_convert_give_one_sentence(units):
    with pytest.raises(InputError) as caught:
        convert_units(np.zeros(1), units, "K", "t850")
    assert str(caught.value) == (f"t850 has units '{units}'; accepted are 'K' and CF units that convert to it.")


@pytest.mark.parametrize("code", [np.nan, np.inf, 9999.0, -9999.0, -9.99e9, 1e20, 9.969209968386869e36])
def test_fill_values_are_missing(code):
    values = np.linspace(270, 290, 12, dtype=np.float32)
    values[5] = code
    np.testing.assert_array_equal(np.flatnonzero(missing_mask(values)), [5])


def test_9999_within_the_range_of_a_field_is_a_value():
    assert not missing_mask(np.array([9200.0, 9999.0, 10400.0])).any()
    assert missing_mask(np.full(3, 9999.0)).all()


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_written_files_come_back_to_the_bit(tmp_path, suffix):
    dataset = field("t850", "z500").assign_attrs(title="test")
    # What a packed source leaves behind must not round the values again.
    dataset["t850"].encoding = {"dtype": "int16", "scale_factor": 0.5, "add_offset": 270.0}
    path = tmp_path / f"state{suffix}"
    write_dataset(field("old"), path)
    write_dataset(dataset, path)
    assert os.listdir(tmp_path) == [path.name]
    assert open_states(path).identical(dataset)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.nc"
    write_dataset(field("t850"), path)
    before = path.read_bytes()

    def fail(self, part, **_):
        Path(part).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    with pytest.raises(OSError, match="disk full"):
        write_dataset(field("z500"), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.nc"]


@pytest.mark.parametrize("name", ["state.grib", "state", "absent/state.nc"])
def test_names_that_cannot_be_written(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}(; accepted are names that end in|: its folder does not exist)"):
        write_dataset(field("t850"), tmp_path / name)


def test_a_folder_that_is_no_store_is_left_alone(tmp_path):
    mine = tmp_path / "mine.zarr"
    mine.mkdir()
    write_dataset(field("t850"), mine)
    write_dataset(field("t850"), mine)
    other = tmp_path / "other.zarr"
    other.mkdir()
    (other / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match=r"other.zarr is no Zarr store; accepted is one, an empty folder"):
        write_dataset(field("t850"), other)
    assert (other / "thesis.txt").read_text() == "years"


def test_files_that_do_not_open(tmp_path):
    with pytest.raises(InputError, match="Nothing found at"):
        open_states(tmp_path / "*.nc")
    with pytest.raises(InputError, match="No path came"):
        open_states([])
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(InputError, match="cannot be read as netCDF, Zarr or GRIB"):
        open_states(tmp_path / "text.nc")


def test_several_files_are_one_data_set(tmp_path):
    pytest.importorskip("dask")
    whole = field("t850", "z500", times=4)
    for i in (0, 1):
        for name in ("t850", "z500"):
            write_dataset(whole[[name]].isel(time=slice(2 * i, 2 * i + 2)), tmp_path / f"{name}-{i}.nc")
    assert open_states(tmp_path / "*.nc").equals(whole)
    assert open_states(sorted(tmp_path.glob("t850*.nc"))).equals(whole[["t850"]])
    write_dataset(whole[["t850"]].isel(latitude=slice(2)), tmp_path / "z-region.nc")
    with pytest.raises(InputError, match="do not combine"):
        open_states(tmp_path / "*.nc")


def test_files_of_other_units_are_not_one_data_set(tmp_path):
    pytest.importorskip("dask")
    whole = field("t850", times=4)
    whole["t850"].attrs["units"] = "K"
    write_dataset(whole.isel(time=slice(0, 2)), tmp_path / "a.nc")
    celsius = whole.isel(time=slice(2, 4)).copy()
    celsius["t850"] = (celsius["t850"] - 273.15).assign_attrs(units="degC")
    write_dataset(celsius, tmp_path / "b.nc")
    with pytest.raises(InputError, match=r"t850 has units 'K' in '.*a.nc' and 'degC' in '.*b.nc'; accepted as one are"):
        open_states(tmp_path / "*.nc")


def test_a_store_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path = tmp_path / "state.zarr"
    write_dataset(field("t850"), path)
    replace = os.replace

    def fail(source, target):
        if Path(target) == path and "-old" not in str(source):
            raise OSError("no more")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no more"):
        write_dataset(field("z500"), path)
    assert os.listdir(tmp_path) == ["state.zarr"]
    assert open_states(path).identical(field("t850"))


def test_opening_reads_no_fields():
    dataset = open_states(gridded("era_interim_western_europe_2000_2008.nc"))
    assert not any(dataset[name].variable._in_memory for name in dataset.data_vars)


def test_grib_ensemble_opens_canonical():
    pytest.importorskip("cfgrib")
    dataset = open_states(gridded("era5_eda_10_members_20170101.grib"))
    assert dict(dataset.sizes) == {"member": 10, "time": 4, "level": 2, "latitude": 61, "longitude": 120}
    layout = StateLayout.infer(dataset)
    assert layout.names == ("z850", "z500", "t850", "t500")
    array = layout.to_array(dataset.isel(time=slice(2), member=slice(3)))
    assert array.shape == (2, 3, 4, 61, 120)
    source = dataset["t"].isel(time=1, member=2).sel(level=500, latitude=45, longitude=12).item()
    assert array[1, 2, 3, 15, 4] == np.float32(source)


def grib_message(name: str, kind: str, level: int, value: float) -> bytes:
    eccodes = pytest.importorskip("eccodes")
    handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    keys = {
        "Ni": 4,
        "Nj": 3,
        "latitudeOfFirstGridPointInDegrees": 50.0,
        "latitudeOfLastGridPointInDegrees": 45.0,
        "longitudeOfFirstGridPointInDegrees": 0.0,
        "longitudeOfLastGridPointInDegrees": 7.5,
        "iDirectionIncrementInDegrees": 2.5,
        "jDirectionIncrementInDegrees": 2.5,
        "dataDate": 20081208,
        "dataTime": 0,
        "stepRange": 6,
        "typeOfLevel": kind,
        "level": level,
        "shortName": name,
    }
    for key, setting in keys.items():
        eccodes.codes_set(handle, key, setting)
    eccodes.codes_set_values(handle, value + np.arange(12.0))
    message = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    return message


@pytest.mark.parametrize("levels_of_z", [(500,), (850, 500), (850, 300)])
def test_grib_of_surface_and_pressure_levels_is_one_data_set(tmp_path, levels_of_z):
    pytest.importorskip("cfgrib")
    wanted = {f"z{level}": ("z", "isobaricInhPa", level, 100.0 * level) for level in levels_of_z}
    wanted |= {f"t{level}": ("t", "isobaricInhPa", level, 250.0 + level / 16) for level in (850, 500)}
    wanted |= {"t2m": ("2t", "heightAboveGround", 2, 290.0), "u10": ("10u", "heightAboveGround", 10, 3.0)}
    path = tmp_path / "mixed.grib"
    path.write_bytes(b"".join(grib_message(*message) for message in wanted.values()))
    dataset = open_states(path)
    layout = StateLayout.infer(dataset)
    assert set(layout.names) == set(wanted)
    array = layout.to_array(dataset)
    for name, (*_, value) in wanted.items():
        np.testing.assert_allclose(array[layout.index(name)].ravel(), value + np.arange(12), atol=0.01)
    # A six-hour forecast from 00 UTC is a state of 06 UTC.
    assert dataset["time"].values == np.datetime64("2008-12-08T06")
    assert os.listdir(tmp_path) == ["mixed.grib"]
