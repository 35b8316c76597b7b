"""Observation operators on a trajectory: normalised states of T times as one, x (M, T*C, H, W), channel t*C + c.

Stations in space and time, linear between the two states that enclose them (as FGAT of 4D-Var, and as the interpolation
in space is), or from the nearest; and every operator of one state at chosen times. All are stencils, so that every
guidance, and every native operation, takes a trajectory as it takes a state.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.layout import StateLayout
from lsda_fast.observations.affine import si_moments
from lsda_fast.observations.operators import StencilOperator
from lsda_fast.observations.stencil import bracket, build_stencil
from lsda_fast.observations.table import Observations
from lsda_fast.observations.units import Conversion, to_si

__all__ = ["at_times", "every", "in_si", "operator_rows", "trajectory_stations"]

INTERPOLATIONS = ("linear", "nearest")


def trajectory_stations(
    observations: Observations,
    layout: StateLayout,
    normalization: Normalization,
    times: Any,
    *,
    temporal: str = "linear",
    dtype: torch.dtype = torch.float32,
) -> StencilOperator:
    """Interpolation to points in space and time; what lies outside the window is rejected with a reason.

    Parameters
    ----------
    observations : Observations
    layout : StateLayout
        Of one state.
    normalization : Normalization
        Of one state.
    times : sequence of datetime64, length T
        Of the states, ascending.
    temporal : {"linear", "nearest"}
        Half way between two states, the nearest is the later one.

    Returns
    -------
    StencilOperator
        On (T*C, H, W), as of ``ObservationOperator.stations``; K doubles where an observation lies between states.

    Raises
    ------
    InputError
        Another interpolation than those accepted, times that do not ascend, or a normalization for other channels.
    """
    if temporal not in INTERPOLATIONS:
        raise InputError(f"temporal interpolation {temporal!r} given; accepted: {', '.join(INTERPOLATIONS)}")
    axis = _seconds(times)
    s = build_stencil(observations.frame, layout)
    placed = s.reasons == ""
    earlier, later, fraction = _between(observations.frame, axis, s.reasons, temporal)
    used = s.reasons == ""
    channel, cell, share, sign = (a[used[placed]] for a in (s.channel, s.cell, s.interpolation, s.sign))
    earlier, later, fraction = (a[used][:, None] for a in (earlier, later, fraction))
    (C, H, W), T = layout.shape, len(axis)
    index, interpolation = [(earlier * C + channel) * (H * W) + cell], [(1.0 - fraction) * share]
    if fraction.any():
        index.append((later * C + channel) * (H * W) + cell)
        interpolation.append(fraction * share)
        sign = np.tile(sign, (1, 2))
    weights = np.concatenate(interpolation, axis=1)
    mean, std = si_moments(normalization, layout)
    frame = observations.frame[used]
    return StencilOperator.of_physical(
        np.concatenate(index, axis=1),
        weights * sign,
        (np.tile(mean, T), np.tile(std, T)),
        (T * C, H, W),
        interpolation=weights,
        dtype=dtype,
        used=used,
        reasons=s.reasons,
        observation=frame["observation"].to_numpy(dtype=np.int64),
        values=frame["value"].to_numpy(dtype=np.float64),
        std=frame["std"].to_numpy(dtype=np.float64),
    )


def at_times(operator: StencilOperator, states: Sequence[int], length: int) -> StencilOperator:
    """An operator of one state (C, H, W) at some of the ``length`` states of a trajectory, time after time.

    Parameters
    ----------
    operator : StencilOperator
        What it knows of values does not go along: they differ from time to time.
    states : sequence of int
        Positions in the trajectory, 0 .. length - 1.
    length : int
        T.

    Raises
    ------
    InputError
        No position, or one outside the trajectory.
    """
    where = torch.as_tensor(list(states), dtype=torch.int64)
    if not len(where) or int(where.min()) < 0 or int(where.max()) >= length:
        raise InputError(
            f"states {list(states)} of {length} given; accepted: positions 0 .. {length - 1}, at least one"
        )
    C, H, W = operator.shape
    n = len(where)
    index = operator.index + (where.to(operator.index.device) * (C * H * W))[:, None, None]
    return StencilOperator(
        index.flatten(0, 1),
        operator.weight.repeat(n, 1),
        operator.offset.repeat(n),
        (length * C, H, W),
        interpolation=operator.interpolation.repeat(n, 1),
        cells=operator.cells.repeat(n),
    )


def every(length: int, step: int) -> range:
    """The states 0, step, 2 step, ... of a trajectory of ``length``; InputError for a step below 1."""
    if step < 1:
        raise InputError(f"every {step} states given; accepted is a whole number of at least 1")
    return range(0, length, step)


def operator_rows(operator: StencilOperator, layout: StateLayout, times: Any) -> Observations:
    """What an operator with values observed, as a table: every row at the point that has the largest share in it.

    Rows that the operator left out are there without a place. Values are in the operator's units.
    """
    C, H, W = layout.shape
    heaviest = operator.interpolation.argmax(1, keepdim=True)
    point = operator.index.gather(1, heaviest)[:, 0].cpu().numpy()
    t, c, y, x = np.unravel_index(point, (len(times), C, H, W))
    channels = [layout.channels[i] for i in c]
    rows = pd.DataFrame(
        {
            "time": pd.DatetimeIndex(times)[t],
            "latitude": layout.grid.latitude[y],
            "longitude": layout.grid.longitude[x],
            "variable": np.array([channel.variable for channel in channels], dtype=object),
            "level": np.array([np.nan if channel.level is None else channel.level for channel in channels], float),
            "value": operator.values,
            "std": operator.std,
        },
        index=np.flatnonzero(operator.used),
    ).reindex(np.arange(len(operator.used)))
    rows.insert(0, "observation", np.arange(len(rows)))
    return Observations(rows, rows.iloc[:0].assign(reason=""))


def in_si(operator: StencilOperator, layout: StateLayout) -> StencilOperator:
    """An operator in the channels' units, in SI, as the table of observations is.

    Rows over channels of other units together stay as they are: they have none.
    """
    C, H, W = layout.shape
    conversions = [to_si(channel.units) or Conversion(1.0, 0.0, "") for channel in layout.channels]
    scale, shift = (np.array([getattr(c, name) for c in conversions]) for name in ("scale", "shift"))
    channel = (operator.index // (H * W) % C).cpu().numpy()
    first = channel[:, :1]
    padding = (operator.weight == 0).cpu().numpy()
    alike = (((scale[channel] == scale[first]) & (shift[channel] == shift[first])) | padding).all(1)
    a, b = np.where(alike, scale[first[:, 0]], 1.0), np.where(alike, shift[first[:, 0]], 0.0)
    if (a == 1).all() and (b == 0).all():
        return operator
    to = lambda x: torch.from_numpy(x).to(operator.weight)  # noqa: E731
    return StencilOperator(
        operator.index,
        operator.weight * to(a)[:, None],
        operator.offset * to(a) + to(b),
        operator.shape,
        interpolation=operator.interpolation,
        cells=operator.cells,
        used=operator.used,
        reasons=operator.reasons,
        observation=operator.observation,
        values=a * operator.values + b,
        std=a * operator.std,
    )


def _seconds(times: Any) -> np.ndarray:
    """Ascending times in seconds since 1970, (T,)."""
    axis = pd.DatetimeIndex(np.atleast_1d(times)).to_numpy().astype("datetime64[ns]").astype(np.int64) / 1e9
    if not (np.diff(axis) > 0).all():
        raise InputError("times of a trajectory that do not ascend given; accepted: each later than the one before")
    return axis


def _between(
    frame: pd.DataFrame, axis: np.ndarray, reasons: np.ndarray, temporal: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The states before and after each row, and the way from one to the other; rows outside get a reason."""
    time = frame["time"]
    absent = time.isna().to_numpy()
    seconds = np.where(absent, axis[0], time.to_numpy().astype("datetime64[ns]").astype(np.int64) / 1e9)
    earlier, later, fraction, inside = bracket(axis, seconds, 0.0)
    first, last = (pd.Timestamp(int(second * 1e9)).isoformat(timespec="minutes") for second in axis[[0, -1]])
    reasons[(reasons == "") & absent] = "no time"
    reasons[(reasons == "") & ~inside] = f"outside the window {first}..{last}"
    if temporal == "nearest":
        fraction = np.floor(fraction + 0.5)
    # On a state, only that one is touched.
    return np.where(fraction == 1.0, later, earlier), later, np.where(fraction == 1.0, 0.0, fraction)
