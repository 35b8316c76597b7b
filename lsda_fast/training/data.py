"""Training data: states in time order, split in time, with the pairs that are one lead apart."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from lsda_fast.calendar import calendar
from lsda_fast.datasets import canonical
from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout
from lsda_fast.training.config import TrainingConfig

__all__ = ["States", "between", "fingerprint", "in_time_order", "load_states"]


@dataclass(frozen=True)
class States:
    """Normalised states in time order.

    Parameters
    ----------
    x : Tensor, shape (T, C, H, W)
    times : pd.DatetimeIndex, length T
    train, validation : np.ndarray of int
        Indices into T.
    before : np.ndarray of int, shape (T,)
        Index of the state one lead (for trajectories one step) earlier, -1 where there is none.
    fingerprint : dict of str to str
        SHA-256 of the layout, the times and the values as they were read.
    """

    layout: StateLayout
    normalization: Normalization
    x: Tensor
    times: pd.DatetimeIndex
    train: np.ndarray
    validation: np.ndarray
    before: np.ndarray
    fingerprint: dict[str, str]

    @property
    def calendar(self) -> Tensor:
        """Season and time of day of every state, (T, 4)."""
        return torch.from_numpy(calendar(self.times))

    def pairs(self, indices: np.ndarray) -> np.ndarray:
        """Those of the indices that have a state one lead earlier inside the same set."""
        return indices[np.isin(self.before[indices], indices)]

    def runs(self, indices: np.ndarray) -> list[Tensor]:
        """The indices as trajectories, each of states that follow one another."""
        runs: dict[int, list[int]] = {}
        for i in indices.tolist():
            run = runs.pop(int(self.before[i]), [])
            run.append(i)
            runs[i] = run
        return [torch.tensor(run) for run in runs.values()]


def load_states(dataset: xr.Dataset, config: TrainingConfig) -> States:
    """Read, order, split and normalise (statistics of the training period alone).

    Raises
    ------
    InputError
        No time dimension, an empty period, or no pairs one lead apart.
    """
    dataset, times = in_time_order(dataset)
    layout = StateLayout.infer(dataset, config.variables)
    values = layout.to_array(dataset, missing=config.missing)
    whole = np.isfinite(values).all(axis=(1, 2, 3))
    if not whole.any():
        raise InputError("training data hold no state without missing values; accepted is at least one")
    values, times = values[whole], times[whole]
    train, validation = _split(times, config)
    mean = values[train].mean(axis=(0, 2, 3), dtype=np.float64)
    about = mean[:, None, None] if config.normalization == "total" else values[train].mean(axis=0, dtype=np.float64)
    std = np.sqrt(np.mean((values[train] - about.astype(np.float32)) ** 2, axis=(0, 2, 3), dtype=np.float64))
    flat = [name for name, s in zip(layout.names, std) if not s > 0]
    if flat:
        raise InputError(f"channels {', '.join(flat)} do not vary in training; leave them out with `variables`")
    normalization = Normalization(mean.astype(np.float32), std.astype(np.float32))
    hours = config.window.hours if config.window else config.lead_hours
    before = times.get_indexer(times - pd.Timedelta(hours=hours))
    x = torch.from_numpy(normalization.normalize(values))
    digests = fingerprint(layout, times, values)
    states = States(layout, normalization, x, times, train, validation, before, digests)
    for name, indices, least in (("training", train, 2), ("validation", validation, 1)):
        if len(states.pairs(indices)) < least:
            raise InputError(f"no {name} states lie {hours:g} h apart; the data's times are {times[0]} .. {times[-1]}")
    return states


def in_time_order(dataset: xr.Dataset) -> tuple[xr.Dataset, pd.DatetimeIndex]:
    """The data in our names and the order of their times, and the times; InputError where they are no single states."""
    dataset = canonical(dataset)
    if "time" not in dataset.dims or "member" in dataset.dims:
        raise InputError(
            f"training data have dimensions {tuple(dataset.dims)}; accepted are states with `time`, without `member`"
        )
    dataset = dataset.sortby("time")
    times = pd.DatetimeIndex(dataset["time"].values)
    if times.has_duplicates:
        raise InputError(f"training data have time {times[times.duplicated()][0]} twice; accepted are different times")
    return dataset, times


def fingerprint(layout: StateLayout, times: pd.DatetimeIndex, values: np.ndarray) -> dict[str, str]:
    """SHA-256 of layout, times and values (T, C, H, W) as read.

    Before normalisation, because its sums may be rounded differently on another machine.
    """
    parts: dict[str, bytes | memoryview] = {
        "layout": json.dumps(layout.to_dict(), sort_keys=True).encode(),
        "times": times.to_numpy("datetime64[ns]").tobytes(),
        "values": values.reshape(-1).data,
    }
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}


def _split(times: pd.DatetimeIndex, config: TrainingConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation; without dates the first 80 % and the next 10 %."""
    index = np.arange(len(times))
    if config.train is None and config.validate_ is not None:
        raise InputError("`validate` came without `train`; accepted are both periods, or neither")
    if config.train is None:
        train = index[: int(0.8 * len(times))]
        validation = index[len(train) : int(0.9 * len(times))]
    else:
        train = between(times, config.train)
        validation = between(times, config.validate_) if config.validate_ else np.array([], int)
    for name, found in (("training", train), ("validation", validation)):
        if len(found) == 0:
            raise InputError(f"the {name} period holds no states; the data reach from {times[0]} to {times[-1]}")
    if np.intersect1d(train, validation).size:
        raise InputError("training and validation periods overlap; accepted are separate ones")
    return train, validation


def between(times: pd.DatetimeIndex, period: tuple[str, str]) -> np.ndarray:
    """Indices of the times from the first date to the last; InputError for what are no dates."""
    try:
        return np.arange(len(times))[times.slice_indexer(str(period[0]), str(period[1]))]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"period {period}: not dates ({error}); accepted are dates such as 2006-12-31") from error
