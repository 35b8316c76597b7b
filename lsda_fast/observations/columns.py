"""Columns of an observation table, read one by one; a cell that cannot be read gives its row a reason.

Every function takes ``reason`` (rows,), an object array of "" or the first reason found, and adds to it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lsda_fast.errors import InputError
from lsda_fast.fields import UPPER_AIR, split_name
from lsda_fast.observations.units import to_si
from lsda_fast.units import STANDARD_GRAVITY

__all__ = [
    "COLUMNS",
    "canonical",
    "convert",
    "default_std",
    "degrees",
    "is_fill",
    "numbers",
    "reject",
    "reject_duplicates",
    "times",
    "variables",
]

COLUMNS = ("observation", "time", "latitude", "longitude", "variable", "level", "value", "std")

_REQUIRED = ("time", "latitude", "longitude", "variable", "value")
_ALIASES = {"lat": "latitude", "lon": "longitude"}
_FILL = (9999.0, -9999.0)
_HUGE = 1e8


def canonical(frame: Any) -> pd.DataFrame:
    """The input as a pandas table with our column names; InputError when it cannot be one."""
    table = frame.to_pandas() if hasattr(frame, "to_pandas") else frame
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"observations of type {type(frame).__name__} given; accepted: a pandas or pyarrow table")
    table = table.rename(columns={c: str(c).strip() for c in table.columns}).reset_index(drop=True)
    names = {}
    for name in table.columns:
        canonical_name = _ALIASES.get(name.lower(), name.lower())
        if canonical_name in (*COLUMNS, "units") and canonical_name not in table.columns:
            names[name] = canonical_name
    # A table that went through here before brings numbers and reasons of its own; older ones they replace.
    own = {c: f"input_{c}" for c in ("observation", "reason") if c in table.columns}
    table = table.drop(columns=[name for name in own.values() if name in table.columns])
    names.update(own)
    table = table.rename(columns=names)
    if table.shape == (0, 0):
        return pd.DataFrame(columns=list(_REQUIRED))
    accepted = "time, latitude (lat), longitude (lon), variable, value, and optionally level (hPa), std, units"
    missing = [c for c in _REQUIRED if c not in table.columns]
    if missing:
        came = ", ".join(map(str, table.columns))
        raise InputError(f"observations lack {', '.join(missing)}: columns {came} came; accepted: {accepted}")
    if table.columns.has_duplicates:
        twice = ", ".join(sorted(set(table.columns[table.columns.duplicated()])))
        raise InputError(f"observations have {twice} more than once; accepted, once each: {accepted}")
    return table


def reject(reason: np.ndarray, bad: Any, text: Callable[[Any], str], column: Any) -> None:
    """Write ``text(cell)`` where ``bad`` and no earlier reason stands."""
    cells = np.asarray(column)
    for i in np.flatnonzero(np.asarray(bad, dtype=bool) & (reason == "")):
        reason[i] = text(cells[i])


def times(column: pd.Series, reason: np.ndarray) -> pd.Series:
    """datetime64[ns], UTC without a zone; NaT where the cell is empty."""
    if isinstance(column.dtype, pd.DatetimeTZDtype) or np.issubdtype(column.to_numpy().dtype, np.datetime64):
        read = pd.to_datetime(column, utc=True)
    else:
        text = column.astype(object)
        # A bare number could be a date, an epoch or a step.
        number = text.map(lambda x: isinstance(x, (int, float, np.number)))
        read = pd.to_datetime(text.mask(number), utc=True, errors="coerce", format="ISO8601")
        empty = text.isna() | (text.astype(str).str.strip() == "")
        reject(reason, read.isna() & ~empty, lambda x: f"time {x} is not ISO 8601", text)
    return read.dt.tz_localize(None).astype("datetime64[ns]")


def numbers(table: pd.DataFrame, name: str, reason: np.ndarray) -> np.ndarray:
    """float64; NaN where the cell, or the column, is empty."""
    if name not in table:
        return np.full(len(table), np.nan)
    if table[name].dtype.kind in "iuf":
        return table[name].to_numpy(dtype=np.float64, na_value=np.nan)
    column = table[name].astype(object)
    read = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    empty = column.isna() | (column.astype(str).str.strip() == "")
    reject(
        reason,
        np.isnan(read) & ~empty.to_numpy(),
        lambda x: f"{name} {x!r} is not a number",
        column.astype(object),
    )
    return read


def degrees(table: pd.DataFrame, name: str, low: int, high: int, reason: np.ndarray) -> np.ndarray:
    """``numbers`` that must be there and lie in low..high."""
    read = numbers(table, name, reason)
    reject(reason, np.isnan(read), lambda _: f"{name} is missing", read)
    reject(reason, ~((read >= low) & (read <= high)), lambda x: f"{name} {x:g} outside {low}..{high}", read)
    return read


def is_fill(x: np.ndarray) -> np.ndarray:
    """Where a number stands for a missing one: 9999, -9999, or a magnitude of 1e8 and more."""
    fill: np.ndarray = np.isin(x, _FILL) | (np.abs(x) >= _HUGE)
    return fill


def variables(table: pd.DataFrame, reason: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variable ("z") and level (hPa or NaN), with "z500" taken apart."""
    codes, names = pd.factorize(_text(table["variable"]))
    stems = np.empty(len(names), dtype=object)
    implied = np.full(len(names), np.nan)
    for i, name in enumerate(names):
        stem, pressure = split_name(name, {})
        stems[i] = stem.lower() if stem.lower() in UPPER_AIR else stem
        implied[i] = np.nan if pressure is None else pressure
    variable, in_name = stems[codes], implied[codes]
    level = numbers(table, "level", reason)
    reject(reason, variable == "", lambda _: "variable is missing", variable)
    reject(reason, is_fill(level), lambda x: f"level {x:g} is a fill value", level)
    reject(reason, level <= 0, lambda x: f"level {x:g} hPa is not positive", level)
    twice = ~np.isnan(level) & ~np.isnan(in_name) & ~np.isclose(level, in_name)
    reject(
        reason,
        twice,
        lambda i: f"variable {names[codes[i]]} has level {level[i]:g} hPa",
        np.arange(len(level)),
    )
    return variable, np.where(np.isnan(level), in_name, level)


