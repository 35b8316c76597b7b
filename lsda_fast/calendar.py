"""Time: what a network is told of it, season and time of day; and spans of it, as text or hours."""

import re

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


def hours(span: str | float, what: str) -> float:
    """Hours of ``24``, ``"24h"`` or ``"2d"``; InputError for anything that is not a positive time span of ``what``."""
    try:
        plain = not isinstance(span, (str, pd.Timedelta, np.timedelta64)) and not hasattr(span, "total_seconds")
        if plain or (isinstance(span, str) and span.replace(".", "", 1).isdigit()):
            value = float(span)
        else:
            value = pd.Timedelta(_DAY.sub("D", span) if isinstance(span, str) else span).total_seconds() / 3600
    except (ValueError, TypeError) as error:
        raise InputError(f"{what} {span!r} is not a time span; accepted are hours such as 24h") from error
    if not value > 0:
        raise InputError(f"{what} {span!r}; accepted is a positive time span such as 24h")
    return value
