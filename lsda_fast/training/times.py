"""Times of training data: in order, cut into periods, and matched between sources that do not share them."""

import numpy as np
import pandas as pd
import xarray as xr

from lsda_fast.datasets import canonical
from lsda_fast.errors import InputError

__all__ = ["between", "in_time_order", "nearest", "split"]


def in_time_order(dataset: xr.Dataset) -> tuple[xr.Dataset, pd.DatetimeIndex]:
    """The data in our names and the order of their times, and the times; InputError where they are no single states."""
    dataset = canonical(dataset)
    if "time" not in dataset.dims or "member" in dataset.dims:
        raise InputError(
            f"training data have dimensions {tuple(dataset.dims)}; accepted are states with `time`, without `member`"
        )
    times = pd.DatetimeIndex(dataset["time"].values)
    if not times.is_monotonic_increasing:
        dataset, times = dataset.sortby("time"), times.sort_values()
    if times.has_duplicates:
        raise InputError(f"training data have time {times[times.duplicated()][0]} twice; accepted are different times")
    return dataset, times


def nearest(wanted: pd.DatetimeIndex, there: pd.DatetimeIndex, tolerance_hours: float) -> np.ndarray:
    """Index of the nearest of the ascending times that are there, -1 where none lies within the tolerance."""
    return there.get_indexer(wanted, method="nearest", tolerance=pd.Timedelta(hours=tolerance_hours))


def split(
    times: pd.DatetimeIndex, train: tuple[str, str] | None, validate: tuple[str, str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation; without dates the first 80 % and the next 10 %."""
    index = np.arange(len(times))
    if train is None and validate is not None:
        raise InputError("`validate` came without `train`; accepted are both periods, or neither")
    if train is None:
        first = index[: int(0.8 * len(times))]
        second = index[len(first) : int(0.9 * len(times))]
    else:
        first = between(times, train)
        second = between(times, validate) if validate else np.array([], int)
    for name, found in (("training", first), ("validation", second)):
        if len(found) == 0:
            raise InputError(f"the {name} period holds no states; the data reach from {times[0]} to {times[-1]}")
    if np.intersect1d(first, second).size:
        raise InputError("training and validation periods overlap; accepted are separate ones")
    return first, second


def between(times: pd.DatetimeIndex, period: tuple[str, str]) -> np.ndarray:
    """Indices of the times from the first date to the last; InputError for what are no dates."""
    try:
        return np.arange(len(times))[times.slice_indexer(str(period[0]), str(period[1]))]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"period {period}: not dates ({error}); accepted are dates such as 2006-12-31") from error