def _text(column: pd.Series) -> pd.Series:
    codes, cells = pd.factorize(column.astype(object))
    texts = np.array([*(str(cell).strip() for cell in cells), ""], dtype=object)
    return pd.Series(texts[codes], index=column.index, dtype=object)  # -1, a missing cell, is the last


def convert(
    value: np.ndarray, std: np.ndarray, variable: np.ndarray, units: pd.Series | None, reason: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Value and std in SI; ``units`` is rewritten to what they are in now."""
    if units is None:
        return value, std
    value, std = value.copy(), std.copy()
    strings = _text(units)
    groups: Any = strings.groupby([strings.to_numpy(), variable]).indices
    for (text, name), at in groups.items():
        conversion = to_si(text)
        if conversion is None:
            bad = np.zeros(len(value), dtype=bool)
            bad[at] = text != ""
            reject(reason, bad, lambda x: f"units {x!r} are unknown", strings)
            continue
        scale, base = conversion.scale, conversion.base
        if name == "z" and base == "m":
            scale, base = scale * STANDARD_GRAVITY, "m2 s-2"
        value[at] = scale * value[at] + conversion.shift
        std[at] *= scale
        units.iloc[at] = base
    return value, std


def default_std(frame: pd.DataFrame, std: Mapping[str, float]) -> np.ndarray:
    """The std column, with gaps filled from ``std`` by "t850", between two levels of it in log p, then by "t"."""
    for name, number in std.items():
        if not (np.isfinite(number) and number > 0):
            raise InputError(f"std of {name} is {number}; accepted: a positive number in SI units")
    filled = frame["std"].to_numpy(copy=True)
    if std:
        # As objects: pandas takes the type from the cells, and an empty table has none.
        level = frame["level"].map(lambda x: "" if np.isnan(x) else f"{x:g}").astype(object)
        by_name = lambda key: key.map(dict(std)).to_numpy(dtype=np.float64)  # noqa: E731
        for given in (
            by_name(frame["variable"].astype(object) + level),
            _between(frame, std),
            by_name(frame["variable"]),
        ):
            filled = np.where(np.isnan(filled), given, filled)
    return filled


def _between(frame: pd.DataFrame, std: Mapping[str, float]) -> np.ndarray:
    """As observations between two levels are compared with both: linear in log p; NaN above and below all of them."""
    levels: dict[str, dict[float, float]] = {}
    for name, number in std.items():
        variable, pressure = split_name(name, {})
        if pressure is not None:
            levels.setdefault(variable, {})[np.log(pressure)] = number
    level, found = frame["level"].to_numpy(dtype=np.float64), np.full(len(frame), np.nan)
    log_p = np.log(np.where(level > 0, level, np.nan))
    for variable, known in levels.items():
        at = (frame["variable"] == variable).to_numpy(dtype=bool)
        places = sorted(known)
        found[at] = np.interp(log_p[at], places, [known[x] for x in places], left=np.nan, right=np.nan)
    return found


def reject_duplicates(frame: pd.DataFrame, reason: np.ndarray) -> None:
    """Of rows with the same time, place, variable, level and value, keep the first."""
    good = frame.loc[reason == "", ["observation", "time", "latitude", "longitude", "variable", "level", "value"]]
    # -10 and 350 degrees are one meridian; the wrap leaves rounding in the last digits.
    keys = good.assign(longitude=(good["longitude"] % 360.0).round(9) % 360.0)
    first = keys.groupby(list(keys.columns[1:]), dropna=False, sort=False)["observation"].transform("first")
    for i, original in zip(good["observation"], first):
        if i != original:
            reason[i] = f"duplicate of observation {original}"
