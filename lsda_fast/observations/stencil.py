"""Where an observation looks at the state: K grid points around it, and their interpolation weights.

Horizontally bilinear in longitude and latitude, 4 points; longitudes wrap on a periodic grid. Poleward of the
last row of a global grid, f = (lat - lat_row) / (2 (90 - lat_row)) is the way travelled on the great circle
towards the same row on the other side of the pole, and the value is (1 - f) x(lon) + f x(lon + 180); winds
change sign on the other side, because east and north turn round at the pole. Vertically linear in log
pressure between two levels of one variable, 8 points.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid
from lsda_fast.layout import StateLayout
from lsda_fast.observations.units import to_si

__all__ = ["Stencil", "bracket", "build_stencil", "horizontal_stencil", "matrix_stencil", "vertical_stencil"]

# Grid coordinates are often float32; an observation this far (degrees) over the edge is on it.
_EDGE = 1e-4


@dataclass(frozen=True)
class Stencil:
    """Stencil of the observations that can be used, and the reasons of those that cannot.

    Parameters
    ----------
    reasons : numpy.ndarray of str, shape (rows of the table,)
        "" where used.
    channel, cell : numpy.ndarray of int64, shape (P, K)
        Channel, and flat index into H*W.
    interpolation : numpy.ndarray, shape (P, K)
        Weights in [0, 1], 1 in sum.
    sign : numpy.ndarray, shape (P, K)
        -1 for a wind component taken from beyond the pole, else 1.
    """

    reasons: np.ndarray
    channel: np.ndarray
    cell: np.ndarray
    interpolation: np.ndarray
    sign: np.ndarray


def build_stencil(frame: pd.DataFrame, layout: StateLayout) -> Stencil:
    """Bilinear, log-pressure stencil of the rows of ``frame`` (see ``Observations.frame``) on ``layout``."""
    channels, heights, reasons = vertical_stencil(frame, layout.channels)
    cells, weights, beyond, inside = horizontal_stencil(
        layout.grid,
        frame["latitude"].to_numpy(dtype=np.float64),
        frame["longitude"].to_numpy(dtype=np.float64),
    )
    reasons[(reasons == "") & ~inside] = "outside the domain"
    used = reasons == ""
    channels, heights, cells, weights, beyond = (a[used] for a in (channels, heights, cells, weights, beyond))
    if not heights[:, 1].any():
        channels, heights = channels[:, :1], heights[:, :1]
    P, layers = channels.shape
    turns = np.array([_is_wind(c) for c in layout.channels], dtype=bool)
    channel = np.repeat(channels, 4, axis=1)
    interpolation = (heights[:, :, None] * weights[:, None, :]).reshape(P, 4 * layers)
    sign = np.where(np.tile(beyond, (1, layers)) & turns[channel], -1.0, 1.0)
    return Stencil(reasons, channel, np.tile(cells, (1, layers)), interpolation, sign)


def horizontal_stencil(
    grid: Grid, latitude: np.ndarray, longitude: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Bilinear stencil on the sphere.

    Parameters
    ----------
    grid : Grid, shape (H, W)
    latitude, longitude : numpy.ndarray, shape (P,)
        Degrees.

    Returns
    -------
    cells : numpy.ndarray of int64, shape (P, 4)
        Flat index into H*W.
    weights : numpy.ndarray, shape (P, 4)
    beyond : numpy.ndarray of bool, shape (P, 4)
        Points on the other side of a pole.
    inside : numpy.ndarray of bool, shape (P,)
        False outside the domain, where the other three mean nothing.
    """
    H, W = grid.shape
    lats = np.asarray(grid.latitude, dtype=np.float64)
    north, south, to_south, inside = bracket(-lats, -latitude, _EDGE)
    west, east, to_east, inside_lon = _columns(grid, longitude)
    cells = np.stack([north * W + west, north * W + east, south * W + west, south * W + east], axis=1)
    weights = _outer(to_south, to_east)
    beyond = np.zeros_like(cells, dtype=bool)
    if grid.periodic and H > 1:
        west_far, east_far, to_east_far, _ = _columns(grid, longitude + 180.0)
        for row, neighbour, pole in ((0, 1, 90.0), (H - 1, H - 2, -90.0)):
            gap = abs(pole - lats[row])
            # A row further from the pole than one and a half rows is the edge of a domain, not of the globe.
            over = (np.abs(latitude) > abs(lats[row])) & (np.sign(latitude) == np.sign(pole))
            if gap > 1.5 * abs(lats[row] - lats[neighbour]) or gap < _EDGE or not over.any():
                continue
            f = np.abs(latitude - lats[row]) / (2.0 * gap)
            far = np.stack([(1 - f) * (1 - to_east), (1 - f) * to_east, f * (1 - to_east_far), f * to_east_far], 1)
            weights[over] = far[over]
            cells[over] = (row * W + np.stack([west, east, west_far, east_far], axis=1))[over]
            beyond[over] = [False, False, True, True]
            inside |= over
    return cells, weights, beyond, inside & inside_lon


