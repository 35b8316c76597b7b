"""Names of dimensions and fields: what a data set calls a thing, and what a layout calls it.

Conventions: CF-1.11, https://cfconventions.org, and ECMWF's short names.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lsda_fast.errors import InputError
from lsda_fast.units import cf_units, convert_units

__all__ = [
    "DIMENSIONS",
    "HEIGHT",
    "UPPER_AIR",
    "Field",
    "canonical",
    "check_variable",
    "coordinates",
    "fields",
    "known_standard_name",
    "split_name",
]

DIMENSIONS = ("time", "member", "level", "latitude", "longitude")

_ALIASES = {
    "valid_time": "time",
    "number": "member",
    "realization": "member",
    "ensemble": "member",
    "isobaricInhPa": "level",
    "isobaricInPa": "level",
    "plev": "level",
    "pressure_level": "level",
    "lat": "latitude",
    "lon": "longitude",
}

# Upper-air variables by ECMWF short name, with their CF standard names. A trailing number in a name (z500,
# t_850) is a pressure level in hPa only behind one of these.
UPPER_AIR = {
    "z": "geopotential",
    "t": "air_temperature",
    "u": "eastward_wind",
    "v": "northward_wind",
    "q": "specific_humidity",
    "w": "lagrangian_tendency_of_air_pressure",
    "r": "relative_humidity",
    "d": "divergence_of_wind",
    "vo": "atmosphere_relative_vorticity",
}
# Where there is no geopotential: by standard name, and as ECMWF, CMIP and NCEP call it.
HEIGHT = ("geopotential_height", "gh", "zg", "hgt")
_SHORT_NAMES = {standard: short for short, standard in UPPER_AIR.items()}
_FLAT_NAME = re.compile(rf"({'|'.join(UPPER_AIR)})_?(\d{{1,4}})", re.IGNORECASE)
# Heights in metres by custom, unless an attribute `pressure_level` says otherwise.
_NEAR_SURFACE = {"u10", "v10", "u100", "v100", "t2", "d2", "q2", "r2"}
_MAX_LEVEL = 1100.0  # hPa


@dataclass(frozen=True)
class Field:
    """One two-dimensional field of a data set: a variable, or one level of it.

    Parameters
    ----------
    name : str
        The variable of the data set that holds it.
    variable : str
        What it is called in a layout: "z", "msl".
    level : float or None
        Pressure in hPa; None for a field without one.
    position : int or None
        Where along the dimension ``level``; None without one.
    units, standard_name, short_name : str
        As the attributes have them, empty where absent.
    """

    name: str
    variable: str
    level: float | None
    position: int | None
    units: str
    standard_name: str
    short_name: str

    def called(self, variable: str) -> bool:
        """Whether ``variable`` is one of its names."""
        return variable in (self.variable, self.name, self.short_name)


def canonical(dataset: xr.Dataset) -> xr.Dataset:
    """The data set under the dimension names time, member, level, latitude, longitude.

    A coordinate ``valid_time`` beside ``time`` (cfgrib) becomes the time: a state is of when it is valid.

    Raises
    ------
    InputError
        Times of another calendar than the standard one, or that are no dates.
    """
    valid = dataset.coords.get("valid_time")
    if valid is not None and valid.dims != ("valid_time",):
        if valid.dims == ("step",) and "time" not in dataset.dims:
            dataset = dataset.drop_vars("time", errors="ignore").swap_dims(step="valid_time")
        elif valid.dims in ((), ("time",)):
            dataset = dataset.drop_vars("valid_time").assign_coords(time=(valid.dims, valid.values, valid.attrs))
    present = set(dataset.dims) | set(dataset.coords)
    renames: dict[str, str] = {}
    for alias, name in _ALIASES.items():
        if alias in present and name not in present and name not in renames.values():
            renames[alias] = name
    dataset = dataset.rename(renames) if renames else dataset
    kind = dataset["time"].dtype.kind if "time" in dataset.coords and dataset["time"].size else "M"
    if kind in "iuf":
        units = dataset["time"].attrs.get("units", "none")
        raise InputError(
            f"times {dataset['time'].values.flat[0]:g}, with the units {units!r}, are no dates; accepted are CF's "
            "'hours since 1900-01-01' and the like"
        )
    if kind == "O":
        first = dataset["time"].values.flat[0]
        raise InputError(
            f"times of the calendar {getattr(first, 'calendar', 'unknown')} came; accepted are those of the standard "
            "calendar (xarray.Dataset.convert_calendar)"
        )
    return dataset


def fields(dataset: xr.Dataset) -> list[Field]:
    """Every field on latitude and longitude of a canonical data set, in its order.

    Raises
    ------
    InputError
        Where the level coordinate is not a pressure.
    """
    found: list[Field] = []
    for key, array in dataset.data_vars.items():
        if not {"latitude", "longitude"} <= set(array.dims):
            continue
        name = str(key)
        units = cf_units(str(array.attrs.get("units", "")))
        short = str(array.attrs.get("short_name", array.attrs.get("GRIB_cfVarName", "")))
        standard = known_standard_name(str(array.attrs.get("standard_name", name if name in _SHORT_NAMES else "")))
        if "level" in array.dims:
            variable = _upper_air(name, short, standard) or name
            for position, level in enumerate(_pressures(dataset)):
                found.append(Field(name, variable, level, position, units, standard, short))
            continue
        variable, height = split_name(name, array.attrs)
        # Not by standard name: a scalar level hangs on every variable, on the air_temperature at 2 m too.
        upper = _upper_air(name, short, name)
        if height is None and upper and "level" in array.coords:
            variable, height = upper, _pressures(dataset)[0]
        found.append(Field(name, variable, height, None, units, standard, short))
    return found


def known_standard_name(name: str) -> str:
    """The standard name; none for what GRIB readers write where there is none."""
    return "" if name in ("unknown", "~") else name


def _upper_air(name: str, short: str, standard: str) -> str:
    for candidate in (short, name.lower()):
        if candidate in UPPER_AIR:
            return candidate
    return _SHORT_NAMES.get(standard, "")


def split_name(name: str, attrs: dict[Any, Any]) -> tuple[str, float | None]:
    """("z", 500.0) for z500, Z500 and z_500; ("u10", None) for u10, the wind at 10 m."""
    level = attrs.get("pressure_level")
    if isinstance(level, int | float | np.number) and name.endswith(f"{level:g}"):
        return name.removesuffix(f"{level:g}").removesuffix("_"), float(level)
    match = _FLAT_NAME.fullmatch(name)
    if match and name.lower().replace("_", "") not in _NEAR_SURFACE and 1 <= int(match[2]) <= _MAX_LEVEL:
        return match[1].lower(), float(match[2])
    return name, None


def _pressures(dataset: xr.Dataset) -> list[float]:
    """The level coordinate in hPa, rounded to 1e-4 hPa so that 32-bit and Pa coordinates agree."""
    if "level" not in dataset.coords:
        raise InputError("The dimension level has no coordinate; accepted is a coordinate with pressures in hPa or Pa.")
    level = dataset["level"]
    values = np.atleast_1d(level.values).astype(np.float64)
    units = str(level.attrs.get("units", "")).strip()
    if units:
        values = convert_units(values, units, "hPa", "level")
    elif values.max(initial=0) > 2000:
        values = values / 100
    if not (np.all(values > 0) and np.all(values <= _MAX_LEVEL)):
        raise InputError(
            f"The coordinate level runs from {values.min():g} to {values.max():g} hPa; "
            f"accepted are pressures above 0 and up to {_MAX_LEVEL:g} hPa, with units hPa or Pa."
        )
    return [round(float(value), 4) for value in values]


def coordinates(dataset: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes of a canonical data set, as it has them, float64; InputError where either lacks."""
    for name in ("latitude", "longitude"):
        if name not in dataset.coords or dataset[name].dims != (name,):
            raise InputError(
                f"The data set has no coordinate {name} along a dimension of its own (its dimensions are "
                f"{', '.join(map(str, dataset.sizes))}); accepted are one-dimensional latitude and longitude."
            )
    return dataset["latitude"].values.astype(np.float64), dataset["longitude"].values.astype(np.float64)


def check_variable(array: xr.DataArray) -> None:
    """InputError for a variable that is not numbers, or has a dimension that states have not."""
    others = [str(dim) for dim in array.dims if dim not in DIMENSIONS]
    if others:
        raise InputError(
            f"{array.name} has the dimension {', '.join(others)}; accepted are {', '.join(DIMENSIONS)}, "
            "and variables=[...] to choose others."
        )
    if array.dtype.kind not in "fiu":
        raise InputError(f"{array.name} holds {array.dtype}, not numbers; variables=[...] chooses others.")
