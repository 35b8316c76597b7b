"""The table of observations: one row, one value, at one time and place; what cannot be used keeps its reason.

Columns ``observation, time, latitude, longitude, variable, level, value, std``, then whatever else the input
carried. ``level`` is in hPa, and missing at the surface; ``value`` and ``std`` are in SI units.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lsda_fast.calendar import hours
from lsda_fast.errors import InputError
from lsda_fast.observations import columns
from lsda_fast.observations.columns import COLUMNS, reject

__all__ = ["Observations"]


@dataclass(frozen=True, eq=False)
class Observations:
    """A checked table of observations.

    Parameters
    ----------
    frame : pandas.DataFrame
        Usable rows: ``observation`` (int, row number in the input), ``time`` (datetime64[ns], UTC, may be
        NaT), ``latitude``, ``longitude`` (degrees), ``variable``, ``level`` (hPa or NaN), ``value`` (SI),
        ``std`` (SI, or NaN where unknown), then further input columns. Where ``units`` came along it names
        the SI units that the row is in now.
    rejected : pandas.DataFrame
        The other rows, same columns and ``reason``.
    """

    frame: pd.DataFrame
    rejected: pd.DataFrame

    @classmethod
    def read(cls, path: str | Path, std: Mapping[str, float] | None = None) -> Observations:
        """Read .csv, .csv.gz or .parquet; see :meth:`from_frame`.

        Raises
        ------
        InputError
            No such file, another suffix, an unreadable file, or columns missing.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"observations {path} is not a file; accepted: .csv, .csv.gz, .parquet")
        if path.name.endswith(".parquet"):
            try:
                import pyarrow.parquet
            except ImportError as error:
                raise InputError(f"reading {path} needs pyarrow: pip install 'lsda_fast[observations]'") from error
            reader: Any = pyarrow.parquet.read_table
            options: dict[str, Any] = {}
        elif path.name.endswith((".csv", ".csv.gz")):
            reader, options = pd.read_csv, {"low_memory": False, "index_col": False}
        else:
            raise InputError(f"observations {path} has an unknown suffix; accepted: .csv, .csv.gz, .parquet")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # values beyond the header's columns, lost
                table = reader(path, **options)
        except pd.errors.ParserWarning as error:
            raise InputError(f"observations {path} has lines of more values than its header has columns") from error
        except (ValueError, OSError, EOFError, zlib.error) as error:
            raise InputError(f"observations {path} cannot be read: {str(error).splitlines()[0]}") from error
        return cls.from_frame(table, std)

    @classmethod
    def from_frame(cls, frame: Any, std: Mapping[str, float] | None = None) -> Observations:
        """Check a table row by row.

        Parameters
        ----------
        frame : pandas.DataFrame or pyarrow.Table
            Columns time (ISO 8601, UTC where no zone is given), latitude, longitude (-180..360), variable
            ("z500", or "z" with level 500), value; optional level (hPa), std, units (else SI). ``lat`` and
            ``lon`` are accepted. ``z`` in units of length is taken for geopotential height, and multiplied by
            standard gravity.
        std : mapping of str to float, optional
            Standard deviation (SI) by variable ("t850" before "t"; between "t850" and "t500" linear in log p) for the
            rows that bring none.

        Raises
        ------
        InputError
            Required columns missing, or a standard deviation in ``std`` that is not positive.
        """
        table = columns.canonical(frame)
        reason = np.full(len(table), "", dtype=object)
        out = pd.DataFrame({"observation": np.arange(len(table), dtype=np.int64)})
        out["time"] = columns.times(table["time"], reason)
        out["latitude"] = columns.degrees(table, "latitude", -90, 90, reason)
        out["longitude"] = columns.degrees(table, "longitude", -180, 360, reason)
        out["variable"], out["level"] = columns.variables(table, reason)
        value, spread = columns.numbers(table, "value", reason), columns.numbers(table, "std", reason)
        reject(reason, ~np.isfinite(value), lambda x: "value is missing or not finite", value)
        reject(reason, columns.is_fill(value), lambda x: f"value {x:g} is a fill value", value)
        reject(reason, columns.is_fill(spread), lambda x: f"std {x:g} is a fill value", spread)
        reject(reason, spread <= 0, lambda x: f"std {x:g} is not positive", spread)
        units = table["units"].astype(object) if "units" in table else None
        out["value"], out["std"] = columns.convert(value, spread, out["variable"].to_numpy(), units, reason)
        out["std"] = columns.default_std(out, std or {})
        extra = table.drop(columns=[c for c in COLUMNS if c in table])
        if units is not None:
            extra["units"] = units
        out = pd.concat([out, extra], axis=1)
        columns.reject_duplicates(out, reason)
        keep = reason == ""
        return cls(_pick(out, keep), _pick(out.assign(reason=reason), ~keep))

    @classmethod
    def joined(cls, *tables: Observations) -> Observations:
        """Several tables as one, their rows numbered on from table to table."""
        frames: list[pd.DataFrame] = []
        rejected: list[pd.DataFrame] = []
        count = 0
        for table in tables:
            for kept, part in ((frames, table.frame), (rejected, table.rejected)):
                kept.append(part.assign(observation=part["observation"] + count))
            numbers = np.concatenate([table.frame["observation"], table.rejected["observation"]])
            count += int(numbers.max(initial=-1)) + 1
        together = lambda parts: pd.concat([p for p in parts if len(p)] or parts[:1], ignore_index=True)  # noqa: E731
        return cls(together(frames), together(rejected))

    def __len__(self) -> int:
        return len(self.frame)

    def window(self, time: Any, before: Any, after: Any, closed: str = "both") -> Observations:
        """Keep time - before .. time + after; the other rows go to ``rejected``.

        Parameters
        ----------
        time : anything pandas.Timestamp takes
        before, after : hours, or anything pandas.Timedelta takes, such as "3h"
        closed : {"both", "left", "right", "neither"}
            Which ends belong to the window. Windows that follow each other take "right", so that an
            observation on the seam is used once.

        Raises
        ------
        InputError
            A time or duration that cannot be read.
        """
        if closed not in ("both", "left", "right", "neither"):
            raise InputError(f"closed={closed!r} is unknown; accepted: both, left, right, neither")
        try:
            middle = pd.Timestamp(time)
            middle = middle if middle.tzinfo is None else middle.tz_convert("UTC").tz_localize(None)
        except (ValueError, TypeError) as error:
            raise InputError(f"a window around {time!r}; accepted: a time such as 2008-12-08T12") from error
        spans = (-1, hours(before, "window", zero=True)), (1, hours(after, "window", zero=True))
        try:
            start, end = (middle + sign * pd.Timedelta(hours=span) for sign, span in spans)
        except (OverflowError, ValueError) as error:  # out of what pandas can say
            raise InputError(f"a window from {before} before {middle} to {after} after it: {error}") from error
        t = self.frame["time"]
        after_start = t >= start if closed in ("both", "left") else t > start
        before_end = t <= end if closed in ("both", "right") else t < end
        outside = f"outside the window {start:%Y-%m-%dT%H:%M}..{end:%Y-%m-%dT%H:%M}"
        return self._split((after_start & before_end).to_numpy(), np.where(t.isna(), "no time", outside))

    def select(self, mask: Any, reason: str = "not selected") -> Observations:
        """Keep the rows of ``frame`` where ``mask`` is true; the others go to ``rejected`` with ``reason``.

        Raises
        ------
        InputError
            ``mask`` is not one bool per row.
        """
        keep = np.asarray(mask)
        if keep.shape != (len(self.frame),) or keep.dtype != bool:
            raise InputError(f"mask {keep.dtype}{keep.shape} given; accepted: one bool for each of {len(self)} rows")
        return self._split(keep, np.full(len(keep), reason, dtype=object))

    def _split(self, keep: np.ndarray, reason: np.ndarray) -> Observations:
        gone = _pick(self.frame.assign(reason=pd.Series(reason, dtype=object)), ~keep)
        parts = [part for part in (self.rejected, gone) if len(part)]
        rejected = pd.concat(parts, ignore_index=True) if parts else self.rejected
        return Observations(_pick(self.frame, keep), rejected)


def _pick(frame: pd.DataFrame, mask: np.ndarray) -> pd.DataFrame:
    return frame[mask].reset_index(drop=True)