def vertical_stencil(frame: pd.DataFrame, channels: tuple[Channel, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two channels (P, 2) for each observation, their weights (P, 2), and reasons (P,), "" where found."""
    P = len(frame)
    index, weights = np.zeros((P, 2), dtype=np.int64), np.tile([1.0, 0.0], (P, 1))
    reasons = np.full(P, "", dtype=object)
    known = dict.fromkeys(c.variable for c in channels)
    level = frame["level"].to_numpy(dtype=np.float64)
    units = frame["units"] if "units" in frame else pd.Series([""] * P, dtype=object)
    keys = [frame["variable"].to_numpy(), np.isnan(level), units.fillna("").to_numpy()]
    groups: Any = frame["variable"].groupby(keys).indices
    for (variable, no_level, unit), at in groups.items():
        surface = [i for i, c in enumerate(channels) if c.variable == variable and c.level is None]
        upper = sorted((c.level, i) for i, c in enumerate(channels) if c.variable == variable and c.level is not None)
        if not (surface or upper) and no_level:
            # "u100" is a height in some data and a level in others: the model's own name for it decides.
            surface = [i for i, c in enumerate(channels) if c.name == variable]
        if not (surface or upper):
            reasons[at] = f"variable {variable} is not among the model's {', '.join(known)}"
        elif no_level and not surface:
            reasons[at] = f"variable {variable} needs a level in hPa"
        elif not no_level and not upper:
            reasons[at] = [f"surface variable {variable} has a level, {x:g} hPa" for x in level[at]]
        elif not _same_dimension(unit, channels[surface[0] if no_level else upper[0][1]].units):
            own = channels[surface[0] if no_level else upper[0][1]].units
            reasons[at] = f"units that are {unit} in SI do not fit {variable}, which is in {own}"
        elif no_level:
            index[at] = surface[0]
        else:
            pressure, which = np.array([p for p, _ in upper]), np.array([i for _, i in upper])
            above, below, f, inside = bracket(np.log(pressure), np.log(level[at]), 1e-6)
            index[at] = np.stack([which[above], which[below]], axis=1)
            weights[at] = np.stack([1.0 - f, f], axis=1)
            span = f"outside the model's {pressure[0]:g}..{pressure[-1]:g} hPa"
            reasons[at[~inside]] = [f"level {x:g} hPa lies {span}" for x in level[at[~inside]]]
    # A weight of zero first, all of one second, is an exact match of the lower level.
    exact = weights[:, 1] == 1.0
    index[exact, 0], weights[exact] = index[exact, 1], [1.0, 0.0]
    return index, weights, reasons


def matrix_stencil(matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    """Columns and entries (P, K) of a matrix (P, N), dense or sparse, rows padded with zeros to the longest.

    Raises
    ------
    InputError
        Entries that are not finite.
    """
    if isinstance(matrix, torch.Tensor):
        sparse = matrix.detach().cpu()
        sparse = (sparse if sparse.layout == torch.sparse_coo else sparse.to_sparse_coo()).coalesce()
        (row, column), entry = sparse.indices().numpy(), sparse.values().numpy()
    elif hasattr(matrix, "tocsr"):
        compressed = matrix.tocsr(copy=True)
        compressed.sum_duplicates()
        coo = compressed.tocoo()
        row, column, entry = coo.row, coo.col, coo.data
    else:
        dense = np.asarray(matrix)
        row, column = np.nonzero(dense)
        entry = dense[row, column]
    order = np.lexsort((column, row))
    row, column, entry = row[order].astype(np.int64), column[order], entry[order]
    if not np.isfinite(entry).all():
        raise InputError("a matrix with non-finite entries given; accepted: finite numbers")
    slot = np.arange(len(row)) - np.searchsorted(row, row)
    shape = (int(matrix.shape[0]), int(slot.max(initial=0)) + 1)
    index, coefficient = np.zeros(shape, dtype=np.int64), np.zeros(shape)
    index[row, slot], coefficient[row, slot] = column, entry
    return index, coefficient


def _columns(grid: Grid, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    lons = np.asarray(grid.longitude, dtype=np.float64)
    if grid.periodic:
        axis = np.append(lons, lons[0] + 360.0)
        west, east, to_east, inside = bracket(axis, lons[0] + (longitude - lons[0]) % 360.0, _EDGE)
        return west % len(lons), east % len(lons), to_east, inside
    middle = (lons[0] + lons[-1]) / 2.0
    return bracket(lons, middle + (longitude - middle + 180.0) % 360.0 - 180.0, _EDGE)


def bracket(axis: np.ndarray, x: np.ndarray, edge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours of x on an ascending axis, the fraction from lower to upper; whether x is at most ``edge`` outside."""
    lower = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, max(len(axis) - 2, 0))
    upper = np.minimum(lower + 1, len(axis) - 1)
    gap = axis[upper] - axis[lower]
    fraction = np.clip(np.divide(x - axis[lower], gap, out=np.zeros_like(x), where=gap > 0), 0.0, 1.0)
    # Rounding must not leave a neighbour touched with a weight of 1e-16.
    fraction[fraction < 1e-12] = 0.0
    fraction[fraction > 1.0 - 1e-12] = 1.0
    return lower, upper, fraction, (x >= axis[0] - edge) & (x <= axis[-1] + edge)


def _outer(down: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], axis=1)


def _is_wind(channel: Channel) -> bool:
    return channel.variable in {"u", "v", "u10", "v10", "u100", "v100"} or any(
        word in channel.standard_name for word in ("eastward", "northward")
    )


def _same_dimension(observed: str, modelled: str) -> bool:
    one, other = to_si(str(observed)), to_si(modelled)
    return one is None or other is None or one.base == other.base
