"""Gridded fields as observations: each pixel is a row of the table, at its place and time.

So a modality's field is observed on any grid, by interpolation to its pixels, and every pixel has its departure. Pixels
without a value (NaN, fill values) are rejected with a reason. A pixel is taken for the value at its middle: fields much
coarser than the model's grid are averages, and better observed as such (``observations.averages``). Pixels much finer
than it have errors that are alike, and count as often as there are of them: average those before.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

from lsda_fast.errors import InputError
from lsda_fast.fields import Field, canonical, fields
from lsda_fast.layout import channel_of
from lsda_fast.observations.table import Observations
from lsda_fast.units import missing_mask

__all__ = ["field_observations"]


def field_observations(
    dataset: xr.Dataset,
    std: Mapping[str, float] | None = None,
    *,
    period: tuple[pd.Timestamp, pd.Timestamp] | None = None,
    shift_hours: Mapping[str, float] | None = None,
) -> Observations:
    """The table of every pixel.

    Parameters
    ----------
    dataset : xr.Dataset
        Fields ([time,] [level,] latitude, longitude) with a coordinate time; units as their attributes say, else SI.
        Fields without a time beside others (a land mask) are no observations.
    std : mapping of str to float, optional
        As for ``Observations.from_frame``.
    period : (first, last), optional
        The times that are read, both included; all when not given.
    shift_hours : mapping of str to float, optional
        What is added to the times of a field by its name ("olr", "t850"), as for a modality in training: means of a
        day that are stamped at its begin have 12.

    Raises
    ------
    InputError
        No field, no time, none in the period, or other dimensions than these.
    """
    dataset = canonical(dataset)
    found = [field for field in fields(dataset) if "time" in dataset[field.name].coords]
    if not found:
        missing = "time" if fields(dataset) else "variable on latitude and longitude"
        raise InputError(f"the fields to observe have no {missing}; accepted are fields with a time")
    parts = [_pixels(dataset, field, period, (shift_hours or {}).get(channel_of(field).name, 0.0)) for field in found]
    if period is not None and not any(map(len, parts)):
        times = pd.DatetimeIndex(np.atleast_1d(dataset["time"].values))
        wanted = f"{period[0]} .. {period[1]}"
        raise InputError(f"the fields to observe are of {times.min()} .. {times.max()}; accepted are some of {wanted}")
    table = pd.concat([part.astype({"level": float}) for part in parts if len(part)], ignore_index=True)
    return Observations.from_frame(table, std)


def _pixels(
    dataset: xr.Dataset, field: Field, period: tuple[pd.Timestamp, pd.Timestamp] | None, shift: float
) -> pd.DataFrame:
    """The rows of one field; what is outside the period is not read."""
    array = dataset[field.name]
    array = array if field.position is None else array.isel(level=field.position)
    array = array if "time" in array.dims else array.expand_dims("time")
    if set(array.dims) != {"time", "latitude", "longitude"}:
        raise InputError(f"field {field.name} has dimensions {array.dims}; accepted: time, latitude, longitude")
    times = pd.DatetimeIndex(array["time"].values) + pd.Timedelta(hours=shift)
    if period is not None:
        inside = np.flatnonzero((times >= period[0]) & (times <= period[1]))
        array, times = array.isel(time=inside), times[inside]
    values = np.asarray(array.transpose("time", "latitude", "longitude").values, dtype=np.float64)
    places = times.to_numpy(), array["latitude"].values, array["longitude"].values
    time, latitude, longitude = (a.ravel() for a in np.meshgrid(*places, indexing="ij"))
    columns = {"time": time, "latitude": latitude, "longitude": longitude, "variable": field.variable}
    values = np.where(missing_mask(values), np.nan, values).ravel()
    return pd.DataFrame({**columns, "level": field.level, "value": values, "units": field.units})
