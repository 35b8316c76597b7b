"""States as CF-1.11 data sets: axes, attributes, and fields flat or on levels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid

__all__ = ["cf_time", "state_dataset"]

_AXES: dict[str, dict[str, str]] = {
    "time": {"standard_name": "time", "long_name": "time", "axis": "T"},
    "member": {"standard_name": "realization", "long_name": "ensemble member", "units": "1"},
    "level": {
        "standard_name": "air_pressure",
        "long_name": "pressure level",
        "units": "hPa",
        "positive": "down",
        "axis": "Z",
    },
    "latitude": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"},
    "longitude": {
        "standard_name": "longitude",
        "long_name": "longitude",
        "units": "degrees_east",
        "axis": "X",
    },
}


def cf_time(value: Any) -> xr.Variable:
    """A time with the attributes of one, and none that tell of what stays behind (bounds)."""
    value = np.asarray(value)
    return xr.Variable((), value.astype("datetime64[ns]"), _AXES["time"])


def state_dataset(
    grid: Grid,
    channels: Sequence[Channel],
    array: np.ndarray,
    *,
    dims: tuple[str, ...],
    coords: Mapping[str, Any],
    style: str,
    attrs: Mapping[str, Any] | None,
) -> xr.Dataset:
    """The data set of an array (..., C, H, W): arguments as in `StateLayout.to_dataset`, where they are checked.

    Raises
    ------
    InputError
        For one variable in several units on levels.
    """
    axes: dict[str, Any] = {}
    for name, values in coords.items():
        values = np.asarray(values)
        if name == "time" and values.dtype.kind in "UM":
            values = values.astype("datetime64[ns]")
        axes[name] = ((name,) if name in dims else (), values, _AXES.get(name, {}))
    axes["latitude"] = ("latitude", grid.latitude, _AXES["latitude"])
    axes["longitude"] = ("longitude", grid.longitude, _AXES["longitude"])
    on_levels = [channel for channel in channels if style == "levels" and channel.level is not None]
    levels = list(dict.fromkeys(float(channel.level) for channel in on_levels if channel.level is not None))
    if levels not in (sorted(levels), sorted(levels, reverse=True)):  # a coordinate goes one way
        levels.sort(reverse=True)
    place: dict[float | None, int] = {level: i for i, level in enumerate(levels)}
    if levels:
        axes["level"] = ("level", np.array(levels, np.float64), _AXES["level"])
    data: dict[str, Any] = {}
    for c, channel in enumerate(channels):
        if channel in on_levels:
            continue
        notes = {} if channel.level is None else {"pressure_level": channel.level}
        data[channel.name] = (
            (*dims, "latitude", "longitude"),
            array[..., c, :, :],
            _describe(channel) | notes,
        )
    for variable in dict.fromkeys(channel.variable for channel in on_levels):
        mine = [channel for channel in on_levels if channel.variable == variable]
        if len({channel.units for channel in mine}) > 1:
            raise InputError(
                f"{variable} has different units on its levels; accepted with style='levels' is one, or style='flat'."
            )
        block = np.full((*array.shape[: len(dims)], len(levels), *grid.shape), np.nan, array.dtype)
        for channel in mine:
            block[..., place[channel.level], :, :] = array[..., channels.index(channel), :, :]
        data[variable] = ((*dims, "level", "latitude", "longitude"), block, _describe(mine[0]))
    return xr.Dataset(data, coords=axes, attrs={"Conventions": "CF-1.11", **(attrs or {})})


def _describe(channel: Channel) -> dict[str, Any]:
    described = {"units": channel.units, "standard_name": channel.standard_name}
    return {key: value for key, value in described.items() if value}
