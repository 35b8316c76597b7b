"""Forecasts with the package's own learned model: the backgrounds of analyses.

A forecast is whole steps of the model's lead: ``lead`` = 48 h of a 24-hour model are two.
"""

import numpy as np
import pandas as pd
import xarray as xr

from lsda_fast.calendar import hours
from lsda_fast.cf import cf_time
from lsda_fast.datasets import canonical
from lsda_fast.errors import InputError
from lsda_fast.forecast_models import PackageForecast
from lsda_fast.package import Package

__all__ = ["forecast", "one_member", "one_state", "select_time"]


def forecast(
    package: Package, initial: xr.Dataset, *, lead: str | float | None = None, time: str | None = None
) -> xr.Dataset:
    """Forecast from one initial state (with members or without).

    Parameters
    ----------
    package : Package
        With a forecaster.
    initial : xr.Dataset
        ([time,] [member,] [level,] latitude, longitude); several times need ``time``.
    lead : str or float, optional
        Time span, a multiple of the package's lead; its own lead when not given.
    time : str, optional
        Initial time.

    Returns
    -------
    xr.Dataset
        The state at initial time + lead, in the initial state's style.

    Raises
    ------
    InputError
        No forecaster, a lead that is not a multiple, or a time that is not there.
    """
    model = PackageForecast(package)
    span = package.lead_hours if lead is None else hours(lead, "lead")
    initial = select_time(canonical(initial), time)
    if "time" not in initial.coords:
        raise InputError("the initial state has no time; the forecast needs one for its season and valid time")
    start = pd.DatetimeIndex(np.atleast_1d(initial["time"].values))[0]
    values = package.layout.to_array(initial)
    x = package.normalize(values.reshape(-1, *package.layout.shape))
    state = package.denormalize(model(x, start.to_datetime64(), span)).reshape(values.shape)
    valid = start + pd.Timedelta(hours=span)
    dims = tuple(d for d in ("member",) if d in initial.dims)
    coords = {d: initial[d].values for d in dims if d in initial.coords}
    out = package.layout.to_dataset(
        state, dims=dims, coords=coords, style=package.layout.style_of(initial), attrs={"source": "lsda_fast forecast"}
    )
    return out.assign_coords(
        time=cf_time(np.datetime64(valid, "ns")),
        forecast_reference_time=((), np.datetime64(start, "ns"), {"standard_name": "forecast_reference_time"}),
        forecast_period=((), span, {"standard_name": "forecast_period", "units": "hours"}),
    )


def one_state(dataset: xr.Dataset, time: str | None = None) -> xr.Dataset:
    """One state of a data set, of its one member; InputError for several."""
    dataset = one_member(select_time(canonical(dataset), time))
    if "member" in dataset.dims:
        raise InputError(f"the background has {dataset.sizes['member']} members; accepted is one state")
    return dataset


def one_member(dataset: xr.Dataset) -> xr.Dataset:
    """Without the dimension of its members where it has one."""
    return dataset.isel(member=0, drop=True) if dataset.sizes.get("member") == 1 else dataset


def select_time(dataset: xr.Dataset, time: str | None) -> xr.Dataset:
    """One time of a data set: the asked one, or the only one."""
    if "time" not in dataset.dims and time is None:
        return dataset
    if "time" not in dataset.coords:
        if time is None:
            raise InputError(f"{dataset.sizes['time']} states without times came; accepted is one state, or times")
        raise InputError(f"time {time!r} was asked for; the data have no time")
    times = pd.DatetimeIndex(np.atleast_1d(dataset["time"].values))
    if time is None:
        if len(times) != 1:
            reach = f"{times.min()} .. {times.max()}" if len(times) else "none"
            raise InputError(f"the data hold {len(times)} times, {reach}; say which with a time (--time)")
        return dataset.isel(time=0)
    try:
        wanted = pd.Timestamp(time)
    except ValueError as error:
        raise InputError(f"time {time!r} is not a date; accepted are dates such as 2008-12-07T12") from error
    if wanted.tzinfo is not None:
        wanted = wanted.tz_convert("UTC").tz_localize(None)
    if wanted not in times:
        raise InputError(f"time {wanted} is not in the data; they reach from {times.min()} to {times.max()}")
    places = np.flatnonzero(times == wanted)
    if len(places) > 1:
        raise InputError(f"the data hold {wanted} {len(places)} times; accepted is each time once")
    return dataset.isel(time=int(places[0])) if "time" in dataset.dims else dataset
