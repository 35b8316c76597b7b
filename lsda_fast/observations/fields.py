"""Gridded fields as observations: each pixel is a row of the table, at its place and time.

So a modality's field is observed on any grid, by interpolation to its pixels, and every pixel has its departure. Pixels
without a value (NaN, fill values) are rejected with a reason. A pixel is taken for the value at its middle: fields much
coarser than the model's grid are averages, and better observed as such (``observations.averages``).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

from lsda_fast.errors import InputError
from lsda_fast.fields import canonical, fields
from lsda_fast.observations.table import Observations
from lsda_fast.units import missing_mask

__all__ = ["field_observations"]


def field_observations(dataset: xr.Dataset, std: Mapping[str, float] | None = None) -> Observations:
    """The table of every pixel.

    Parameters
    ----------
    dataset : xr.Dataset
        Fields ([time,] [level,] latitude, longitude) with a coordinate time; units as their attributes say, else SI.
    std : mapping of str to float, optional
        As for ``Observations.from_frame``.

    Raises
    ------
    InputError
        No field, no time, or other dimensions than these.
    """
    dataset = canonical(dataset)
    found = fields(dataset)
    if not found or "time" not in dataset.coords:
        missing = "time" if found else "variable on latitude and longitude"
        raise InputError(f"the fields to observe have no {missing}; accepted are fields with a time")
    parts = []
    for field in found:
        array = dataset[field.name]
        array = array if field.position is None else array.isel(level=field.position)
        array = array if "time" in array.dims else array.expand_dims("time")
        if set(array.dims) != {"time", "latitude", "longitude"}:
            raise InputError(f"field {field.name} has dimensions {array.dims}; accepted: time, latitude, longitude")
        values = np.asarray(array.transpose("time", "latitude", "longitude").values, dtype=np.float64)
        places = [array[name].values for name in ("time", "latitude", "longitude")]
        time, latitude, longitude = (a.ravel() for a in np.meshgrid(*places, indexing="ij"))
        columns = {"time": time, "latitude": latitude, "longitude": longitude, "variable": field.variable}
        values = np.where(missing_mask(values), np.nan, values).ravel()
        parts.append(pd.DataFrame({**columns, "level": field.level, "value": values, "units": field.units}))
    table = pd.concat([part.astype({"level": float}) for part in parts], ignore_index=True)
    return Observations.from_frame(table, std)
