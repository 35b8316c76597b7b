"""Time: what a network is told of it, season and time of day; and spans of it, as text or hours."""

import re
from datetime import timedelta

import numpy as np
import pandas as pd

from lsda_fast.errors import InputError

__all__ = ["calendar", "hours"]

_DAY = re.compile(r"(?<=[\d ])d\b")  # pandas 4 reads "2D" alone


def calendar(times: "np.ndarray | pd.DatetimeIndex") -> np.ndarray:
    """Season and time of day on two circles, (T, 4)."""
    index = pd.DatetimeIndex(times)
    year = 2 * np.pi * (index.day_of_year.to_numpy() - 1) / 365.25
    day = 2 * np.pi * (index.hour.to_numpy() + index.minute.to_numpy() / 60) / 24
    return np.stack([np.sin(year), np.cos(year), np.sin(day), np.cos(day)], axis=1).astype(np.float32)


def hours(span: "str | float | timedelta | np.timedelta64", what: str, *, zero: bool = False) -> float:
    """Hours of ``24``, ``"24h"`` or ``"2d"``; InputError for anything that is not a positive time span of ``what``.

    ``zero``: none at all is accepted too.
    """
    try:
        if isinstance(span, str) and not span.replace(".", "", 1).isdigit():
            value = pd.Timedelta(_DAY.sub("D", span)).total_seconds() / 3600
        elif isinstance(span, timedelta | np.timedelta64):
            value = pd.Timedelta(span).total_seconds() / 3600
        else:
            value = float(span)
    except (ValueError, TypeError) as error:
        raise InputError(f"{what} {span!r} is not a time span; accepted are hours such as 24h") from error
    if not (value > 0 or (zero and value == 0)):
        raise InputError(f"{what} {span!r}; accepted is a positive time span such as 24h")
    return value
