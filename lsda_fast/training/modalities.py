"""Modalities beside the state: where each comes from, on its own grid, at the times of the states.

A source is any data set that xarray reads: CPC's daily precipitation on 0.5 degrees, NOAA's outgoing long-wave
radiation on 2.5, or the states' own. A time takes the nearest of the source within a tolerance, and is missing (NaN)
where there is none; fill values are NaN too.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from lsda_fast.datasets import open_states
from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout
from lsda_fast.modalities import Modality
from lsda_fast.training.config import ModalityConfig
from lsda_fast.training.times import in_time_order, nearest

__all__ = ["Beside", "load_modality", "statistics"]


@dataclass(frozen=True)
class Beside:
    """A modality and its values (T, C, H, W) as read, NaN where missing."""

    modality: Modality
    values: np.ndarray


def load_modality(
    name: str,
    config: ModalityConfig,
    states: xr.Dataset,
    times: pd.DatetimeIndex,
    train: np.ndarray,
    normalization: str,
) -> Beside:
    """A modality at the times of the states; ``states`` is where it comes from when the configuration names no source.

    Raises
    ------
    InputError
        A source without the variables, or with nothing at the times of training.
    """
    source, there = in_time_order(states if config.source is None else open_states(config.source))
    layout = StateLayout.infer(source, config.variables)
    index = nearest(times, there + pd.Timedelta(hours=config.shift_hours), config.tolerance_hours)
    found = np.unique(index[index >= 0])
    values = np.full((len(times), *layout.shape), np.nan, np.float32)
    if found.size:
        # A slice is read lazily as it is; a list of times is not.
        chosen = slice(found[0], found[-1] + 1) if len(found) == found[-1] + 1 - found[0] else found
        read = layout.to_array(source.isel(time=chosen), missing="mask")
        values[index >= 0] = read[np.searchsorted(found, index[index >= 0])]
    if not np.isfinite(values[train]).any(axis=(0, 2, 3)).all():
        raise InputError(
            f"modality {name!r} has nothing at the times of training: it reaches from {there[0]} to {there[-1]}, and "
            f"counts within {config.tolerance_hours:g} h"
        )
    units = statistics(layout.names, values[train], normalization)
    return Beside(Modality(name, config.kind, layout, units, config.decoded, config.shift_hours), values)


def statistics(names: tuple[str, ...], values: np.ndarray, kind: str) -> Normalization:
    """Mean and standard deviation per channel of what is known of (T, C, H, W), see ``TrainingConfig.normalization``.

    Raises
    ------
    InputError
        Channels that do not vary.
    """
    known = np.isfinite(values)
    values = np.where(known, values, 0)

    def average(x: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
        return x.sum(axis=axis, dtype=np.float64) / np.maximum(known.sum(axis=axis), 1)

    mean = average(values, (0, 2, 3))
    about = mean[:, None, None] if kind == "total" else average(values, 0)
    std = np.sqrt(average(np.where(known, values - about.astype(np.float32), 0) ** 2, (0, 2, 3)))
    flat = [name for name, s in zip(names, std) if not s > 0]
    if flat:
        raise InputError(f"channels {', '.join(flat)} do not vary in training; leave them out with `variables`")
    return Normalization(mean.astype(np.float32), std.astype(np.float32))
