"""The states of an alignment: normalised as the package's, with the dates to align on and what lies before and after.

A background of a date is the package's forecast from a perturbed state one lead earlier, as in training; several
``draws`` of it, from other perturbations, are cases of their own.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from lsda_fast.alignment.case import Case
from lsda_fast.alignment.config import AlignmentConfig
from lsda_fast.calendar import calendar
from lsda_fast.errors import InputError
from lsda_fast.package import Package
from lsda_fast.training.backgrounds import perturbed_forecast
from lsda_fast.training.data import fingerprint
from lsda_fast.training.times import between, in_time_order

__all__ = ["AlignmentStates", "load_states"]


@dataclass(frozen=True, eq=False)
class AlignmentStates:
    """Normalised states in time order.

    Parameters
    ----------
    x : Tensor, shape (T, C, H, W)
    times : pd.DatetimeIndex, length T
    dates : np.ndarray of int
        Of every case, the index of its date.
    draws : np.ndarray of int
        Of every case, which of the date's backgrounds it has.
    before, after : np.ndarray of int
        Of every case, the index of the state one lead earlier, and of the one that its forecast is verified with.
    others : np.ndarray of int
        Indices of the period's states, whose differences perturb.
    hours : float
        Lead of the forecasts that are verified.
    fingerprint : dict of str to str
    """

    x: Tensor
    times: pd.DatetimeIndex
    dates: np.ndarray
    draws: np.ndarray
    before: np.ndarray
    after: np.ndarray
    others: np.ndarray
    hours: float
    fingerprint: dict[str, str]

    def time(self, i: int) -> np.datetime64:
        """The i-th case's date."""
        return self.times[self.dates[i]].to_datetime64()

    def name(self, i: int) -> str:
        """The i-th case's, of files."""
        draw = f"_{self.draws[i]}" if self.draws[i] else ""
        return f"{pd.Timestamp(self.time(i)):%Y%m%dT%H%M%S}{draw}"

    def seed(self, i: int, seed: int) -> int:
        """A seed of 64 bits from the run's, the i-th case's date and its draw."""
        draw = f" {self.draws[i]}" if self.draws[i] else ""
        key = f"{seed} {self.time(i).astype('datetime64[s]')}{draw}".encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "big")

    def season(self, i: int) -> Tensor:
        """Calendar of the i-th case, (4,)."""
        return torch.from_numpy(calendar(self.times[[self.dates[i]]]))[0]

    @torch.no_grad()
    def background(self, i: int, package: Package, scale: float, seed: int) -> Tensor:
        """The i-th case's background (C, H, W), the same whichever cases are asked for."""
        first, second = np.random.default_rng(self.seed(i, seed)).choice(self.others, (2, 1))
        source = self.before[[i]]
        season = torch.from_numpy(calendar(self.times[source]))
        model = package.modules["forecaster"]
        return perturbed_forecast(model, self.x, source, (first, second), season, scale, package.device)[0]

    def case(self, i: int, package: Package, background: Tensor) -> Case:
        """What rewards may know of the i-th case."""
        there = package.device
        later = {self.hours: self.x[self.after[i]].to(there)}
        return Case(package, self.time(i), background.to(there), self.x[self.dates[i]].to(there), later)


def load_states(dataset: xr.Dataset, package: Package, config: AlignmentConfig) -> AlignmentStates:
    """Read and normalise the period, and what lies around it.

    Raises
    ------
    InputError
        No time dimension, or fewer than two dates with a state one lead earlier and one to verify forecasts with.
    """
    dataset, times = in_time_order(dataset)
    lead, later = pd.Timedelta(hours=package.lead_hours), pd.Timedelta(hours=config.lead_hours)
    inside = np.arange(len(times)) if config.period is None else between(times, config.period)
    dates = inside[(times[inside] - lead).isin(times) & (times[inside] + later).isin(times)]
    if len(dates) < 2:
        raise InputError(
            f"{len(dates)} of {len(inside)} dates have a state {package.lead_hours:g} h earlier and one "
            f"{config.lead_hours:g} h later; accepted are at least two; the data's times are {times[0]} .. {times[-1]}"
        )
    if config.dates is not None:
        dates = np.unique(dates[np.linspace(0, len(dates) - 1, config.dates).round().astype(int)])
    dates, draws = np.repeat(dates, config.draws), np.tile(np.arange(config.draws), len(dates))
    before, after = times.get_indexer(times[dates] - lead), times.get_indexer(times[dates] + later)
    needed = np.unique(np.concatenate([inside, before, after]))
    values = package.layout.to_array(dataset.isel(time=needed))
    where: Any = lambda indices: np.searchsorted(needed, indices)  # noqa: E731
    return AlignmentStates(
        package.normalize(values).cpu(),
        times[needed],
        where(dates),
        draws,
        where(before),
        where(after),
        where(inside),
        config.lead_hours,
        fingerprint(package.layout, times[needed], values),
    )
