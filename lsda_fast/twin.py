"""Twin experiments: a known truth, a background from a perturbed forecast, noisy observations drawn from the truth."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from lsda_fast.errors import InputError
from lsda_fast.layout import StateLayout
from lsda_fast.observations import Observations
from lsda_fast.observations.units import Conversion, to_si

__all__ = ["column_observations", "perturbed"]


def perturbed(initial: xr.Dataset, first: xr.Dataset, second: xr.Dataset, scale: float) -> xr.Dataset:
    """initial + scale (first - second) / sqrt(2): an analysis error with the climate's own scales and balances."""
    out = initial.copy()
    for name in initial.data_vars:
        difference = first[name].values - second[name].values
        out[name] = initial[name].copy(data=initial[name].values + scale * difference / 2**0.5)
    return out


def column_observations(
    truth: np.ndarray,
    layout: StateLayout,
    *,
    fraction: float,
    std: dict[str, float],
    seed: int,
    time: Any = None,
) -> Observations:
    """Every channel at randomly drawn grid columns, with Gaussian error.

    Parameters
    ----------
    truth : np.ndarray, shape (C, H, W)
        Physical units.
    layout : StateLayout
    fraction : float
        Share of the columns that is observed, at least one.
    std : dict of str to float
        Error per channel, in its units.
    seed : int
    time : np.datetime64, optional

    Returns
    -------
    Observations
        In SI units, as every table of observations.

    Raises
    ------
    InputError
        A share outside 0..1, or a channel without an error.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction = {fraction}; accepted is a share of the columns, 0 < fraction <= 1")
    absent = [name for name in layout.names if name not in std]
    if absent:
        raise InputError(f"std has no {', '.join(absent)}; accepted is an error for every channel")
    C, H, W = layout.shape
    rng = np.random.default_rng([seed, round(1e6 * fraction)])
    columns = np.sort(rng.choice(H * W, max(1, round(fraction * H * W)), replace=False))
    rows, cols = np.divmod(columns, W)
    error = np.array([std[name] for name in layout.names])
    values = truth[:, rows, cols] + error[:, None] * rng.standard_normal((C, len(columns)))
    n = len(columns)
    units = [to_si(channel.units) or Conversion(1.0, 0.0, "") for channel in layout.channels]
    scale, shift = (np.array([getattr(u, part) for u in units]) for part in ("scale", "shift"))
    values, error = scale[:, None] * values + shift[:, None], scale * error
    frame = pd.DataFrame(
        {
            "time": pd.Timestamp(time) if time is not None else pd.NaT,
            "latitude": np.tile(layout.grid.latitude[rows], C),
            "longitude": np.tile(layout.grid.longitude[cols], C),
            "variable": np.repeat([channel.variable for channel in layout.channels], n),
            "level": np.repeat([np.nan if channel.level is None else channel.level for channel in layout.channels], n),
            "value": values.ravel(),
            "std": np.repeat(error, n),
        }
    )
    return Observations.from_frame(frame)
